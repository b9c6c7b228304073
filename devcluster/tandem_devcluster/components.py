"""The command line of every component, as pure functions of where the cluster lives: what `control_plane` starts.

The choice of flags is explained in docs/decisions/0002-devcluster.md.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

SERVICES = "198.19.0.0/16"
API_SERVICE = "198.19.0.1"
DOMAIN = "cluster.local"
_ENDPOINT_CONTROLLERS = ("endpoints-controller", "endpointslice-controller", "endpointslice-mirroring-controller")


@dataclass(frozen=True)
class Place:
    """Where a control plane lives: its folder, the address of its API and the TCP ports."""

    folder: Path
    kubernetes: str
    address: str
    api_port: int
    etcd_port: int
    peer_port: int

    @property
    def pki(self) -> Path:
        """The folder of keys and certificates."""
        return self.folder / "pki"

    @property
    def server(self) -> str:
        """The API's URL."""
        return f"https://{self.address}:{self.api_port}"

    def kubeconfig(self, user: str) -> Path:
        """The file with which `user` (the name of a certificate) reaches the API."""
        return self.folder / ("kubeconfig" if user == "admin" else f"{user}.kubeconfig")


def api_hosts(address: str) -> tuple[str, ...]:
    """The names under which the API server may be called."""
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    addresses = dict.fromkeys([address, "127.0.0.1", API_SERVICE])
    hosts = [*(f"IP:{each}" for each in addresses), *(f"DNS:{each}" for each in names)]
    return (*hosts, f"DNS:kubernetes.default.svc.{DOMAIN}")


def kubeconfig(place: Place, user: str) -> str:
    """A kubeconfig with everything inside, so that the file alone is enough wherever it is carried."""

    def inline(file: str) -> str:
        return base64.b64encode((place.pki / file).read_bytes()).decode()

    certificate = {"client-certificate-data": inline(f"{user}.crt"), "client-key-data": inline(f"{user}.key")}
    cluster = {"server": place.server, "certificate-authority-data": inline("ca.crt")}
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tandem", "cluster": cluster}],
        "users": [{"name": user, "user": certificate}],
        "contexts": [{"name": "tandem", "context": {"cluster": "tandem", "user": user}}],
        "current-context": "tandem",
    }
    return yaml.safe_dump(value, sort_keys=False)


def etcd(place: Place) -> list[str]:
    """One member, on the loopback, without fsync: the cluster is thrown away with its folder."""
    client, peer = f"http://127.0.0.1:{place.etcd_port}", f"http://127.0.0.1:{place.peer_port}"
    return [
        *[place.kubernetes, "etcd", f"--data-dir={place.folder}/etcd", "--unsafe-no-fsync", "--log-level=warn"],
        *[f"--listen-client-urls={client}", f"--advertise-client-urls={client}"],
        *[f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"],
    ]


def apiserver(place: Place, node: bool, more: Sequence[str] = ()) -> list[str]:
    """RBAC and Node authorizers on. Without a node there is no address that pods could call the API by.

    `more` are flags that somebody asked for.
    """
    pki = place.pki
    command = [
        *[place.kubernetes, "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{place.etcd_port}"],
        *[f"--secure-port={place.api_port}", f"--bind-address={place.address}", f"--advertise-address={place.address}"],
        *[f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key"],
        *[f"--client-ca-file={pki}/ca.crt", f"--cert-dir={place.folder}/certs", "--authorization-mode=Node,RBAC"],
        *[f"--service-cluster-ip-range={SERVICES}", "--service-account-issuer=https://kubernetes.default.svc"],
        *[f"--service-account-key-file={pki}/service-accounts.pub", "--allow-privileged=true"],
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        *more,
    ]
    if not node:
        return [*command, "--endpoint-reconciler-type=none"]
    return [
        *command,
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def controller_manager(place: Place, qps: int, endpoints: bool = True) -> list[str]:
    """Each controller with an account of its own; no leader election and no port, since it is the only one.

    Without `endpoints` nobody makes Endpoints and EndpointSlices: those of fake pods would be refused, for ever.
    """
    without = [] if endpoints else [f"--controllers=*,{','.join(f'-{one}' for one in _ENDPOINT_CONTROLLERS)}"]
    return [
        *[place.kubernetes, "kube-controller-manager", f"--kubeconfig={place.kubeconfig('controller-manager')}"],
        *[f"--root-ca-file={place.pki}/ca.crt", "--use-service-account-credentials", "--leader-elect=false"],
        *[f"--service-account-private-key-file={place.pki}/service-accounts.key", "--secure-port=0"],
        *[f"--kube-api-qps={qps}", f"--kube-api-burst={2 * qps}"],
        # A claim and a volume made together are seldom bound at first sight; the default tries again after 15 s.
        "--pvclaimbinder-sync-period=1s",
        *without,
    ]


def scheduler(place: Place, qps: int) -> list[str]:
    """The only scheduler: no leader election, no port."""
    return [
        *[place.kubernetes, "kube-scheduler", f"--kubeconfig={place.kubeconfig('scheduler')}"],
        *["--leader-elect=false", "--secure-port=0", f"--kube-api-qps={qps}", f"--kube-api-burst={2 * qps}"],
    ]
