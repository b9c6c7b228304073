"""Numbers between host and GPU without a wait: page-locked memory, used in turn, and fences that say when it is free.

Used by whatever stands on the path of a step. A copy from ordinary memory makes the host wait until the device has
come to it, which is all that an overlapped loop must not do.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

RING = 4
"""Buffers of a ring: two steps are in flight, and one more is being built while the oldest is read."""


class Fence(Protocol):
    """A moment on the device: `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Waits until the device has come to it."""


@dataclass(frozen=True)
class Pinned:
    """Memory on the host, as the device's library and as the host's see it."""

    tensor: torch.Tensor
    array: NDArray[Any]


class PinnedRing:
    """Buffers of one shape on the host, page-locked where there is a GPU, handed out in turn.

    A buffer is handed out again only when the copy that last used it is over.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, count: int = RING) -> None:
        buffers = torch.zeros(count, *shape, dtype=dtype)
        if device.type == "cuda":
            buffers = buffers.pin_memory()
        self._buffers = [Pinned(buffer, buffer.numpy()) for buffer in buffers.unbind(0)]
        self._fences: list[Fence | None] = [None] * count
        self._current = 0

    def take(self) -> Pinned:
        """The next buffer, which nobody reads or writes any more."""
        self._current = (self._current + 1) % len(self._buffers)
        fence, self._fences[self._current] = self._fences[self._current], None
        if fence is not None:
            fence.synchronize()
        return self._buffers[self._current]

    def used_until(self, fence: Fence) -> None:
        """The buffer that was handed out last is in use until `fence`."""
        self._fences[self._current] = fence


def upload(numbers: object, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of `numbers` (nested lists) on `device`, made in stream order; the host does not wait."""
    tensor = torch.tensor(numbers, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def upload_each(arrays: Sequence[NDArray[np.int32]], device: torch.device) -> list[torch.Tensor]:
    """Each of `arrays`, flat, by one copy in stream order; the host does not wait.

    Each begins at a multiple of 16 bytes: kernels are compiled anew for a pointer that does not.
    """
    begins = list(itertools.accumulate((-(-array.size // 4) * 4 for array in arrays), initial=0))
    whole = torch.empty(begins[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    for begin, array in zip(begins, arrays, strict=False):
        whole.numpy()[begin : begin + array.size] = array.ravel()
    moved = whole.to(device, non_blocking=True)
    return [moved[begin : begin + array.size] for begin, array in zip(begins, arrays, strict=False)]


class StepInputs:
    """What a step's kernels read of its plan: int32 buffers by slot that stand still, written by one copy a step."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._device = device
        self._ring = PinnedRing((3, slots), torch.int32, device)
        self._numbers = torch.zeros(3, slots, dtype=torch.int32, device=device)
        self.lengths, self.taken, self.positions = self._numbers.unbind(0)
        """Keys to attend to, 0 where no token goes in; 1 where a token is drawn; and where that will stand."""

    def write(self, lengths: dict[int, int], samples: Sequence[tuple[int, int]]) -> None:
        """Queues the copy.

        Args:
            lengths: slot to keys to attend to, of the slots that decode.
            samples: slot, and position of its new token.
        """
        buffer = self._ring.take()
        numbers = buffer.array
        numbers[:] = 0
        if lengths:
            numbers[0, list(lengths)] = list(lengths.values())
        if samples:
            slots, positions = zip(*samples, strict=True)
            numbers[1, list(slots)] = 1
            numbers[2, list(slots)] = positions
        self._numbers.copy_(buffer.tensor, non_blocking=True)
        if self._device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            self._ring.used_until(copied)
