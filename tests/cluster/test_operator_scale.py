"""Many Models on fake nodes: all of them are served and told, the writes are counted, and then there is silence.

40 Models with pools of their own and 5 in a shared one in the ordinary run; `make test-kwok` (TANDEM_KWOK_MODELS=200)
has 200 of the former.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tandem_testing.cluster_state import made, owners
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_bench import Bench, condition, counts_its_members, is_final, running
from tandem_testing.operator_process import MASTER
from tandem_testing.proxy import Write
from tandem_testing.report_server import ReportServer

pytestmark = pytest.mark.timeout(300)

MEMBERS = 5
COUNT = int(os.environ.get("TANDEM_KWOK_MODELS", "40"))
SETTLED_S = 30 + COUNT
CALM_S = 5.0
COLUMNS = ("size", "processor", "context", "slots", "until", "replicas", "readyReplicas", "queued", "rejected")
MOST_STATUSES = 6
"""Statuses of one Model on its way: asked for, made, placed, loaded, ready, complete; quick ones fall together."""
MOST_CHANGES = 12
"""Of the shared pool's catalog, as members come and pods get names, and of its two pods, so that they read it."""
MOST_EVENTS = 3
"""Created, Loading, Loaded."""


@pytest.fixture
async def reports(fake_nodes: Kube) -> AsyncIterator[ReportServer]:
    server = ReportServer(fake_nodes, MASTER)
    await server.start()
    yield server
    await server.stop()


def make_all(bench: Bench) -> None:
    """One shared pool with members that stay loaded, and Models with pods of their own, every tenth for a GPU."""
    bench.make_pool("shared", replicas=2)
    for number in range(MEMBERS):
        bench.make(f"s-{number:03d}", pool="shared", copies={"min": 1})
    for number in range(COUNT):
        bench.make(f"m-{number:03d}", device="CPU" if number % 10 else "GPU", slots=1 + number % 8)


async def all_owners(bench: Bench) -> list[Obj]:
    """All Models and the ModelPool, asked for seldom enough not to disturb."""
    await asyncio.sleep(0.5)
    return list((await asyncio.to_thread(owners, bench.kube, bench.namespace)).values())


async def all_final(bench: Bench) -> bool:
    found = await all_owners(bench)
    assert len(found) == COUNT + MEMBERS + 1
    return all(map(is_final, found)) and all(counts_its_members(one, found) for one in found)


def split(writes: list[Write]) -> tuple[list[Write], Counter[str], int]:
    """Writes of owned objects, of statuses by Model, and the number of Events."""
    events = [one for one in writes if "/events" in one.path]
    statuses = Counter(one.path for one in writes if one.path.endswith("/status"))
    owned = [one for one in writes if one not in events and one.path not in statuses]
    return owned, statuses, len(events)


async def test_all_are_served_with_few_writes_and_then_none(
    fake_nodes: Kube, reports: ReportServer, tmp_path: Path
) -> None:
    kube = fake_nodes
    options = {"compare": True, "report_port": reports.port, "gauges": 1}
    async with running(kube, "scale", tmp_path / "operator", **options) as bench:
        await asyncio.to_thread(make_all, bench)
        await eventually("all statuses", lambda: all_final(bench), SETTLED_S)
        await bench.quiet(2.0, SETTLED_S)
        for owner in await all_owners(bench):
            if owner["kind"] == "Model":
                told_in_full(owner)
        assert "<none>" not in kube.kubectl("get", "models", "-n", "scale").stdout
        assert reports.refused == 0, "every pod is asked with the key of its own pool"
        few(bench)
        await silent(bench, reports)


def told_in_full(model: Obj) -> None:
    """Ready and Loaded are True, and no column is empty."""
    name = model["metadata"]["name"]
    for kind in ("Ready", "Loaded"):
        found = condition(model, kind)
        assert (found["status"], found["reason"]) == ("True", "Loaded"), f"{name}: {found}"
    assert [column for column in COLUMNS if model["status"].get(column) is None] == [], name


def few(bench: Bench) -> None:
    """One POST for each object that exists; changes of the shared pool's alone; bounded statuses and Events."""
    owned, statuses, events = split(bench.proxy.writes)
    assert [one for one in bench.proxy.writes if one.code >= 300] == []
    assert bench.proxy.needless == []
    exist = [place for place in made(bench.kube, bench.namespace) if not place.startswith("pods/")]
    kinds = Counter(place.partition("/")[0] for place in exist)
    assert set(kinds.values()) == {COUNT + 1}, f"each pool has one object of each kind: {kinds}"
    created = Counter(one.path.rpartition("/")[2] for one in owned if one.method == "POST")
    assert created == kinds, "one POST an object"
    shared = [one for one in owned if one.method != "POST"]
    assert all("/tandem-p-shared" in one.path for one in shared), shared
    assert len(shared) <= MOST_CHANGES, shared
    assert len(statuses) == COUNT + MEMBERS + 1
    assert max(statuses.values()) <= MOST_STATUSES, statuses.most_common(3)
    assert COUNT + MEMBERS <= events <= MOST_EVENTS * (COUNT + MEMBERS + 1)


async def silent(bench: Bench, reports: ReportServer) -> None:
    """Nothing happens, so nothing is written: not in a calm period, and not by an operator that has just started."""
    bench.proxy.clear()
    await asyncio.sleep(CALM_S)
    assert bench.proxy.writes == []
    await bench.restart()
    reports.forget()
    await eventually("all pods are asked again", lambda: len(reports.answered) == COUNT + 2, 30)
    await asyncio.sleep(CALM_S)
    assert bench.proxy.writes == []
