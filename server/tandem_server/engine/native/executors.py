"""How plans reach the device: at once, or on a worker thread (CPU); `cuda.py` has the one for CUDA streams.

The loops launch plans in order and ask each for its result later; at most two are in flight.
"""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from tandem_server.engine.native.plan import StepPlan, StepResult


class Output(Protocol):
    """A step's outcome, wherever it lies."""

    def to_host(self) -> StepResult:
        """Reads it."""


Compute = Callable[[StepPlan], Output]
"""Launches (on a CPU: does) everything of a plan."""


class Pending(Protocol):
    """A launched step."""

    def result(self) -> StepResult:
        """Waits until the step is done. Raises what the step raised."""


class Executor(Protocol):
    """Runs plans in the order of their launch."""

    device_seconds: float
    """Time for which the device has computed so far (only steps whose results were read)."""

    def launch(self, plan: StepPlan) -> Pending:
        """Hands a plan to the device; does not wait for the plans before it."""

    def close(self) -> None:
        """Ends what the executor started; plans in flight are finished first."""


class Done:
    """A step that was computed at its launch."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result


class InlineExecutor:
    """Computes in the caller's thread: the plain loop on a CPU."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.device_seconds = 0.0

    def launch(self, plan: StepPlan) -> Pending:
        began = time.perf_counter()
        result = self._compute(plan).to_host()
        self.device_seconds += time.perf_counter() - began
        return Done(result)

    def close(self) -> None:
        pass


class _Job:
    """A plan on its way through the worker thread."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self._done = threading.Event()
        self._outcome: StepResult | BaseException | None = None

    def settle(self, outcome: StepResult | BaseException) -> None:
        self._outcome = outcome
        self._done.set()

    def result(self) -> StepResult:
        self._done.wait()
        if isinstance(self._outcome, StepResult):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome


class WorkerExecutor:
    """Computes on a thread of its own, so that planning and telling overlap with computing: a CPU's second stream."""

    def __init__(self, compute: Compute, prepare: Callable[[], None] = lambda: None) -> None:
        """`prepare` runs first on the new thread."""
        self._compute = compute
        self._prepare = prepare
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.device_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    def launch(self, plan: StepPlan) -> Pending:
        job = _Job(plan)
        self._jobs.put(job)
        return job

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(timeout=60)

    def _work(self) -> None:
        self._prepare()
        while (job := self._jobs.get()) is not None:
            began = time.perf_counter()
            try:
                outcome: StepResult | BaseException = self._compute(job.plan).to_host()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
                outcome = error
            self.device_seconds += time.perf_counter() - began
            job.settle(outcome)
