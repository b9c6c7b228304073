"""Nodes that exist only in the API, played by kwok: for tests of hundreds of pods on a machine that could run three.

Started by the supervisor after the controllers, as one more component: it ends with the cluster. What a fake pod goes
through stands in `assembly/kwok/stages.yaml`. Pods get addresses of the loopback, so that one server on this machine
can answer for all of them; Kubernetes refuses such addresses in EndpointSlices, so with fake nodes nobody makes those.
"""

from collections.abc import Callable
from typing import Any

from tandem_devcluster import paths
from tandem_devcluster.apiclient import Api
from tandem_devcluster.children import Children
from tandem_devcluster.components import Place
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.state import Spec

POD_ADDRESSES = "127.64.0.0/12"
GPUS = 16
_READY_TIMEOUT_S = 60.0
_LEASE_S = 40


def command(place: Place, kwok: str) -> list[str]:
    """kwok as the administrator, for every node there is; leases keep the nodes alive."""
    return [
        *[kwok, f"--kubeconfig={place.kubeconfig('admin')}", f"--config={paths.ASSEMBLY / 'kwok' / 'stages.yaml'}"],
        *["--manage-all-nodes", f"--cidr={POD_ADDRESSES}", f"--node-lease-duration-seconds={_LEASE_S}"],
    ]


def node(number: int) -> dict[str, Any]:
    """A node with room for hundreds of pods and a few GPUs."""
    room = {"cpu": "1000", "memory": "4Ti", "ephemeral-storage": "4Ti", "pods": "1000", "nvidia.com/gpu": str(GPUS)}
    name = f"fake-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {"capacity": room, "allocatable": room},
    }


def start(place: Place, spec: Spec, api: Api, children: Children, tell: Callable[[str], None]) -> None:
    """Starts kwok, makes the nodes and waits until pods can be placed on them. Raises DevclusterError."""
    tell("starting the fake nodes")
    children.start("kwok", command(place, spec.kwok))
    for number in range(spec.fake_nodes):
        status, answer = api.call("POST", "/api/v1/nodes", node(number))
        if status != 201:
            raise DevclusterError(f"the API server refused a fake node with {status}: {answer}")
    children.wait_for("The fake nodes were not ready", lambda: _all_ready(api), _READY_TIMEOUT_S, "kwok")


def _all_ready(api: Api) -> bool:
    """Ready, and no longer tainted as they are at first."""
    status, answer = api.call("GET", "/api/v1/nodes")
    return status == 200 and all(_is_ready(one) for one in answer["items"])


def _is_ready(found: dict[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in found["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and not found["spec"].get("taints")
