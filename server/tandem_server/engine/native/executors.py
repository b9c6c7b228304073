"""How plans reach the device: at once, on a worker thread (CPU), or on a CUDA stream.

The loops launch plans in order and ask each for its result later; at most two are in flight.
"""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

import torch

from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.step import StepOutput

Compute = Callable[[StepPlan], StepOutput]


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

    def __init__(self, compute: Compute, threads: int | None = None) -> None:
        self._compute = compute
        self._threads = threads
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
        if self._threads:
            torch.set_num_threads(self._threads)
        while (job := self._jobs.get()) is not None:
            began = time.perf_counter()
            try:
                outcome: StepResult | BaseException = self._compute(job.plan).to_host()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the result is asked for
                outcome = error
            self.device_seconds += time.perf_counter() - began
            job.settle(outcome)


class _CudaPending:
    """A step on the compute stream, and the copy of its outcome on the side stream."""

    def __init__(self, executor: "CudaExecutor", output: StepOutput, events: tuple[torch.cuda.Event, ...]) -> None:
        self._executor, self._output, self._events = executor, output, events

    def result(self) -> StepResult:
        began, ended, copied = self._events
        copied.synchronize()
        self._executor.device_seconds += began.elapsed_time(ended) / 1000
        return self._output.to_host()


class CudaExecutor:
    """Queues steps on one compute stream and copies their outcome to pinned memory on a second one."""

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute = compute
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.device_seconds = 0.0
        self._stream.wait_stream(torch.cuda.default_stream(device))

    def launch(self, plan: StepPlan) -> Pending:
        began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            began.record()
            output = self._compute(plan)
            ended.record()
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(ended)
            on_host = StepOutput(plan, *(self._copy(t) for t in (output.tokens, output.ids, output.values)))
            copied.record()
        return _CudaPending(self, on_host, (began, ended, copied))

    def close(self) -> None:
        torch.cuda.synchronize(self._device)

    def _copy(self, tensor: torch.Tensor | None) -> torch.Tensor:
        if tensor is None:
            return None  # type: ignore[return-value]
        # The compute stream must not hand the tensor's memory to another one before the copy has read it.
        tensor.record_stream(self._copies)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
