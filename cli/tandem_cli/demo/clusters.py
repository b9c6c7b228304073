"""The clusters that the demo runs on: what each kind has to say, and what they share.

Each says how it starts, how pods get Tandem's code and the demo's weights, and how it ends.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from tandem_cli.demo.commands import Kubernetes
from tandem_cli.demo.story import Story

NAME = "tandem-demo"
SYSTEM_NAMESPACE = "tandem-system"
MODELS_CLAIM = "demo-models"
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


class DemoCluster(ABC):
    """One kind of cluster."""

    title: str
    namespace = "default"
    hub_from_pods = True
    """Whether pods can fetch weights from a hub themselves."""

    @abstractmethod
    def start(self, story: Story) -> Kubernetes:
        """Brings the cluster up, or finds it, and returns how to talk to it."""

    @abstractmethod
    def runtime(self) -> dict[str, Any]:
        """The chart's `runtime` values: image and interpreter of all pods, and what they mount."""

    @abstractmethod
    def place(self, kubernetes: Kubernetes, story: Story, models: Path) -> None:
        """Makes the demo's weights a claim in the models' namespace."""

    @abstractmethod
    def stop(self, story: Story) -> None:
        """Removes what `start` made."""

    def shell_hint(self) -> str | None:
        """The command after which a person's own kubectl talks to this cluster."""
        return None
