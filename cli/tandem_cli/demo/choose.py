"""Which kind of cluster the demo uses on this machine."""

import os
import shutil
import subprocess

from tandem_cli.demo import assets
from tandem_cli.demo.cluster_current import CurrentCluster
from tandem_cli.demo.cluster_kind import KindCluster
from tandem_cli.demo.cluster_node import NodeCluster
from tandem_cli.demo.clusters import DemoCluster
from tandem_cli.demo.story import DemoError


def docker_answers() -> bool:
    """Whether a Docker daemon and kind are there."""
    if not (shutil.which("docker") and shutil.which("kind")):
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def choose(kind: str) -> DemoCluster:
    """The cluster for `auto`, `node`, `kind` or `current`. Raises DemoError that says what else can be done."""
    if kind == "auto":
        kind = "kind" if docker_answers() else "node"
        if kind == "node" and os.geteuid() != 0:
            raise DemoError(
                "the demo needs root (for a node of its own: sudo make demo), or Docker with kind, or CLUSTER=current; "
                "without any of them serve the model on this machine: "
                f".venv/bin/tandem serve --device CPU --model {assets.ROOT / 'models' / assets.CHAT_MODEL}"
            )
    kinds: dict[str, type[DemoCluster]] = {"node": NodeCluster, "kind": KindCluster, "current": CurrentCluster}
    if kind not in kinds:
        raise DemoError(f"CLUSTER={kind} is unknown; it is one of auto, {', '.join(kinds)}")
    return kinds[kind]()
