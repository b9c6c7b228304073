"""The health check by what the operator really does: relists, watches that tell something, workers that get done."""

import pytest

from tandem_operator.cache import Cache
from tandem_operator.election import Alone
from tandem_operator.health import OLDEST_SECONDS, Health
from tandem_operator.kinds import MODEL, WATCHED, Key, Kind
from tandem_operator.queue import Schedule, WorkQueue
from tandem_operator.relist import Relister
from tandem_testing.operator_world import KEY, FakeApi, model


class Bench:
    """A health check over an API server in memory, with the time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.api = FakeApi()
        self.cache = Cache(lambda _: None)
        self.queue: WorkQueue[Key] = WorkQueue(Schedule(lambda: self.now))
        self.relister = Relister(self.api, self.cache, 60.0, lambda: None, lambda: self.now)
        self.ended = ""
        self.health = Health(self.relister, self.queue, self.cache, 60.0, lambda: self.ended, Alone())

    async def relist(self) -> None:
        self.now += 60.0
        await self.relister.relist()

    def changes(self, heard: Kind | None = None) -> None:
        """A Model is changed, and the watch of a kind tells something or nothing."""
        self.api.put(MODEL, model())
        if heard is not None:
            self.relister.heard(heard)


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.relist()
    return made


async def test_a_quiet_cluster_is_healthy(bench: Bench) -> None:
    for _ in range(5):
        await bench.relist()
    good, text = bench.health.verdict()
    assert good
    assert "last relist 0 s ago, 0 keys queued" in text


async def test_a_watch_that_tells_nothing_of_what_changes_is_noticed(bench: Bench) -> None:
    bench.changes()
    await bench.relist()
    assert bench.health.verdict()[0], "a list may be ahead of a watch once"
    bench.changes()
    await bench.relist()
    good, text = bench.health.verdict()
    assert not good
    assert "the watches of Model tell nothing of what changes" in text
    bench.changes(heard=MODEL)
    await bench.relist()
    assert bench.health.verdict()[0]


async def test_a_watch_that_another_kind_answers_for_is_still_deaf(bench: Bench) -> None:
    for _ in range(2):
        bench.changes(heard=WATCHED[-1])
        await bench.relist()
    assert not bench.health.verdict()[0]


async def test_changes_between_quiet_relists_do_not_add_up(bench: Bench) -> None:
    for _ in range(3):
        bench.changes()
        await bench.relist()
        await bench.relist()
    assert bench.health.verdict()[0]


async def test_relists_that_stopped(bench: Bench) -> None:
    bench.now += 241.0
    good, text = bench.health.verdict()
    assert not good
    assert "no relist for 241 s (limit 240 s)" in text


async def test_a_worker_that_is_stuck(bench: Bench) -> None:
    bench.queue.add(KEY)
    assert await bench.queue.get() == KEY
    bench.now += OLDEST_SECONDS + 1
    await bench.relister.relist()
    good, text = bench.health.verdict()
    assert not good
    assert "a reconcile waits or runs for 301 s" in text
    bench.queue.done(KEY)
    assert bench.health.verdict()[0]


async def test_a_task_that_ended(bench: Bench) -> None:
    bench.ended = "the task reports has ended: ValueError()"
    assert bench.health.verdict() == (False, f"{bench.ended}; last relist 0 s ago, 0 keys queued, oldest waits 0 s")
