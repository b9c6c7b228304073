"""The largest numbers of long rows on a CPU, found by the largest of each block of them.

For the sampler. torch looks for a maximum's place, and for the top numbers, one number at a time; the maxima of blocks
alone it takes with vector instructions. Each row's result is its own, and on a GPU torch's operators are used as is.
"""

import torch

BLOCKS = (128, 64, 32)
"""Lengths of a block to look for one number in."""
COLUMNS = 16
"""Numbers that stand for one while the top ones are looked for."""
CROWD = 4
"""So many times the numbers wanted must be left to choose from, else blocks save nothing."""


def largest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rows.max(-1)` of `[n, length]`: values and places `[n]`, the first one of equals; NaN counts as largest."""
    count, length = rows.shape
    block = next((size for size in BLOCKS if length % size == 0), 0)
    if rows.device.type != "cpu" or not block or not rows.is_contiguous():
        return rows.max(-1)
    blocks = rows.view(count, length // block, block)
    first = blocks.amax(-1).argmax(-1)
    values, places = blocks[torch.arange(count), first].max(-1)
    return values, first * block + places


def top(rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `rows.topk(k)` of `[n, length]`: values in falling order and places, both `[n, k]`.

    Whatever is among the top k is in one of the k groups with the largest maxima. A group's numbers lie a
    `COLUMNS`-th of the row apart, so that the maxima of neighbouring groups are taken at once.
    """
    count, length = rows.shape
    groups = length // COLUMNS
    if rows.device.type != "cpu" or length % COLUMNS or groups < CROWD * k or not rows.is_contiguous():
        return rows.topk(k, -1)
    grouped = rows.view(count, COLUMNS, groups)
    chosen = grouped.amax(1).topk(k, -1, sorted=False)[1]
    candidates = grouped.gather(2, chosen[:, None].expand(count, COLUMNS, k)).view(count, COLUMNS * k)
    values, places = candidates.topk(k, -1)
    return values, chosen.gather(1, places % k) + places // k * groups
