"""kill -9 of the operator right after each single API write of a story: the end is that of the undisturbed story.

The API server has taken the write and the operator never hears of it, which is the worst moment: whatever it knew is
lost, and whatever it repeats is wrong. Each story is told once undisturbed, then again and again, killed after its
first write, its second, and so on, until it ends before the kill. Every telling has a namespace and an operator of its
own, so that some run side by side; real controllers and kwok's nodes play along.
"""

import asyncio
import functools
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tandem_api.catalog import Catalog
from tandem_api.names import CATALOG_FILE
from tandem_testing.cluster_state import changes, made, snapshot
from tandem_testing.kube import Kube, eventually
from tandem_testing.operator_bench import Bench, running
from tandem_testing.operator_process import MASTER
from tandem_testing.proxy import Write
from tandem_testing.report_server import ReportServer

pytestmark = pytest.mark.timeout(240)

POD = re.compile(r"(?<=^pods/).*")

SIDE_BY_SIDE = 6
QUIET = 0.8
"""Seconds without any write that count as the end; statuses must be final before they begin."""
MOST_STATUSES = 12
"""Statuses that one Model may go through in a story: each pod is made, placed, started, loaded, ready, and gone."""


@dataclass(frozen=True)
class Story:
    """What is there before, what is done, what but final statuses tells the end, and which writes are counted."""

    name: str
    act: Callable[[Bench], None]
    before: Callable[[Bench], None] | None = None
    over: Callable[[Bench], bool] = lambda _: True
    count: Callable[[list[Write]], int] = len


@dataclass(frozen=True)
class Ending:
    """How one telling ended: whether the kill came, all writes of both lives, the objects, and the Events told."""

    killed: bool
    writes: list[Write]
    state: dict[str, list[Any]]
    events: Counter[tuple[str, str]]

    @property
    def objects(self) -> Counter[tuple[str, str]]:
        """Writes to what the operator makes, by method and place; without statuses and Events."""
        return Counter((one.method, _place(one.path)) for one in self.writes if one.code < 300 and _is_object(one))

    @property
    def statuses(self) -> int:
        """How many statuses were written to one Model at most."""
        counted = Counter(one.path for one in self.writes if _is_status(one) and one.code < 300)
        return max(counted.values(), default=0)


def _place(path: str) -> str:
    """The path without the namespace, and of a pod without the random part of its name."""
    head, _, tail = path.partition("/namespaces/")
    return f"{head}/{POD.sub('<pod>', tail.partition('/')[2])}"


def _is_object(write: Write) -> bool:
    return not _is_status(write) and "/events" not in write.path


def _is_status(write: Write) -> bool:
    return write.path.endswith("/status")


@pytest.fixture
async def reports(fake_nodes: Kube) -> AsyncIterator[ReportServer]:
    server = ReportServer(fake_nodes, MASTER)
    await server.start()
    yield server
    await server.stop()


async def tell(story: Story, moment: int, kube: Kube, port: int, folder: Path) -> Ending:
    """Tells the story; kill -9 after its write number `moment` (0: never), and a new operator after that."""
    namespace = f"{story.name}-{moment}"
    options = {"compare": True, "report_port": port, "gauges": 0.2}
    async with running(kube, namespace, folder / namespace, **options) as bench:
        if story.before is not None:
            story.before(bench)
            await bench.settled(f"the start of {namespace}", QUIET)
            bench.proxy.clear()
        told = events(bench)
        if moment:
            bench.proxy.on_write = lambda _: (
                bench.operator.kill() if story.count(bench.proxy.writes) == moment else None
            )
        story.act(bench)
        over = functools.partial(story.over, bench)
        ending = asyncio.ensure_future(bench.settled(f"the end of {namespace}", QUIET, over))
        death = asyncio.ensure_future(bench.operator.wait(90))
        await asyncio.wait({ending, death}, return_when=asyncio.FIRST_COMPLETED)
        killed = not bench.operator.running
        if killed:
            ending.cancel()
            bench.proxy.on_write = lambda _: None
            await bench.start()
            await bench.settled(f"the end of {namespace} after the kill", QUIET, over)
        else:
            await ending
        death.cancel()
        await asyncio.gather(ending, death, return_exceptions=True)
        assert bench.proxy.needless == [], f"{namespace}: writes that changed nothing"
        return Ending(killed, list(bench.proxy.writes), snapshot(kube, namespace, MASTER), events(bench) - told)


def events(bench: Bench) -> Counter[tuple[str, str]]:
    """How often each reason was told of each object."""
    found = bench.kube.items(f"/apis/events.k8s.io/v1/namespaces/{bench.namespace}/events")
    ours = [one for one in found if one["regarding"]["kind"] in ("Model", "ModelPool")]
    return Counter((one["regarding"]["name"], one["reason"]) for one in ours)


async def told_with_every_kill(story: Story, kube: Kube, port: int, folder: Path) -> tuple[Ending, list[Ending]]:
    """The undisturbed telling, and one for each write until a telling ends before the kill comes."""
    endings: dict[int, Ending] = {}
    moments = iter(range(80))

    async def teller() -> None:
        while all(one.killed for moment, one in endings.items() if moment):
            moment = next(moments)
            endings[moment] = await tell(story, moment, kube, port, folder)

    async with asyncio.TaskGroup() as group:
        for _ in range(SIDE_BY_SIDE):
            group.create_task(teller())
    return endings[0], [ending for moment, ending in sorted(endings.items()) if moment]


