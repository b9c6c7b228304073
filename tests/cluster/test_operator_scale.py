"""Many Models on fake nodes: all of them are served and told, the writes are counted, and then there is silence.

40 Models in the ordinary run; `make test-kwok` (TANDEM_KWOK_MODELS=200) has 200.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tandem_testing.cluster_state import made
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_bench import Bench, condition, is_final, running
from tandem_testing.operator_process import MASTER, Write
from tandem_testing.report_server import ReportServer

pytestmark = pytest.mark.timeout(300)

COUNT = int(os.environ.get("TANDEM_KWOK_MODELS", "40"))
SETTLED_S = 30 + COUNT
CALM_S = 5.0
COLUMNS = ("size", "processor", "context", "slots", "until", "replicas", "readyReplicas", "queued", "rejected")
MOST_STATUSES = 6
"""Statuses of one Model on its way: asked for, made, placed, loaded, ready, complete; quick ones fall together."""
MOST_EVENTS = 3
"""Created, Loading, Loaded."""


@pytest.fixture
async def reports(fake_nodes: Kube) -> AsyncIterator[ReportServer]:
    server = ReportServer(fake_nodes, MASTER)
    await server.start()
    yield server
    await server.stop()


def make_all(bench: Bench) -> None:
    """Every tenth Model asks for a GPU."""
    for number in range(COUNT):
        bench.make(f"m-{number:03d}", device="CPU" if number % 10 else "GPU", slots=1 + number % 8)


async def models(bench: Bench) -> list[Obj]:
    """All Models, asked for seldom enough not to disturb."""
    await asyncio.sleep(0.5)
    return await asyncio.to_thread(bench.kube.items, bench.models)


async def all_final(bench: Bench) -> bool:
    found = await models(bench)
    return len(found) == COUNT and all(map(is_final, found))


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
        for model in await models(bench):
            told_in_full(model)
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
    """One POST for each object that exists, no change of any, and bounded statuses and Events."""
    owned, statuses, events = split(bench.proxy.writes)
    assert [one for one in bench.proxy.writes if one.code >= 300] == []
    assert bench.proxy.needless == []
    exist = [place for place in made(bench.kube, bench.namespace) if not place.startswith("pods/")]
    kinds = Counter(place.partition("/")[0] for place in exist)
    assert set(kinds.values()) == {COUNT}, f"each Model has one object of each kind: {kinds}"
    assert Counter(one.path.rpartition("/")[2] for one in owned) == kinds, "one POST an object, and nothing else"
    assert {one.method for one in owned} == {"POST"}
    assert len(statuses) == COUNT
    assert max(statuses.values()) <= MOST_STATUSES, statuses.most_common(3)
    assert COUNT <= events <= MOST_EVENTS * COUNT


async def silent(bench: Bench, reports: ReportServer) -> None:
    """Nothing happens, so nothing is written: not in a calm period, and not by an operator that has just started."""
    bench.proxy.clear()
    await asyncio.sleep(CALM_S)
    assert bench.proxy.writes == []
    await bench.restart()
    reports.forget()
    await eventually("all pods are asked again", lambda: len(reports.answered) == COUNT, 30)
    await asyncio.sleep(CALM_S)
    assert bench.proxy.writes == []
