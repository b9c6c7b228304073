"""Turns a control plane into a cluster that runs pods: containerd, kubelet, kube-proxy, DNS, in that order.

Called by the supervisor inside the cluster's network, mount and PID namespace.
"""

import http.client
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tandem_devcluster import node_config
from tandem_devcluster.apiclient import Api
from tandem_devcluster.children import POLL_S, Children
from tandem_devcluster.components import Place
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.node_config import NODE, SOCKET
from tandem_devcluster.state import Spec

CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")
_READY_TIMEOUT_S = 120.0
_IMPORT_TIMEOUT_S = 300
_GPU = "nvidia.com/gpu"


def prepare(place: Place) -> None:
    """Writes the configuration files."""
    cni = place.folder / "cni"
    cni.mkdir()
    plugins = next((each for each in CNI_FOLDERS if (Path(each) / "bridge").exists()), CNI_FOLDERS[0])
    (cni / "10-tandem.conflist").write_text(node_config.cni())
    (place.folder / "containerd.toml").write_text(node_config.containerd(plugins, cni))
    (place.folder / "kubelet.yaml").write_text(node_config.kubelet(place))
    (place.folder / "kube-proxy.yaml").write_text(node_config.kube_proxy(place))
    (place.folder / "Corefile").write_text(node_config.corefile(place))
    (place.folder / "resolv.conf").touch()


def start_runtime(place: Place, spec: Spec, children: Children, tell: Callable[[str], None]) -> None:
    """Starts containerd and brings the images in; the API server starts meanwhile."""
    children.start("containerd", ["containerd", "--config", f"{place.folder}/containerd.toml"])
    children.wait_for("containerd did not answer", _runtime_answers, _READY_TIMEOUT_S, "containerd")
    for image in spec.images:
        tell(f"importing {Path(image).name}")
        result = subprocess.run(
            import_command(image), capture_output=True, text=True, check=False, timeout=_IMPORT_TIMEOUT_S
        )
        if result.returncode != 0:
            raise DevclusterError(f"the image {image} could not be imported: {result.stderr.strip()}")


def import_command(image: str) -> list[str]:
    """Imports a docker-archive, from within the node's mount namespace."""
    return ["ctr", "--address", str(SOCKET), "--namespace", "k8s.io", "images", "import", image]


def start(place: Place, spec: Spec, api: Api, children: Children, tell: Callable[[str], None]) -> None:
    """Starts the node's Kubernetes programs and returns when it is Ready, Services work and DNS answers."""
    tell("starting kubelet, kube-proxy and DNS")
    kubelet = [f"--kubeconfig={place.kubeconfig('kubelet')}", f"--config={place.folder}/kubelet.yaml"]
    names = [f"--hostname-override={NODE}", f"--node-ip={node_config.ADDRESS}"]
    roots = [f"--root-dir={node_config.KUBELET_ROOT}", f"--cert-dir={place.folder}/certs"]
    children.start("kubelet", [place.kubernetes, "kubelet", *kubelet, *names, *roots])
    children.start("kube-proxy", [place.kubernetes, "kube-proxy", f"--config={place.folder}/kube-proxy.yaml"])
    for path, value in node_config.dns_role():
        api.apply(path, value)
    children.start("dns", [spec.coredns, "-conf", f"{place.folder}/Corefile"])
    tell("waiting for the node")
    path = f"/api/v1/nodes/{NODE}"
    children.wait_for("The node did not register", lambda: api.ok(path), _READY_TIMEOUT_S, "kubelet")
    _add_gpus(api, spec.gpus)
    children.wait_for("The node was not Ready", lambda: _node_ready(api), _READY_TIMEOUT_S, "kubelet")
    tell("waiting for Services and DNS")
    for name, address, url in (
        ("kube-proxy", node_config.PROXY_HEALTH, "/healthz"),
        ("dns", node_config.DNS_READY, "/ready"),
    ):
        ready = _answers(address, url)
        children.wait_for(f"{name} was not ready", ready, _READY_TIMEOUT_S, name)


def _add_gpus(api: Api, count: int) -> None:
    """GPUs that exist only for the scheduler. The kubelet keeps resources that it does not manage itself."""
    value = {_GPU: str(count)}
    patch = {"status": {"capacity": value, "allocatable": value}}
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        path = f"/api/v1/nodes/{NODE}/status"
        status, answer = api.call("PATCH", path, patch, "application/merge-patch+json")
        if status == 200:
            return
        if time.monotonic() > deadline:
            raise DevclusterError(f"the node's {_GPU} could not be set: the API answered {status}: {answer}")
        time.sleep(POLL_S)


def _node_ready(api: Api) -> bool:
    status, node = api.call("GET", f"/api/v1/nodes/{NODE}")
    if status != 200:
        return False
    conditions = {each["type"]: each["status"] for each in node["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and _GPU in node["status"].get("allocatable", {})


def _runtime_answers() -> bool:
    command = ["ctr", "--address", str(SOCKET), "version"]
    return SOCKET.exists() and subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def _answers(address: str, path: str) -> Callable[[], bool]:
    def ask() -> bool:
        connection = http.client.HTTPConnection(address, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return ask