def compare(undisturbed: Ending, endings: list[Ending]) -> None:
    """Every killed telling ended as the undisturbed one and wrote no object more often than it.

    What was in flight when the kill came is not sent again: the API server had taken it, and the next operator sees so.
    """
    assert not undisturbed.killed
    assert sum(one.killed for one in endings) >= undisturbed.objects.total(), "each write of an object had its kill"
    for moment, ending in enumerate(endings, 1):
        where = f"killed after write {moment} of {len(undisturbed.writes)}: {ending.writes}"
        difference = changes(undisturbed.state, ending.state)
        assert not difference, f"{difference}\n{where}"
        more = ending.objects - undisturbed.objects
        assert all(more[place] <= spare for place, spare in MAY_VARY.items()), f"{more}, {where}"
        assert not set(more) - set(MAY_VARY), f"{more}, {where}"
        assert ending.statuses <= MOST_STATUSES, where
        assert max(ending.events.values(), default=0) <= 1, f"{ending.events}, {where}"


MAY_VARY = {("PATCH", "/api/v1/configmaps/tandem-p-p"): 2, ("PATCH", "/api/v1/pods/<pod>"): 1}
"""Members come one by one, and a pod that started meanwhile read the catalog of before and is hurried once."""


def make(bench: Bench) -> None:
    bench.make("m", slots=3, resources={"memory": "1Gi", "cpu": "1"})


def change(bench: Bench) -> None:
    """Another catalog, another pod template with a field less, and more pods."""
    bench.change("m", slots=5, replicas=2, resources={"memory": "2Gi", "cpu": None})


def make_pool(bench: Bench) -> None:
    """A shared pool with three members: one that is always loaded, one loaded by request, one pinned."""
    bench.make("a", pool="p", copies={"min": 1})
    bench.make("b", pool="p")
    bench.make("c", pool="p", residency="Pinned")
    bench.make_pool("p")


def make_pool_and_model(bench: Bench) -> None:
    make_pool(bench)
    make(bench)


def join(bench: Bench) -> None:
    """A Model with a pool of its own, whose objects go, turns into a member."""
    bench.change("m", pool="p", device=None, resources=None)


def leave(bench: Bench) -> None:
    """A member gets a pool of its own."""
    bench.change("a", pool=None, copies=None, device="CPU")


def members(*names: str) -> Callable[[Bench], bool]:
    """Whether the shared pool's catalog has exactly these."""

    def probe(bench: Bench) -> bool:
        found = bench.kube.find(f"/api/v1/namespaces/{bench.namespace}/configmaps/tandem-p-p")
        return found is not None and [one.name for one in Catalog.read(found["data"][CATALOG_FILE]).models] == [*names]

    return probe


def objects(writes: list[Write]) -> int:
    """How many writes there were so far; none while the last is a status or an Event, and so no reason for a kill."""
    return sum(map(_is_object, writes)) if _is_object(writes[-1]) else 0


ALL = os.environ.get("TANDEM_KILLS") == "all"
"""Stories of shared pools have 90 writes: the ordinary run tells one of them, and kills after writes of objects."""
JOIN = Story("join", join, before=make_pool_and_model, over=members("a", "b", "c", "m"), count=len if ALL else objects)
STORIES = [Story("create", make), Story("update", change, before=make), JOIN]
if ALL:
    STORIES += [
        Story("pool", make_pool, over=members("a", "b", "c")),
        Story("leave", leave, before=make_pool, over=members("b", "c")),
        Story("remove", lambda bench: bench.delete("a"), before=make_pool, over=members("b", "c")),
    ]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_killed_after_any_write(story: Story, fake_nodes: Kube, reports: ReportServer, tmp_path: Path) -> None:
    compare(*await told_with_every_kill(story, fake_nodes, reports.port, tmp_path))


async def test_killed_while_its_model_is_deleted_and_made_again(
    fake_nodes: Kube, reports: ReportServer, tmp_path: Path
) -> None:
    """Deletion needs no write: what is owned goes by owner references. A namesake made at once gets all of its own."""
    kube = fake_nodes
    async with running(kube, "deleted", tmp_path / "deleted", compare=True, report_port=reports.port) as bench:
        make(bench)
        await bench.settled("the Model", QUIET)
        first = snapshot(kube, "deleted", MASTER)
        before = {place: obj["metadata"]["uid"] for place, obj in made(kube, "deleted").items()}
        bench.proxy.clear()
        bench.delete("m")
        bench.operator.kill()
        await bench.operator.wait()
        await bench.start()
        # At once, unless the CRD is so new that the garbage collector, which looks every 30 s, has not seen its kind.
        await eventually("all is gone", lambda: not made(kube, "deleted"), 60)
        await bench.settled("the end", QUIET)
        assert bench.proxy.writes == [], "a deletion needs no write of the operator"
        make(bench)
        bench.operator.kill()
        await bench.operator.wait()
        bench.delete("m")
        make(bench)
        await bench.start()
        await bench.settled("the namesake", QUIET)
        after = made(kube, "deleted")
        assert snapshot(kube, "deleted", MASTER) == first
        assert not {obj["metadata"]["uid"] for obj in after.values()} & set(before.values())
        assert bench.proxy.needless == []
