"""The demo's cluster on a machine without a container engine: tandem_devcluster with a node."""

import os
from pathlib import Path
from typing import Any

from tandem_cli.demo import assets
from tandem_cli.demo.clusters import MODELS_CLAIM, NAME, SYSTEM_NAMESPACE, DemoCluster
from tandem_cli.demo.commands import Kubernetes
from tandem_cli.demo.story import DemoError, Story
from tandem_devcluster import cluster as devcluster
from tandem_devcluster import dev_image, volumes
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress

PACKAGES = ("api", "operator", "server", "gateway", "cli")


class NodeCluster(DemoCluster):
    """A real control plane and a real node, from tandem_devcluster, in namespaces of their own."""

    title = "a cluster of our own: Kubernetes' components on this machine, no container engine"
    hub_from_pods = False

    def __init__(self, name: str = NAME) -> None:
        self._name = name

    def start(self, story: Story) -> Kubernetes:
        """Builds what is missing, starts the cluster and imports the development image."""
        self._venv = assets.pod_environment(story)
        story.tell("Kubernetes: what this machine lacks of it is built and installed first, once")
        try:
            self._cluster = devcluster.up(self._name, node=True, progress=Progress(), helm=True)
        except DevclusterError as error:
            raise DemoError(str(error)) from error
        story.tell("the cluster is up")
        path = f"{self._cluster.bin_dir}{os.pathsep}{os.environ.get('PATH', '')}"
        return Kubernetes({"KUBECONFIG": str(self._cluster.kubeconfig), "PATH": path})

    def runtime(self) -> dict[str, Any]:
        """The development image; code and libraries come from this machine's disk, read-only."""
        claims = {"tandem-venv": "/opt/tandem/venv", "tandem-source": "/opt/tandem/source"}
        return {
            "image": dev_image.NAME,
            "imagePullPolicy": "Never",
            "python": "/opt/tandem/venv/bin/python",
            "pythonPath": ":".join(f"/opt/tandem/source/{package}" for package in PACKAGES),
            "volumes": [
                {"name": name, "persistentVolumeClaim": {"claimName": name, "readOnly": True}} for name in claims
            ],
            "volumeMounts": [{"name": name, "mountPath": path, "readOnly": True} for name, path in claims.items()],
        }

    def place(self, kubernetes: Kubernetes, story: Story, models: Path) -> None:
        """Host folders enter as PersistentVolumes, since `restricted` namespaces allow no hostPath in a pod."""
        objects: list[dict[str, Any]] = []
        for namespace in (SYSTEM_NAMESPACE, self.namespace):
            objects += volumes.host_volume_manifests(namespace, "tandem-venv", self._venv)
            objects += volumes.host_volume_manifests(namespace, "tandem-source", assets.ROOT)
        objects += volumes.host_volume_manifests(self.namespace, MODELS_CLAIM, models)
        kubernetes.apply(objects)

    def stop(self, story: Story) -> None:
        """Ends every process of the cluster and removes its state."""
        with story.during("Ending the cluster"):
            devcluster.down(self._name)

    def shell_hint(self) -> str | None:
        """`env` of the development cluster."""
        return f'eval "$({assets.ROOT}/.venv/bin/python -m tandem_devcluster env --name {self._name})"'
