"""What overlap is worth: a device whose step takes D and a host that works H a step, in virtual time, exactly.

The loops under test are the real ones; only clock, device and front end are stand-ins, so the figures cannot vary.
`bench/loop.py` measures the same with real threads.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.native.timeline import DeviceTimes, Timeline, device_idle_share
from tandem_server.engine.wire import Add, FromRunner, Sampling, Stats, StepRecord, Stop, Tokens, ToRunner

STEPS = 300
LIMITS = Limits(slots=2, context=STEPS + 1, vocabulary=5)


@dataclass
class Clock:
    """Seconds of virtual time on the host."""

    now: float = 0.0


@dataclass
class Computing:
    """A launched step: known when the device is done with it."""

    clock: Clock
    times: DeviceTimes
    outcome: StepResult

    def result(self) -> StepResult:
        self.clock.now = max(self.clock.now, self.times.ended)
        return self.outcome


@dataclass
class TimedDevice:
    """Steps one after the other, each `seconds` long from when it was launched or the one before it was done."""

    clock: Clock
    seconds: float
    device_seconds: float = 0.0
    free_at: float = 0.0

    def launch(self, plan: StepPlan) -> Computing:
        began = max(self.clock.now, self.free_at)
        self.free_at = began + self.seconds
        self.device_seconds += self.seconds
        times = DeviceTimes(began, began + self.seconds * 3 / 4, self.free_at)
        return Computing(self.clock, times, StepResult({slot: 1 for slot, _ in plan.samples}))

    def close(self) -> None:
        pass


@dataclass
class TimedFrontEnd:
    """Costs the host a third of `seconds` when it is asked and two thirds when it is told, as a step does."""

    clock: Clock
    seconds: float
    inbox: list[ToRunner]
    moments: list[float] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)

    def receive(self, timeout: float | None) -> list[ToRunner]:
        self.clock.now += self.seconds / 3
        due, self.inbox = self.inbox, []
        return due or ([Stop()] if timeout is None else [])

    def send(self, message: FromRunner) -> None:
        if isinstance(message, Tokens):
            self.moments.append(self.clock.now)
            self.clock.now += self.seconds * 2 / 3
        elif isinstance(message, Stats):
            self.stats.append(message)


def steps_per_second(
    device: float, host: float, overlapped: bool, size: int = 1000
) -> tuple[float, list[Stats], list[StepRecord]]:
    clock = Clock()
    requests: list[ToRunner] = [Add(n, [1], STEPS, Sampling(temperature=0.0)) for n in range(2)]
    scheduler, executor = Scheduler(LIMITS), TimedDevice(clock, device)
    link = TimedFrontEnd(clock, host, requests)
    timeline = Timeline(size, clock=lambda: clock.now)
    loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor, clock=lambda: clock.now), timeline)
    (loop.run_overlapped if overlapped else loop.run_plain)()
    assert scheduler.tokens == 2 * STEPS
    assert len(link.moments) == STEPS
    return (STEPS - 1) / (link.moments[-1] - link.moments[0]), link.stats, timeline.records()


@pytest.mark.parametrize(("device", "host"), [(1, 4), (1, 2), (1, 1), (2, 1), (4, 1)])
def test_plain_takes_the_sum_and_overlapped_the_longer_of_both(device, host):
    d, h = device / 100, host / 100
    plain, _, _ = steps_per_second(d, h, overlapped=False)
    overlapped, _, _ = steps_per_second(d, h, overlapped=True)
    assert plain == pytest.approx(1 / (d + h), rel=1e-3)
    assert overlapped == pytest.approx(1 / max(d, h), rel=0.01), "the first step has nothing to overlap with"


def test_the_idle_share_of_the_device_is_what_the_figures_say():
    _, plain, _ = steps_per_second(0.02, 0.01, overlapped=False)
    _, overlapped, _ = steps_per_second(0.02, 0.01, overlapped=True)
    assert plain[1].device_idle_share == pytest.approx(1 / 3, abs=0.03)
    assert overlapped[1].device_idle_share == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_timeline_shows_what_overlaps(overlapped):
    _, _, records = steps_per_second(0.02, 0.01, overlapped)
    assert [record.step for record in records] == list(range(1, STEPS + 1))
    assert [record.woken for record in records] == [True] + [False] * (STEPS - 1), "the engine slept once, at the start"
    assert sum(record.decoded for record in records) == 2 * (STEPS - 1)
    assert sum(record.prompt_tokens for record in records) == 2
    for record in records:
        assert list(record.host) == sorted(record.host)
        began, sampling, ended = record.device
        assert record.host[2] <= began <= sampling <= ended <= record.host[4]
    planned_while_computing = sum(later.host[0] < earlier.device[2] for earlier, later in pairwise(records))
    assert planned_while_computing == (STEPS - 1 if overlapped else 0)
    assert device_idle_share(records) == pytest.approx(0.0 if overlapped else 1 / 3, abs=0.01)


def test_the_timeline_remembers_the_last_steps_only():
    _, _, records = steps_per_second(0.02, 0.01, overlapped=True, size=10)
    assert [record.step for record in records] == list(range(STEPS - 9, STEPS + 1))


def test_a_sleep_is_no_idle_time_of_the_device():
    def record(step: int, woken: bool, began: float) -> StepRecord:
        return StepRecord(step, 1, 0, woken, (began,) * 6, (began, began + 0.5, began + 1))

    assert device_idle_share([record(1, True, 0.0), record(2, True, 50.0), record(3, False, 51.0)]) == 0.0
    assert device_idle_share([record(1, True, 0.0), record(2, False, 3.0)]) == 0.5
    assert device_idle_share([]) == 0.0
