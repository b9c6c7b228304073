"""The work queue: properties over random schedules with an injected clock, and the waiting around it."""

import asyncio
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_operator.queue import Schedule, WorkQueue

SEEDS = int(os.environ.get("TANDEM_SEEDS", "100"))


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


KEYS = ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(KEYS), st.sampled_from([0.0, 0.0, 1.0, 5.0])),
        st.tuples(st.just("take"), st.just(""), st.just(0.0)),
        st.tuples(st.just("done"), st.sampled_from(KEYS), st.just(0.0)),
        st.tuples(st.just("retry"), st.sampled_from(KEYS), st.just(0.0)),
        st.tuples(st.just("wait"), st.just(""), st.sampled_from([0.1, 1.0, 70.0])),
    ),
    max_size=80,
)


@settings(max_examples=SEEDS, derandomize=SEEDS == 100, deadline=None)
@given(STEPS)
def test_no_key_is_lost_doubled_or_early(steps: list[tuple[str, str, float]]) -> None:
    """Against a model: for each key the time at which it is due (None: not at all) and whether it is worked on."""
    clock = Clock()
    schedule: Schedule[str] = Schedule(clock)
    due: dict[str, float] = {}
    running: set[str] = set()
    for what, key, number in steps:
        if what == "add":
            schedule.add(key, number)
            due[key] = min(due.get(key, float("inf")), clock.now + number)
        elif what == "wait":
            clock.now += number
        elif what == "done" and key in running:
            schedule.done(key)
            running.discard(key)
        elif what == "retry" and key in running:
            due[key] = min(due.get(key, float("inf")), clock.now + schedule.retry(key))
            schedule.done(key)
            running.discard(key)
        elif what == "take":
            ready = {one: at for one, at in due.items() if at <= clock.now and one not in running}
            taken = schedule.take()
            if not ready:
                assert taken is None
            else:
                assert taken in ready
                assert ready[taken] == min(ready.values()), "the one that is due longest comes first"
                del due[taken]
                running.add(taken)
        assert schedule.depth == len(due)
        waiting = [at for one, at in due.items() if one not in running]
        assert schedule.next_due() == (max(0.0, min(waiting) - clock.now) if waiting else None)
    # In the end everything that was asked for is worked on exactly once.
    for key in list(running):
        schedule.done(key)
    clock.now += 1000
    taken_last = []
    while (last := schedule.take()) is not None:
        taken_last.append(last)
    assert sorted(taken_last) == sorted(due)


def test_a_key_that_is_nudged_while_worked_on_comes_again_once() -> None:
    schedule: Schedule[str] = Schedule(Clock())
    schedule.add("a")
    assert schedule.take() == "a"
    schedule.add("a")
    schedule.add("a")
    assert schedule.take() is None
    schedule.done("a")
    assert schedule.take() == "a"
    schedule.done("a")
    assert schedule.take() is None


def test_back_off_doubles_up_to_a_minute_and_starts_anew_after_success() -> None:
    schedule: Schedule[str] = Schedule(Clock())
    delays = [schedule.retry("a") for _ in range(12)]
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert delays == sorted(delays)
    assert delays[-1] == 60.0
    assert schedule.retry("b") == 0.2
    schedule.forget("a")
    assert schedule.retry("a") == 0.2


def test_a_nudge_comes_before_the_back_off() -> None:
    clock = Clock()
    schedule: Schedule[str] = Schedule(clock)
    for _ in range(8):
        schedule.retry("a")
        clock.now += 61
        assert schedule.take() == "a"
        schedule.done("a")
    schedule.retry("a")
    assert schedule.take() is None
    schedule.add("a")
    assert schedule.take() == "a"


def test_the_oldest_tells_of_a_worker_that_hangs() -> None:
    clock = Clock()
    schedule: Schedule[str] = Schedule(clock)
    assert schedule.oldest() == 0.0
    schedule.add("later", 100)
    assert schedule.oldest() == 0.0
    schedule.add("a")
    schedule.take()
    clock.now += 40
    assert schedule.oldest() == 40.0


async def test_workers_never_share_a_key_and_see_the_last_nudge() -> None:
    queue: WorkQueue[int] = WorkQueue()
    at_once: set[int] = set()
    wanted = dict.fromkeys(range(20), 0)
    reached = dict.fromkeys(range(20), 0)
    complete = asyncio.Event()

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in at_once
            at_once.add(key)
            observed = wanted[key]
            for _ in range(3):
                await asyncio.sleep(0)
            reached[key] = observed
            at_once.discard(key)
            queue.done(key)
            if reached == wanted and all(count == 30 for count in wanted.values()):
                complete.set()

    workers = [asyncio.create_task(work()) for _ in range(8)]
    for _ in range(30):
        for key in wanted:
            wanted[key] += 1
            queue.add(key)
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await complete.wait()
    for worker in workers:
        worker.cancel()
    assert {type(one) for one in await asyncio.gather(*workers, return_exceptions=True)} == {asyncio.CancelledError}


async def test_a_waiting_worker_wakes_when_a_delay_ends_and_when_an_earlier_key_comes() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("slow", 30.0)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("soon", 0.01)
    async with asyncio.timeout(5):
        assert await waiting == "soon"


async def test_done_of_an_unknown_key_is_a_defect() -> None:
    with pytest.raises(KeyError):
        WorkQueue[str]().done("never taken")
