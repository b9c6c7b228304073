"""One cluster with a node for each module of node tests: up at its first use (5 s), down at the module's end.

Only one fits on a machine: so it is not kept for the session, in which the end-to-end tests start theirs, and tests
that start their own (they use the fixture `free_machine`) run before all others.
"""

import os
from collections.abc import Iterator

import pytest

from tandem_devcluster import cluster
from tandem_devcluster.progress import Progress


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "free_machine" not in getattr(item, "fixturenames", ()))


@pytest.fixture
def free_machine() -> None:
    """Marks a test that starts nodes of its own."""
    if os.geteuid() != 0:
        pytest.skip("a cluster with a node needs root")


@pytest.fixture(scope="module")
def node_cluster() -> Iterator[cluster.Cluster]:
    """A cluster whose node runs pods of the image `tandem.dev/dev:1`; helm lies beside kubectl in `bin_dir`."""
    if os.geteuid() != 0:
        pytest.skip("a cluster with a node needs root")
    name = f"test-{os.getpid()}"
    made = cluster.up(name, node=True, progress=Progress(), helm=True)
    try:
        yield made
    finally:
        cluster.down(name)
