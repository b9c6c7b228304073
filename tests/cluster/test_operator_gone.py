"""What was deleted while the watches were cut and etcd was compacted: the relist brings all of it back.

A watch that is resumed after a compaction is answered 410 Gone. kopf then lists the kind again and goes on, but tells
of no object that is no longer there: to the operator's cache each of them exists for ever, and none is made anew.
Measured with an earlier operator: 14 of 19 restored. Here the deletions fall into the gap alone, so that the first test
shows 0 of 19 for as long as nobody relists, and the second 19 of 19.

The watch cache of the API server, which would still know the old events, is off for Deployments: the 410 is etcd's own.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tandem_devcluster import cluster
from tandem_devcluster.progress import Progress
from tandem_devcluster.state import read_spec
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_bench import Bench, condition, running
from tandem_testing.proxy import nothing

pytestmark = pytest.mark.timeout(120)

COUNT = 19
RELIST_S = 2.0


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A control plane whose watches of Deployments come from etcd."""
    name = f"gone-{os.getpid()}"
    made = cluster.up(name, progress=Progress(), qps=300, api_flags=["--watch-cache-sizes=deployments.apps#0"])
    try:
        kube = Kube(made, tmp_path_factory.mktemp("kube"))
        kube.install_crd()
        kube.kubectl("get", "models,modelpools", "-A")  # waits out the seconds in which new kinds answer 429
        yield kube
        kube.close()
    finally:
        cluster.down(name)


def deployments(bench: Bench) -> list[Obj]:
    found = bench.kube.items(f"/apis/apps/v1/namespaces/{bench.namespace}/deployments")
    return [one for one in found if "deletionTimestamp" not in one["metadata"]]


def compact(kube: Kube, revision: str) -> None:
    """Makes etcd forget all that was before `revision`, at once."""
    spec = read_spec(kube.cluster.folder)
    assert spec is not None
    body = {"revision": revision, "physical": True}
    httpx.post(f"http://127.0.0.1:{spec.ports['etcd']}/v3/kv/compaction", json=body).raise_for_status()


@asynccontextmanager
async def after_the_gap(kube: Kube, name: str, folder: Path, relist: float) -> AsyncIterator[Bench]:
    """An operator with 19 Models that has just missed the deletion of all their Deployments and been told 410 Gone."""
    async with running(kube, name, folder, relist=relist) as bench:
        for number in range(COUNT):
            bench.make(f"m-{number}")
        await eventually("all Deployments", lambda: len(deployments(bench)) == COUNT)
        await eventually("the statuses", lambda: all(unschedulable(one) for one in kube.items(bench.models)))
        path = f"/apis/apps/v1/namespaces/{name}/deployments"
        await eventually("own list, kopf's, and own again", lambda: bench.proxy.lists[path] >= 3)
        old = {one["metadata"]["uid"] for one in deployments(bench)}
        bench.proxy.clear()
        bench.proxy.cut_watches()
        kube.request("DELETE", path, {"propagationPolicy": "Background"})
        await eventually("the old ones go", lambda: not old & {one["metadata"]["uid"] for one in deployments(bench)})
        compact(kube, kube.request("GET", path)["metadata"]["resourceVersion"])
        listed = bench.proxy.lists[path]
        bench.proxy.hold = nothing
        await eventually("410 Gone", lambda: bench.proxy.expired)
        await eventually("kopf lists again", lambda: bench.proxy.lists[path] > listed)
        yield bench


def unschedulable(model: Obj) -> bool:
    """There is no node: that is how far a Model comes."""
    return condition(model, "Ready").get("reason") == "Unschedulable"


async def test_without_a_relist_nothing_comes_back(kube: Kube, tmp_path: Path) -> None:
    async with after_the_gap(kube, "ghosts", tmp_path / "operator", relist=3600) as bench:
        # Its watches work again: what happens from now on is seen, and done for a Model that is new.
        bench.make("new")
        await eventually("its status", lambda: unschedulable(kube.request("GET", f"{bench.models}/new")))
        await bench.quiet(1.0)
        assert [one["metadata"]["name"] for one in deployments(bench)] == ["tandem-m-new"], "0 of 19"
        await bench.restart()
        await eventually("a restart lists too", lambda: len(deployments(bench)) == COUNT + 1, 15)


async def test_with_relists_all_come_back(kube: Kube, tmp_path: Path) -> None:
    async with after_the_gap(kube, "restored", tmp_path / "operator", relist=RELIST_S) as bench:
        await eventually("19 of 19", lambda: len(deployments(bench)) == COUNT, 10 * RELIST_S)
        await eventually("the statuses", lambda: all(unschedulable(one) for one in kube.items(bench.models)))
        created = [one for one in bench.proxy.effective if one.method == "POST"]
        assert [one.path.rpartition("/")[2] for one in created] == ["deployments"] * COUNT
        assert "The relist corrected what was known of" in bench.operator.log


async def test_deleted_between_the_first_list_and_the_watches(kube: Kube, tmp_path: Path) -> None:
    """The operator lists, then kopf lists again and watches: what went in between is told by neither."""
    async with running(kube, "between", tmp_path / "operator", relist=3600) as bench:
        bench.make("m")
        await eventually("its status", lambda: unschedulable(kube.request("GET", f"{bench.models}/m")))
        bench.operator.kill()
        await bench.operator.wait()
        bench.proxy.lists.clear()
        # kopf's lists are those without pages.
        bench.proxy.hold = lambda request: request.path.endswith("deployments") and "limit" not in request.query
        await bench.start()
        (old,) = deployments(bench)
        kube.request("DELETE", f"/apis/apps/v1/namespaces/between/deployments/{old['metadata']['name']}")
        bench.proxy.hold = nothing
        await eventually("it is made anew", lambda: deployments(bench), 15)
