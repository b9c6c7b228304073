"""A client that is gone: its slot is free at most two steps after its abort reaches the runner, whatever it did."""

from dataclasses import dataclass, field

import pytest
from engine_fakes import RecordingLink, answers
from fake_device import FakeDevice, expected

from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Abort, Add, FromRunner, Sampling, ToRunner

LIMITS = Limits(slots=2, context=40, vocabulary=30, chunk=2, budget=4, slot_blocks=10, block=4, span=4)
GREEDY = Sampling(temperature=0.0)
NEIGHBOUR = Add(1, [4, 5], 30, GREEDY)
LONGEST_STEPS = 2


@dataclass
class WatchingLink(RecordingLink):
    """Sends the abort once `scheduler` has launched so many steps; notes the step at which `request` has no slot."""

    scheduler: Scheduler
    request: int
    at_step: int
    first: list[ToRunner]
    aborted_at: int | None = None
    told_at: int | None = None
    gone_at: int | None = None
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__([(0, message) for message in self.first])

    def receive(self, timeout: float | None) -> list[ToRunner]:
        self._look()
        due = super().receive(timeout)
        if self.aborted_at is None and self.scheduler.steps >= self.at_step:
            self.aborted_at = self.scheduler.steps
            return [*due, Abort(self.request)]
        return due

    def send(self, message: FromRunner) -> None:
        self._look()
        super().send(message)
        if self.aborted_at is not None and self.told_at is None and self.request in answers_so_far(self.sent):
            self.told_at = self.scheduler.steps

    def _look(self) -> None:
        if (
            self.aborted_at is not None
            and self.gone_at is None
            and self.request not in self.scheduler.table._holder.values()
        ):
            self.gone_at = self.scheduler.steps


def answers_so_far(sent: list[FromRunner]) -> set[int]:
    """Ids of requests that have ended."""
    return {row.request for message in sent for row in getattr(message, "rows", []) if row.finish}


CASES = {
    "it decodes": ([NEIGHBOUR, Add(2, [7], 30, GREEDY)], 6),
    "it is in the middle of its prompt": ([NEIGHBOUR, Add(2, list(range(1, 30)), 9, GREEDY)], 3),
    "its first token is in the making": ([NEIGHBOUR, Add(2, [7, 8], 30, GREEDY)], 1),
    "it waits for a slot": ([NEIGHBOUR, Add(3, [6], 36, GREEDY), Add(2, [7], 30, GREEDY)], 4),
    "it came with the abort": ([NEIGHBOUR, Add(2, [7], 30, GREEDY)], 0),
}


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_slot_is_free_two_steps_after_the_abort(case, overlapped):
    adds, at_step = CASES[case]
    scheduler, device = Scheduler(LIMITS), FakeDevice(LIMITS)
    link = WatchingLink(scheduler, 2, at_step, adds)
    loop = Loop(scheduler, device, link, StatsKeeper(link, scheduler, device, clock=lambda: 0.0))
    (loop.run_overlapped if overlapped else loop.run_plain)()
    device.close()
    got = answers(link.sent)
    assert got[2][0][1] == "abort"
    assert link.aborted_at == at_step
    assert link.told_at == link.aborted_at, "the abort is answered at once"
    assert link.gone_at is not None
    assert link.gone_at - link.aborted_at <= LONGEST_STEPS
    for add in adds:
        if add.request != 2:
            assert got[add.request] == [expected(add, LIMITS.vocabulary)], "its neighbours notice nothing"
    assert scheduler.idle
    assert scheduler.blocks.free == scheduler.blocks.count


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_freed_slot_goes_to_who_waits(overlapped):
    """Both slots taken for long, a third waits: it is admitted within two steps of the abort, and runs undisturbed."""
    third = Add(3, [9, 9], 5, GREEDY)
    admitted: dict[int, int] = {}
    scheduler = Scheduler(LIMITS, lambda add, slot: admitted.setdefault(add.request, scheduler.steps))
    device = FakeDevice(LIMITS)
    link = WatchingLink(scheduler, 2, 8, [NEIGHBOUR, Add(2, [7], 36, GREEDY), third])
    loop = Loop(scheduler, device, link, StatsKeeper(link, scheduler, device, clock=lambda: 0.0))
    (loop.run_overlapped if overlapped else loop.run_plain)()
    assert admitted[3] - 8 <= LONGEST_STEPS
    assert answers(link.sent)[3] == [expected(third, LIMITS.vocabulary)]
