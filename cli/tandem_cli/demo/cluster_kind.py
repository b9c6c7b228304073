"""The demo's cluster where Docker runs: kind."""

from pathlib import Path
from typing import Any

import yaml

from tandem_cli.demo import assets
from tandem_cli.demo.clusters import MODELS_CLAIM, NAME, DemoCluster
from tandem_cli.demo.commands import Kubernetes, run
from tandem_cli.demo.story import Story
from tandem_devcluster import volumes

LOCAL_IMAGE = "tandem.dev/tandem:dev"


class KindCluster(DemoCluster):
    """A kind cluster whose node mounts the folder of the demo's weights."""

    title = "kind, on this machine's Docker"

    def start(self, story: Story) -> Kubernetes:
        """Creates the kind cluster unless it exists, builds the image and loads it."""
        kubeconfig = assets.cache_folder() / "kind.kubeconfig"
        environment = {"KUBECONFIG": str(kubeconfig)}
        if NAME not in run(["kind", "get", "clusters"]).split():
            mounts = [
                {
                    "hostPath": str(assets.cache_folder() / "demo-models"),
                    "containerPath": "/demo-models",
                    "readOnly": True,
                }
            ]
            config = {
                "kind": "Cluster",
                "apiVersion": "kind.x-k8s.io/v1alpha4",
                "nodes": [{"role": "control-plane", "extraMounts": mounts}],
            }
            with story.during("Creating the kind cluster"):
                command = ["kind", "create", "cluster", "--name", NAME, "--wait", "120s", "--config", "-"]
                run(command, env=environment, stdin=yaml.safe_dump(config), timeout=600)
        else:
            run(["kind", "export", "kubeconfig", "--name", NAME], env=environment)
        with story.during("Building the image and loading it into the node"):
            run(["docker", "build", "--tag", LOCAL_IMAGE, str(assets.ROOT)], timeout=3600)
            run(["kind", "load", "docker-image", LOCAL_IMAGE, "--name", NAME], timeout=1800)
        return Kubernetes(environment)

    def runtime(self) -> dict[str, Any]:
        """The image that was just built."""
        return {"image": LOCAL_IMAGE, "imagePullPolicy": "Never"}

    def place(self, kubernetes: Kubernetes, story: Story, models: Path) -> None:
        """The node sees the weights at /demo-models."""
        kubernetes.apply(volumes.host_volume_manifests(self.namespace, MODELS_CLAIM, Path("/demo-models")))

    def stop(self, story: Story) -> None:
        """Deletes the kind cluster."""
        with story.during("Deleting the kind cluster"):
            run(["kind", "delete", "cluster", "--name", NAME], timeout=300)

    def shell_hint(self) -> str | None:
        """The kubeconfig that kind wrote for the demo."""
        return f"export KUBECONFIG={assets.cache_folder() / 'kind.kubeconfig'}"
