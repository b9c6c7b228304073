"""A node as a whole: pods of a restricted namespace behind a Service, host folders inside, logs, exec, GPUs."""

import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tandem_devcluster.cluster import Cluster
from tandem_devcluster.dev_image import NAME, USER
from tandem_devcluster.volumes import host_volume_manifests

pytestmark = pytest.mark.timeout(300)
SPACE = "devcluster-smoke"


def kubectl(of: Cluster, *arguments: str, given: str | None = None) -> str:
    command = [str(of.bin_dir / "kubectl"), "--kubeconfig", str(of.kubeconfig), "-n", SPACE, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
    return done.stdout


def objects(folder: Path) -> list[dict[str, Any]]:
    container = {
        "name": "files",
        "image": NAME,
        "imagePullPolicy": "Never",
        "command": ["/usr/bin/python3", "-u", "-m", "http.server", "8000", "--directory", str(folder)],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
        "volumeMounts": [{"name": "files", "mountPath": str(folder), "readOnly": True}],
        "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "64Mi"}},
    }
    claim = {"claimName": "files", "readOnly": True}
    pod = {
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": True,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "files", "persistentVolumeClaim": claim}],
    }
    labels = {"app": "smoke"}
    metadata = {"name": "smoke", "namespace": SPACE}
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": enforced}},
        *host_volume_manifests(SPACE, "files", folder),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
    ]


@pytest.fixture(scope="module")
def smoke(node_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The Deployment, Ready; its folder was made after the cluster was up."""
    folder = tmp_path_factory.mktemp("files")
    folder.chmod(0o755)
    (folder / "hello.txt").write_text("from the host\n")
    listed = {"apiVersion": "v1", "kind": "List", "items": objects(folder)}
    kubectl(node_cluster, "apply", "-f", "-", given=json.dumps(listed))
    kubectl(node_cluster, "rollout", "status", "deployment/smoke", "--timeout=90s")
    return node_cluster


def test_a_pod_reaches_the_service_and_the_api_by_name(smoke: Cluster) -> None:
    program = (
        "import ssl, urllib.request as u, socket\n"
        f"print(u.urlopen('http://smoke.{SPACE}.svc.cluster.local/hello.txt', timeout=10).read().decode().strip())\n"
        "at = '/var/run/secrets/kubernetes.io/serviceaccount/'\n"
        "r = u.Request('https://kubernetes.default/version',"
        " headers={'Authorization': 'Bearer ' + open(at + 'token').read()})\n"
        "print(u.urlopen(r, context=ssl.create_default_context(cafile=at + 'ca.crt'), timeout=10).status)\n"
        "try: socket.gethostbyname('example.org')\n"
        "except socket.gaierror: print('no such name')\n"
    )
    said = kubectl(smoke, "exec", "deployment/smoke", "--", "python3", "-c", program)
    assert said.splitlines() == ["from the host", "200", "no such name"]


def test_the_host_reaches_the_service_by_its_cluster_address(smoke: Cluster) -> None:
    address = kubectl(smoke, "get", "service", "smoke", "-o", "jsonpath={.spec.clusterIP}")
    with urllib.request.urlopen(f"http://{address}/hello.txt", timeout=10) as answer:
        assert answer.read() == b"from the host\n"
    deadline = time.monotonic() + 10
    while "GET /hello.txt" not in kubectl(smoke, "logs", "-l", "app=smoke", "--tail=-1"):
        assert time.monotonic() < deadline, "the request is in no pod's log"


def test_pods_are_restricted_and_the_host_folder_is_read_only(smoke: Cluster) -> None:
    folder = kubectl(smoke, "get", "pv", f"{SPACE}-files", "-o", "jsonpath={.spec.hostPath.path}")
    program = (
        "import os\n"
        "print(os.getuid())\n"
        f"for path in ('/new', '{folder}/new'):\n"
        "    try: open(path, 'w')\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    said = kubectl(smoke, "exec", "deployment/smoke", "--", "python3", "-c", program)
    assert said.splitlines() == [str(USER), "Read-only file system", "Read-only file system"]
    direct = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "refused", "namespace": SPACE},
        "spec": {
            "containers": [{"name": "c", "image": NAME}],
            "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
        },
    }
    with pytest.raises(AssertionError, match=r"violates PodSecurity .*hostPath"):
        kubectl(smoke, "apply", "-f", "-", given=json.dumps(direct))


def test_the_scheduler_counts_the_two_gpus(smoke: Cluster) -> None:
    allocatable = kubectl(smoke, "get", "nodes", "-o", "jsonpath={.items[0].status.allocatable}")
    assert json.loads(allocatable)["nvidia.com/gpu"] == "2"
    kubectl(smoke, "scale", "deployment/smoke", "--replicas=3")
    kubectl(smoke, "wait", "pod", "-l", "app=smoke", "--for=jsonpath={.status.conditions[0].reason}=Unschedulable",
            "--field-selector=status.phase=Pending", "--timeout=20s")  # fmt: skip
    message = kubectl(smoke, "get", "pods", "--field-selector=status.phase=Pending",
                      "-o", "jsonpath={.items[0].status.conditions[0].message}")  # fmt: skip
    assert "Insufficient nvidia.com/gpu" in message
    kubectl(smoke, "scale", "deployment/smoke", "--replicas=2")


def test_helm_speaks_to_the_cluster(node_cluster: Cluster) -> None:
    helm = [str(node_cluster.bin_dir / "helm"), "--kubeconfig", str(node_cluster.kubeconfig), "list", "-A"]
    assert subprocess.run(helm, capture_output=True, text=True, check=True).stdout.startswith("NAME")
