"""Chunks of several prompts as the rows of one forward: which rows are whose, and what each program attends to. Pure.

Between `gpu_step.py`, which gathers a step's chunks, and `gpu_decoder.py`, which computes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem_api.fit_steps import CUDA_BUDGET

Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class Part:
    """One prompt's chunk: `count` tokens of `slot`, the first at `start`."""

    slot: int
    start: int
    count: int


def together_rows(on_gpu: bool, itemsize: int) -> int:
    """Rows of prompts that share a forward at most, for numbers of so many bytes; 0: each chunk has its own.

    Other numbers of rows take other matrix kernels, and in float32 nothing may depend on the neighbours.
    """
    return CUDA_BUDGET if on_gpu and itemsize < 4 else 0


def packs(parts: Sequence[Part], most: int) -> list[list[int]]:
    """Numbers of the parts that are computed together, in their order: as many as have `most` rows, at least one."""
    found: list[list[int]] = []
    rows = most
    for number, part in enumerate(parts):
        if rows + part.count > most:
            found.append([])
            rows = 0
        found[-1].append(number)
        rows += part.count
    return found


def slices_of(parts: Sequence[Part]) -> list[slice]:
    """Rows of each part."""
    ends = np.cumsum([part.count for part in parts]).tolist()
    return [slice(end - part.count, end) for part, end in zip(parts, ends, strict=True)]


def rows_of(parts: Sequence[Part]) -> tuple[Numbers, Numbers, Numbers]:
    """Of each row: its slot, and keys up to itself; then each part's last row."""
    counts = [part.count for part in parts]
    seats = np.repeat(np.array([part.slot for part in parts], np.int32), counts)
    lengths = [np.arange(part.start + 1, part.start + part.count + 1, dtype=np.int32) for part in parts]
    return seats, np.concatenate(lengths), np.cumsum(counts, dtype=np.int32) - 1


def work_of(parts: Sequence[Part], tokens: int, apart: Callable[[Part], bool]) -> Numbers:
    """What each program computes, `[programs, 4]`: first row, slot, position, and at most `tokens` rows.

    Longest sequences first, so that their programs do not begin when all others have ended. Parts that are `apart`
    are left out.
    """
    items = [
        (rows.start + first, part.slot, part.start + first, min(tokens, part.count - first))
        for part, rows in zip(parts, slices_of(parts), strict=True)
        if not apart(part)
        for first in range(0, part.count, tokens)
    ]
    items.sort(key=lambda item: -item[2])
    return np.array(items, np.int32).reshape(-1, 4)
