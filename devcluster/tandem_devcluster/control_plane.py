"""Starts etcd, API server, controller manager and scheduler, in the order in which they need each other."""

from collections.abc import Callable

from tandem_devcluster import components, pki
from tandem_devcluster.apiclient import Api
from tandem_devcluster.children import Children
from tandem_devcluster.components import Place
from tandem_devcluster.state import Spec

READY_TIMEOUT_S = 120.0
_USERS = ("admin", "controller-manager", "scheduler")


def prepare(place: Place, more: list[pki.Certificate], users: tuple[str, ...] = ()) -> None:
    """Writes certificates and kubeconfigs."""
    pki.make(place.pki, [*pki.control_plane(components.api_hosts(place.address)), *more])
    for user in (*_USERS, *users):
        path = place.kubeconfig(user)
        path.touch(mode=0o600)
        path.write_text(components.kubeconfig(place, user))


def start_api(place: Place, spec: Spec, children: Children, tell: Callable[[str], None]) -> None:
    """Starts etcd and the API server, which takes about three seconds to answer."""
    tell("starting etcd and the API server")
    children.start("etcd", components.etcd(place))
    children.start("kube-apiserver", components.apiserver(place, spec.node, spec.api_flags))


def start_controllers(place: Place, spec: Spec, children: Children, tell: Callable[[str], None]) -> Api:
    """Waits for the API, then starts controllers and scheduler, which may still be at their first sync on return."""
    tell("waiting for the API server")
    api = Api(place.server, place.pki)
    children.wait_for("The API server was not ready", lambda: api.ok("/readyz"), READY_TIMEOUT_S, "kube-apiserver")
    tell("starting the controllers")
    children.start("kube-controller-manager", components.controller_manager(place, spec.qps, not spec.fake_nodes))
    children.start("kube-scheduler", components.scheduler(place, spec.qps))
    return api


def wait_for_controllers(api: Api, children: Children) -> None:
    """Returns when the first ServiceAccount exists: from then on a pod can be created."""
    children.wait_for(
        "The controllers made no ServiceAccount",
        lambda: api.ok("/api/v1/namespaces/default/serviceaccounts/default"),
        READY_TIMEOUT_S,
        "kube-controller-manager",
    )
