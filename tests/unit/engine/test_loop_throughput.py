"""What overlap is worth: a device whose step takes D and a host that works H a step, in virtual time, exactly.

The loops under test are the real ones; only clock, device and front end are stand-ins, so the figures cannot vary.
`bench/loop.py` measures the same with real threads.
"""

from dataclasses import dataclass, field

import pytest

from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Add, FromRunner, Sampling, Stats, Stop, Tokens, ToRunner

STEPS = 300
LIMITS = Limits(slots=2, context=STEPS + 1, vocabulary=5)


@dataclass
class Clock:
    """Seconds of virtual time on the host."""

    now: float = 0.0


@dataclass
class Computing:
    """A launched step: known at `done`."""

    clock: Clock
    done: float
    outcome: StepResult

    def result(self) -> StepResult:
        self.clock.now = max(self.clock.now, self.done)
        return self.outcome


@dataclass
class TimedDevice:
    """Steps one after the other, each `seconds` long from when it was launched or the one before it was done."""

    clock: Clock
    seconds: float
    device_seconds: float = 0.0
    free_at: float = 0.0

    def launch(self, plan: StepPlan) -> Computing:
        self.free_at = max(self.clock.now, self.free_at) + self.seconds
        self.device_seconds += self.seconds
        return Computing(self.clock, self.free_at, StepResult({slot: 1 for slot, _ in plan.samples}))

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


def steps_per_second(device: float, host: float, overlapped: bool) -> tuple[float, list[Stats]]:
    clock = Clock()
    requests: list[ToRunner] = [Add(n, [1], STEPS, Sampling(temperature=0.0)) for n in range(2)]
    scheduler, executor = Scheduler(LIMITS), TimedDevice(clock, device)
    link = TimedFrontEnd(clock, host, requests)
    loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor, clock=lambda: clock.now))
    (loop.run_overlapped if overlapped else loop.run_plain)()
    assert scheduler.tokens == 2 * STEPS
    assert len(link.moments) == STEPS
    return (STEPS - 1) / (link.moments[-1] - link.moments[0]), link.stats


@pytest.mark.parametrize(("device", "host"), [(1, 4), (1, 2), (1, 1), (2, 1), (4, 1)])
def test_plain_takes_the_sum_and_overlapped_the_longer_of_both(device, host):
    d, h = device / 100, host / 100
    plain, _ = steps_per_second(d, h, overlapped=False)
    overlapped, _ = steps_per_second(d, h, overlapped=True)
    assert plain == pytest.approx(1 / (d + h), rel=1e-3)
    assert overlapped == pytest.approx(1 / max(d, h), rel=0.01), "the first step has nothing to overlap with"


def test_the_idle_share_of_the_device_is_what_the_figures_say():
    _, plain = steps_per_second(0.02, 0.01, overlapped=False)
    _, overlapped = steps_per_second(0.02, 0.01, overlapped=True)
    assert plain[1].device_idle_share == pytest.approx(1 / 3, abs=0.03)
    assert overlapped[1].device_idle_share == pytest.approx(0.0, abs=0.03)
