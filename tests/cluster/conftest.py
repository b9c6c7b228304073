"""One control plane for all cluster tests: up at its first use, down at the end of the session."""

import os
from collections.abc import Iterator

import pytest

from tandem_devcluster import cluster
from tandem_devcluster.progress import Progress
from tandem_testing.kube import Kube


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
def fake_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A control plane of its own with the CRDs and fake nodes, on which hundreds of pods turn ready without running."""
    name = f"kwok-{os.getpid()}"
    made = cluster.up(name, progress=Progress(), qps=500, fake_nodes=4)
    try:
        kube = Kube(made, tmp_path_factory.mktemp("fake-nodes"))
        kube.install_crd()
        kube.kubectl("get", "models,modelpools", "-A")  # waits out the seconds in which new kinds answer 429
        yield kube
        kube.close()
    finally:
        cluster.down(name)
