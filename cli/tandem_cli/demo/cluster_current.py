"""The demo on a cluster that is already there: the one of the current KUBECONFIG."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

from tandem_cli.demo.clusters import MODELS_CLAIM, SYSTEM_NAMESPACE, DemoCluster
from tandem_cli.demo.commands import Kubernetes
from tandem_cli.demo.story import DemoError, Story

UNPACK = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall('/models', filter='data')"


class CurrentCluster(DemoCluster):
    """Whatever cluster KUBECONFIG names; a namespace of the demo's own, nothing else is touched."""

    title = "the cluster of your current KUBECONFIG"
    namespace = "tandem-demo"

    def __init__(self) -> None:
        image_name = os.environ.get("IMAGE", "")
        if not image_name:
            raise DemoError(
                "CLUSTER=current needs an image that the cluster can pull: build the Dockerfile, push it, and say "
                "IMAGE=registry/name:tag make demo CLUSTER=current"
            )
        self._image = image_name

    def start(self, story: Story) -> Kubernetes:
        """Checks that the cluster answers."""
        kubernetes = Kubernetes()
        story.tell(f"context {kubernetes.kubectl('config', 'current-context').strip()}")
        kubernetes.kubectl("version", timeout=20)
        return kubernetes

    def runtime(self) -> dict[str, Any]:
        """The image that the caller pushed."""
        return {"image": self._image, "imagePullPolicy": "IfNotPresent"}

    def place(self, kubernetes: Kubernetes, story: Story, models: Path) -> None:
        """A claim of the default storage class, filled through a short-lived pod."""
        kubernetes.apply([_claim(self.namespace), _loader(self.namespace, self._image)])
        kubernetes.kubectl(
            "-n",
            self.namespace,
            "wait",
            "--for=condition=Ready",
            "pod/tandem-demo-loader",
            "--timeout=300s",
            timeout=310,
        )
        with story.during("Copying the demo's weights into a claim"):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(models, arcname=".")
            command = ["-n", self.namespace, "exec", "-i", "tandem-demo-loader", "--", "python", "-c", UNPACK]
            kubernetes.kubectl(*command, stdin=packed.getvalue(), timeout=600)
        kubernetes.kubectl("-n", self.namespace, "delete", "pod", "tandem-demo-loader", "--wait=false")

    def stop(self, story: Story) -> None:
        """Removes the release and the demo's namespace."""
        kubernetes = Kubernetes()
        with story.during("Removing the demo from the cluster"):
            kubernetes.kubectl(
                "delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=120s", timeout=130
            )
            kubernetes.helm("uninstall", "tandem", "--namespace", SYSTEM_NAMESPACE, "--ignore-not-found", "--wait")


def _claim(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": MODELS_CLAIM, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "4Gi"}}},
    }


def _loader(namespace: str, image_name: str) -> dict[str, Any]:
    container = {
        "name": "loader",
        "image": image_name,
        "command": ["python", "-c", "import signal; signal.sigwait({signal.SIGTERM})"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    security = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": MODELS_CLAIM}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tandem-demo-loader", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": security,
            "containers": [container],
            "volumes": [volume],
        },
    }
