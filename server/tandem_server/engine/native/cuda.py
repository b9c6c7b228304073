"""How plans reach a GPU: steps queue up on one compute stream, their outcome is copied out on a second one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch

from tandem_server.engine.native.executors import Compute, Pending
from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.step import StepOutput
from tandem_server.engine.native.timeline import DeviceTimes
from tandem_server.engine.native.transfer import PinnedRing

ANCHOR_SECONDS = 1.0
"""Moments of the device are told from a recent one, for the driver counts milliseconds in 24 bits."""


@dataclass(frozen=True)
class Streams:
    """What one device computes on, and what it copies on."""

    compute: torch.cuda.Stream
    copies: torch.cuda.Stream


@cache
def streams_of(device: torch.device) -> Streams:
    """The same ones at all times: what the allocator keeps was freed on one stream and serves that one alone."""
    compute, copies = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
    compute.wait_stream(torch.cuda.default_stream(device))
    return Streams(compute, copies)


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Within it everything is queued where the steps will be; on a CPU it makes no difference.

    For loads: so the memory that the first steps took, and what the load gave back, is there for those that follow.
    """
    if device.type == "cpu":
        yield
        return
    with torch.cuda.stream(streams_of(device).compute):
        yield


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
        self._executor.anchor(ended, self.times.ended)
        self._executor.device_seconds += self.times.ended - self.times.began
        return self._output.to_host()


class CudaExecutor:
    """Queues steps on one compute stream and copies their outcome to pinned memory on a second one."""

    def __init__(self, compute: Compute, device: torch.device, slots: int) -> None:
        self._compute = compute
        # The loops read a step's tokens before they launch the next but one, so no buffer is written while it is read.
        self._tokens = PinnedRing((slots,), torch.int64, device)
        self._device = device
        streams = streams_of(device)
        self._stream, self._copies = streams.compute, streams.copies
        self.device_seconds = 0.0
        self._anchor = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self._anchor.record()
        self._anchor.synchronize()
        self._anchored = time.perf_counter()

    def on_host_clock(self, event: torch.cuda.Event) -> float:
        """When a recorded event happened, in seconds of `time.perf_counter`; off by what one look takes, some 10 us."""
        return self._anchored + float(self._anchor.elapsed_time(event)) / 1000

    def anchor(self, event: torch.cuda.Event, happened: float) -> None:
        """From here on moments are told from `event`, which happened then, if the last one is long ago."""
        if happened - self._anchored > ANCHOR_SECONDS:
            # The two clocks go at slightly different rates; what has happened is not yet to come.
            self._anchor, self._anchored = event, min(happened, time.perf_counter())

    def launch(self, plan: StepPlan) -> Pending:
        began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            began.record()
            output = self._compute(plan)
            assert isinstance(output, StepOutput), "a GPU's step leaves its outcome on the device"
            ended.record()
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(ended)
            tokens = self._tokens.take().tensor[: len(output.tokens)]
            self._copy(output.tokens, tokens)
            ids, values = map(self._copy_anew, (output.ids, output.values))
            on_host = replace(output, tokens=tokens, ids=ids, values=values)
            copied.record()
            self._tokens.used_until(copied)
        return _CudaPending(self, on_host, (began, ended, copied))

    def close(self) -> None:
        torch.cuda.synchronize(self._device)

    def _copy_anew(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        return self._copy(tensor, torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))

    def _copy(self, tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # The compute stream must not hand the tensor's memory to another one before the copy has read it.
        tensor.record_stream(self._copies)
        return target.copy_(tensor, non_blocking=True)
