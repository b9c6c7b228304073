"""One control plane for all cluster tests: up at its first use, down at the end of the session."""

import os
from collections.abc import Iterator

import pytest

from tandem_devcluster import cluster
from tandem_devcluster.progress import Progress


@pytest.fixture(scope="session")
def control_plane() -> Iterator[cluster.Cluster]:
    """A real API server, controllers and scheduler; `control_plane.kubeconfig` is the administrator's."""
    name = f"test-{os.getpid()}"
    made = cluster.up(name, progress=Progress(), qps=300, helm=True)
    try:
        yield made
    finally:
        cluster.down(name)


@pytest.fixture(scope="session")
def kwok_cluster() -> Iterator[cluster.Cluster]:
    """A control plane of its own with fake nodes, on which hundreds of pods turn ready without running."""
    name = f"kwok-{os.getpid()}"
    made = cluster.up(name, progress=Progress(), qps=500, fake_nodes=4)
    try:
        yield made
    finally:
        cluster.down(name)
