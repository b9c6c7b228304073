"""Tandem on a cluster with a real node, installed as the demo does it; shared by all end-to-end tests."""

from collections.abc import Iterator

import pytest

from tandem_cli.demo import assets, flow
from tandem_cli.demo.cluster_node import NodeCluster
from tandem_cli.demo.clusters import SYSTEM_NAMESPACE
from tandem_cli.demo.story import Story
from tandem_testing.installation import Site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Cluster, chart and the two example Models, ready; all of it is gone afterwards."""
    story = Story()
    cluster = NodeCluster("e2e")
    models = assets.model_folder(story, None)
    kubernetes = cluster.start(story)
    try:
        flow.install(kubernetes, cluster, story, models)
        names = flow.apply_models(kubernetes, cluster, story, None)
        flow.wait_ready(kubernetes, cluster.namespace, names, story)
        service = kubernetes.get("-n", SYSTEM_NAMESPACE, "service", "tandem-gateway")
        yield Site(kubernetes, cluster, story, f"http://{service['spec']['clusterIP']}")
    finally:
        cluster.stop(story)
