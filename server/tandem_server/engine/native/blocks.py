"""Blocks of the cache: who holds which. Pure bookkeeping on the host, beside the slots' (`slots.py`).

The scheduler takes a request's blocks when it admits it, all that it can ever need, so nothing is preempted later;
the device learns them with the plan. Blocks come as one run where there is one: a run is read without copying.
"""

from collections.abc import Callable, Set

BLOCK = 32
"""Positions of a block; measured, see `docs/decisions/0003-engine.md`."""
SPAN = 512
"""Torch's CPU attention works through keys in blocks of 512; spans of other lengths may sum in another order."""

Choice = Callable[[Set[int], int, int], tuple[int, ...]]
"""Picks so many of the free blocks, given where the taker would like its run to begin."""


def near_home(free: Set[int], count: int, home: int) -> tuple[int, ...]:
    """The run that begins at `home`, else the first run long enough, else the lowest blocks."""
    wanted = range(home, home + count)
    if free >= set(wanted):
        return tuple(wanted)
    ordered = sorted(free)
    for first, last in zip(ordered, ordered[count - 1 :], strict=False):
        if last - first == count - 1:
            return tuple(range(first, last + 1))
    return tuple(ordered[:count])


class BlockPool:
    """Gives out blocks and takes each back exactly once."""

    def __init__(self, count: int, choose: Choice = near_home) -> None:
        self.count = count
        self.taken = 0
        """Blocks given out so far."""
        self.returned = 0
        """Blocks taken back so far."""
        self._choose = choose
        self._free = set(range(count))
        self._held: dict[int, tuple[int, ...]] = {}

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    def take(self, slot: int, count: int, home: int) -> tuple[int, ...]:
        """`count` free blocks, in the order of their positions, now held by `slot`; a run from `home` if it is free."""
        assert slot not in self._held, f"slot {slot} takes blocks while it holds {len(self._held[slot])}"
        assert count <= len(self._free), f"slot {slot} takes {count} blocks and {len(self._free)} are free"
        blocks = self._choose(self._free, count, home)
        assert len(blocks) == count == len(self._free.intersection(blocks)), f"slot {slot} was given {blocks}"
        self._free.difference_update(blocks)
        self._held[slot] = blocks
        self.taken += count
        return blocks

    def release(self, slot: int) -> None:
        """Takes back all that `slot` holds; it must hold some."""
        blocks = self._held.pop(slot, ())
        assert blocks, f"slot {slot} gave back blocks and holds none"
        assert self._free.isdisjoint(blocks), f"slot {slot} gave back blocks that are free: {blocks}"
        self._free.update(blocks)
        self.returned += len(blocks)


def capacity_for(context: int) -> int:
    """Positions that a slot of `context` tokens holds: whole spans, for attention reads whole spans."""
    grain = 64 if context < SPAN else SPAN
    return -(-context // grain) * grain


def cache_positions(slots: int, context: int) -> int:
    """Positions of the whole cache: the slots' own, and one block that rows without a request write to."""
    return slots * capacity_for(context) + BLOCK
