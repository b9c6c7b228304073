"""A checkpoint's bytes from the mapped file to a GPU: through two page-locked buffers, on the stream for copies.

Used by `weights.py`. While the device fetches one buffer the host fills the other one, so neither waits for the other
for long, and no more of a file than the two buffers is held on the host.
"""

from typing import Protocol

import torch

from tandem_server.engine.native.cuda import streams_of
from tandem_server.engine.native.transfer import Fence, PinnedRing

BUFFER_BYTES = 16 << 20


class CopyQueue(Protocol):
    """Copies to the device that are carried out later, in order."""

    def begin(self) -> None:
        """Copies that follow write to memory that was in use until now."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Fence:
        """Queues a copy; `source` must stand still until the fence."""

    def end(self) -> None:
        """What is computed from now on finds what was copied."""


class CudaCopies:
    """On the stream for copies, in step with the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._streams = streams_of(device)

    def begin(self) -> None:
        self._streams.copies.wait_stream(self._streams.compute)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Fence:
        with torch.cuda.stream(self._streams.copies):
            target.copy_(source, non_blocking=True)
            fence = torch.cuda.Event()  # type: ignore[no-untyped-call]
            fence.record()
        return fence

    def end(self) -> None:
        self._streams.compute.wait_stream(self._streams.copies)


class Staging:
    """The two buffers."""

    def __init__(self, device: torch.device, queue: CopyQueue, size: int = BUFFER_BYTES) -> None:
        self._device, self._queue, self._size = device, queue, size
        self._buffers = PinnedRing((size,), torch.uint8, device, count=2)

    def upload(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of the host's `source` on the device, in its format; `source` may go away at once."""
        target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        given, taken = (tensor.view(-1).view(torch.uint8) for tensor in (source.contiguous(), target))
        self._queue.begin()
        for part, place in zip(torch.split(given, self._size), torch.split(taken, self._size), strict=True):
            buffer = self._buffers.take().tensor[: len(part)]
            buffer.copy_(part)
            self._buffers.used_until(self._queue.copy(place, buffer))
        self._queue.end()
        return target
