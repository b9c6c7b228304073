"""What the last steps did and when: a ring of records, kept at all times, told when somebody asks for a trace.

Beside the loops, which note the host's part of each step; the executor gives the device's. Costs a few looks at a
clock and one record a step. All moments are seconds of one clock, `time.perf_counter` outside of tests.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tandem_server.engine.native.plan import StepPlan
from tandem_server.engine.wire import StepRecord

REMEMBERED = 4096
"""Steps; some 1.5 MB."""

Clock = Callable[[], float]


class DeviceTimes(NamedTuple):
    """When the device began a step, when it came to its sampling, and when it was done with both."""

    began: float
    sampling: float
    ended: float


@dataclass(frozen=True)
class Launched:
    """The host's moments up to a step's launch, in order."""

    woken: bool
    """The engine had slept before: what the device waited until then is nobody's fault."""
    began: float
    planned: float
    launched: float


class Timeline:
    """The latest `size` steps. `clock` is the executor's too, or their moments do not fit together."""

    def __init__(self, size: int = REMEMBERED, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self._records: deque[StepRecord] = deque(maxlen=size)

    def add(self, plan: StepPlan, before: Launched, device: DeviceTimes, asked: float, known: float) -> None:
        """A step that has just been told: `asked` and `known` bound the host's wait for its outcome."""
        self._records.append(
            StepRecord(
                step=plan.number,
                decoded=len(plan.decode),
                prompt_tokens=sum(len(chunk.tokens) for chunk in plan.chunks),
                woken=before.woken,
                host=(before.began, before.planned, before.launched, asked, known, self.clock()),
                device=device,
            )
        )

    def records(self) -> list[StepRecord]:
        """Oldest first."""
        return list(self._records)


def device_idle_share(records: Iterable[StepRecord]) -> float:
    """Share of the time between the first step's begin and the last one's end in which the device had no step.

    Time in which the engine slept for want of requests is left out. 0 for fewer than two steps.
    """
    busy = idle = 0.0
    last_end: float | None = None
    for record in records:
        began, _, ended = record.device
        busy += ended - began
        if last_end is not None and not record.woken:
            idle += max(0.0, began - last_end)
        last_end = ended
    return idle / (busy + idle) if busy + idle > 0 else 0.0
