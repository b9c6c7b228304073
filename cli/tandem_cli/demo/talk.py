"""The demo's clients: a pod in the Models' namespace that calls the gateway, its output shown as it comes."""

import os
import subprocess
from typing import Any

from tandem_cli.demo.clusters import SYSTEM_NAMESPACE, DemoCluster
from tandem_cli.demo.commands import Kubernetes
from tandem_cli.demo.story import DemoError, Story


def talk(
    kubernetes: Kubernetes, cluster: DemoCluster, story: Story, names: list[str], prompts: tuple[str, ...]
) -> None:
    """Runs the client pod and shows its output as it comes."""
    pod = _client_pod(cluster, names, prompts)
    where = ["-n", cluster.namespace]
    kubernetes.kubectl(*where, "delete", "pod", "tandem-demo-client", "--ignore-not-found", "--grace-period=1")
    kubernetes.apply([pod])
    story.wait("The client's pod starts", lambda: _started(kubernetes, cluster.namespace), 120)
    command = ["kubectl", *where, "logs", "--follow", "--pod-running-timeout=60s", "tandem-demo-client"]
    environment = {**os.environ, **kubernetes.environment}
    try:
        subprocess.run(command, env=environment, timeout=300, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise DemoError(f"the client's output could not be followed: {error}") from error
    story.wait("The client ends", lambda: _ended(kubernetes, cluster.namespace), 30)


def _started(kubernetes: Kubernetes, namespace: str) -> tuple[bool, str]:
    phase = kubernetes.get("-n", namespace, "pod", "tandem-demo-client")["status"].get("phase", "Pending")
    return phase in ("Running", "Succeeded", "Failed"), phase


def _ended(kubernetes: Kubernetes, namespace: str) -> tuple[bool, str]:
    phase = kubernetes.get("-n", namespace, "pod", "tandem-demo-client")["status"].get("phase", "")
    if phase == "Failed":
        raise DemoError("the client got no good answer; its output stands above")
    return phase == "Succeeded", phase


def _client_pod(cluster: DemoCluster, names: list[str], prompts: tuple[str, ...]) -> dict[str, Any]:
    runtime = cluster.runtime()
    command = [runtime.get("python", "python"), "-m", "tandem_cli.demo.client"]
    command += ["--base", f"http://tandem-gateway.{SYSTEM_NAMESPACE}.svc", "--chat-model", names[0]]
    command += [part for prompt in prompts for part in ("--prompt", prompt)]
    command += ["--embedding-model", names[1]]
    container = {
        "name": "client",
        "image": runtime["image"],
        "imagePullPolicy": runtime["imagePullPolicy"],
        "command": command,
        "env": [
            {"name": "PYTHONPATH", "value": runtime.get("pythonPath", "")},
            {"name": "PYTHONSAFEPATH", "value": "1"},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [*runtime.get("volumeMounts", []), {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tandem-demo-client", "namespace": cluster.namespace},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": security,
            "containers": [container],
            "volumes": [*runtime.get("volumes", []), {"name": "tmp", "emptyDir": {}}],
        },
    }
