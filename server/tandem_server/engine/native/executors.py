"""How plans reach the device: at once, or beside the loop (CPU); `cuda.py` has the one for CUDA streams.

The loops launch plans in order and ask each for its result later; at most two are in flight.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any, Protocol

from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.timeline import DeviceTimes


class Output(Protocol):
    """A step's outcome, wherever it lies."""

    @property
    def sampling(self) -> Any:
        """When the device came to the step's sampling: `time.perf_counter` on a CPU, an event on a GPU."""

    def to_host(self) -> StepResult:
        """Reads it."""


Compute = Callable[[StepPlan], Output]
"""Launches (on a CPU: does) everything of a plan."""


class Pending(Protocol):
    """A launched step."""

    @property
    def times(self) -> DeviceTimes:
        """When the device did what; known once the result is."""

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

    def __init__(self, result: StepResult, times: DeviceTimes) -> None:
        self.times = times
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
        output = self._compute(plan)
        result = output.to_host()
        times = DeviceTimes(began, output.sampling, time.perf_counter())
        self.device_seconds += times.ended - began
        return Done(result, times)

    def close(self) -> None:
        pass


class _Job:
    """A plan on its way through the worker thread."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        # A bare lock, held until the outcome is there: an Event costs tens of microseconds a step.
        self._done = threading.Lock()
        self._done.acquire()
        self.times = DeviceTimes(0.0, 0.0, 0.0)
        self._outcome: StepResult | BaseException | None = None

    def settle(self, outcome: StepResult | BaseException, times: DeviceTimes) -> None:
        self._outcome, self.times = outcome, times
        self._done.release()

    def result(self) -> StepResult:
        with self._done:
            pass
        if isinstance(self._outcome, StepResult):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome


class WorkerExecutor:
    """Computes on one thread while another plans and tells: a CPU's second stream.

    The thread that loaded the model must be the one that computes. OpenMP keeps a pool of workers for each thread that
    ever started parallel work, and once the pools together outnumber the cores none of them spins any more: a second
    pool cost 40 % of the token rate (two threads on two cores, 16 M model). So the loop moves, not the computation.
    All of it happens within `around`, entered once the loop's own thread runs.
    """

    def __init__(self, compute: Compute, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._compute, self._around = compute, around
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.device_seconds = 0.0

    def launch(self, plan: StepPlan) -> Pending:
        job = _Job(plan)
        self._jobs.put(job)
        return job

    def close(self) -> None:
        self._jobs.put(None)

    def run_beside(self, loop: Callable[[], None]) -> None:
        """Computes on the calling thread while `loop` runs on another; returns, or raises, as `loop` does."""
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                loop()
            except BaseException as error:  # noqa: BLE001 - it is raised again below, on the caller's thread
                failures.append(error)
            finally:
                self.close()

        thread = threading.Thread(target=guarded, name="loop", daemon=True)
        thread.start()
        with self._around():
            self._work()
        thread.join()
        if failures:
            raise failures[0]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            began = sampling = time.perf_counter()
            try:
                output = self._compute(job.plan)
                sampling = output.sampling
                outcome: StepResult | BaseException = output.to_host()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
                outcome = error
            times = DeviceTimes(began, sampling, time.perf_counter())
            self.device_seconds += times.ended - began
            job.settle(outcome, times)
