"""How plans reach a GPU: steps queue up on one compute stream, their outcome is copied out on a second one."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from tandem_server.engine.native.executors import Pending
from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.step import StepOutput
from tandem_server.engine.native.timeline import DeviceTimes


class _CudaPending:
    """A step on the compute stream, and the copy of its outcome on the side stream."""

    def __init__(self, executor: "CudaExecutor", output: StepOutput, events: tuple[torch.cuda.Event, ...]) -> None:
        self.times = DeviceTimes(0.0, 0.0, 0.0)
        self._executor, self._output, self._events = executor, output, events

    def result(self) -> StepResult:
        began, ended, copied = self._events
        copied.synchronize()
        on_host = self._executor.on_host_clock
        self.times = DeviceTimes(on_host(began), on_host(self._output.sampling), on_host(ended))
        self._executor.device_seconds += self.times.ended - self.times.began
        return self._output.to_host()


class CudaExecutor:
    """Queues steps on one compute stream and copies their outcome to pinned memory on a second one."""

    def __init__(self, compute: Callable[[StepPlan], StepOutput], device: torch.device) -> None:
        self._compute = compute
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.device_seconds = 0.0
        self._stream.wait_stream(torch.cuda.default_stream(device))
        self._anchor = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self._anchor.record()
        self._anchor.synchronize()
        self._anchored = time.perf_counter()

    def on_host_clock(self, event: torch.cuda.Event) -> float:
        """When a recorded event happened, in seconds of `time.perf_counter`; off by what one look takes, some 10 us."""
        return self._anchored + float(self._anchor.elapsed_time(event)) / 1000

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
            tokens, ids, values = map(self._copy, (output.tokens, output.ids, output.values))
            on_host = replace(output, tokens=tokens, ids=ids, values=values)
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
