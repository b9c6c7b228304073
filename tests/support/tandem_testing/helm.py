"""The real helm against a test's cluster."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tandem_devcluster.cluster import Cluster
from tandem_testing.kube import Obj

CHART = Path(__file__).parents[3] / "charts" / "tandem"


@dataclass(frozen=True)
class Helm:
    """One release `tandem` in one namespace."""

    cluster: Cluster
    namespace: str

    def __call__(self, *arguments: str, values: Any = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs helm; `values` are given besides."""
        base = [str(self.cluster.bin_dir / "helm"), "--kubeconfig", str(self.cluster.kubeconfig)]
        more = ["--values", "-"] if values is not None else []
        result = subprocess.run(
            [*base, "--namespace", self.namespace, *arguments, *more],
            input=None if values is None else json.dumps(values),
            capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
        assert not check or result.returncode == 0, result.stderr
        return result

    def install(self, chart: Path = CHART, check: bool = True, **values: Any) -> subprocess.CompletedProcess[str]:
        """A first installation."""
        return self("install", "tandem", str(chart), "--create-namespace", values=values, check=check)

    def upgrade(self, chart: Path = CHART, **values: Any) -> subprocess.CompletedProcess[str]:
        """An upgrade, to these values alone."""
        return self("upgrade", "tandem", str(chart), "--reset-values", values=values)

    def uninstall(self) -> subprocess.CompletedProcess[str]:
        """Removes the release."""
        return self("uninstall", "tandem")

    def render(self, chart: Path = CHART, **values: Any) -> list[Obj]:
        """The chart's objects."""
        told = self("template", "tandem", str(chart), "--kube-version", "1.34.0", values=values).stdout
        return [one for one in yaml.safe_load_all(told) if one]
