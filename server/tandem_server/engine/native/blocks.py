"""Blocks of the cache: who holds which, and what the free ones still hold. Pure bookkeeping on the host.

Beside the scheduler; the device learns blocks and moves with the plan. A block is held by one slot or shared by
several, else it is free; a free block that was published under a name keeps its content until it is needed, oldest
first, and never while a block without a name is free.
Two ways to be given blocks. `settle`: the slot's own home, one run that is read without copying; named blocks that it
needs are moved there, and others that lie there are moved away rather than lost. `share`: from one pool for all slots,
where named blocks are held together with whoever holds them already.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from tandem_api.fit_steps import BLOCK as BLOCK
from tandem_api.fit_steps import SPAN as SPAN

Choice = Callable[[Set[int], int, int], tuple[int, ...]]
"""Picks so many of the free blocks, given where the taker would like its run to begin."""
Move = tuple[int, int]
"""The content of the first block is copied to the second one; moves are done in order."""


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


def runs_of(moves: Sequence[Move]) -> list[tuple[int, int, int]]:
    """The same moves, where neighbours go to neighbours as one: (first source, first target, how many)."""
    runs: list[tuple[int, int, int]] = []
    for source, target in moves:
        if runs:
            first, to, count = runs[-1]
            apart = abs(first - to) > count
            if (source, target) == (first + count, to + count) and apart:
                runs[-1] = (first, to, count + 1)
                continue
        runs.append((source, target, 1))
    return runs


@dataclass(frozen=True)
class Grant:
    """What a slot was given."""

    blocks: tuple[int, ...]
    """In the order of their positions."""
    moves: tuple[Move, ...] = ()
    reused: int = 0
    """So many of the first blocks hold what they are to hold already, once the moves are done."""


class BlockPool:
    """Gives out blocks and takes each back exactly once."""

    def __init__(self, count: int, choose: Choice = near_home) -> None:
        self.count = count
        self.taken = 0
        """Times that a slot was given a block."""
        self.returned = 0
        """Times that a slot gave one back."""
        self.evicted = 0
        """Named blocks that were lost, for others needed the room."""
        self._choose = choose
        self._blank = set(range(count))
        """Free, and nothing that anyone could use is in them."""
        self._idle: dict[int, int] = {}
        """Free, with a name; and when it was last held."""
        self._clock = 0
        self._holders = [0] * count
        self._held: dict[int, list[int]] = {}
        self._name: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """How many nobody holds."""
        return len(self._blank) + len(self._idle)

    @property
    def cached(self) -> int:
        """How many have a name, held or not."""
        return len(self._named)

    def held(self, slot: int) -> int:
        """How many `slot` holds."""
        return len(self._held.get(slot, ()))

    def find(self, names: Sequence[bytes]) -> tuple[int, ...]:
        """Blocks of the longest beginning of `names` that is there."""
        found = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            found.append(block)
        return tuple(found)

    def room(self, found: Sequence[int]) -> int:
        """How many blocks can be given to a slot that shares those `found`."""
        return self.free - sum(not self._holders[block] for block in found)

    def settle(self, slot: int, found: Sequence[int], count: int, home: int) -> Grant:
        """The `count` blocks from `home`, which no other slot ever takes; the first ones get what was `found`."""
        assert slot not in self._held, f"slot {slot} takes blocks while it holds {self.held(slot)}"
        wanted = list(found[:count])
        self._held[slot] = []
        moves = self._vacate(range(home, home + count), wanted)
        for place, block in enumerate(range(home, home + count)):
            source = wanted[place] if place < len(wanted) else block
            if source != block:
                moves.append((source, block))
                if not self._holders[source]:
                    self._carry(source, block)
            self._hold(slot, block)
        return Grant(tuple(range(home, home + count)), tuple(moves), len(wanted))

    def grow(self, slot: int, count: int) -> Grant:
        """More blocks for a slot that settled, `count` in all; the grant tells the new ones."""
        held = self._held[slot]
        more = range(held[-1] + 1, held[0] + count)
        moves = self._vacate(more, [])
        for block in more:
            self._hold(slot, block)
        return Grant(tuple(more), tuple(moves))

    def share(self, slot: int, found: Sequence[int], count: int) -> Grant:
        """`count` blocks, first those that were `found`, held beside their other holders; a run where there is one."""
        assert slot not in self._held, f"slot {slot} takes blocks while it holds {self.held(slot)}"
        assert count - len(found) <= self.room(found), f"slot {slot} takes {count} blocks and {self.free} are free"
        self._held[slot] = []
        for block in found:
            self._hold(slot, block)
        own = count - len(found)
        for block in self._oldest()[: max(0, own - len(self._blank))]:
            self._forget(block)
        blocks = self._choose(self._blank, own, found[-1] + 1 if found else -1) if own else ()
        assert len(blocks) == own == len(self._blank.intersection(blocks)), f"slot {slot} was given {blocks}"
        for block in blocks:
            self._hold(slot, block)
        return Grant((*found, *blocks), (), len(found))

    def publish(self, slot: int, names: Sequence[bytes]) -> None:
        """Names the slot's first blocks; a name that is known, or a block that has one, stays as it is."""
        for block, name in zip(self._held[slot], names, strict=False):
            if name not in self._named and block not in self._name:
                self._name[block] = name
                self._named[name] = block

    def release(self, slot: int) -> None:
        """Takes back all that `slot` holds; it must hold some. Its last blocks will be the first to be lost."""
        blocks = self._held.pop(slot, [])
        assert blocks, f"slot {slot} gave back blocks and holds none"
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"slot {slot} gave back block {block}, which is free"
            if self._holders[block]:
                continue
            if block in self._name:
                self._clock += 1
                self._idle[block] = self._clock
            else:
                self._blank.add(block)
        self.returned += len(blocks)

    def _hold(self, slot: int, block: int) -> None:
        self._blank.discard(block)
        self._idle.pop(block, None)
        self._holders[block] += 1
        self._held[slot].append(block)
        self.taken += 1

    def _forget(self, block: int) -> None:
        """The content of a free block is lost."""
        del self._idle[block]
        del self._named[self._name.pop(block)]
        self._blank.add(block)
        self.evicted += 1

    def _carry(self, source: int, target: int) -> int:
        """The name of an idle block goes to a blank one, with its content; returns when it was last held."""
        name, age = self._name.pop(source), self._idle.pop(source)
        self._name[target], self._named[name] = name, target
        self._blank.discard(target)
        self._blank.add(source)
        return age

    def _oldest(self) -> list[int]:
        return sorted(self._idle, key=self._idle.__getitem__)

    def _vacate(self, home: range, wanted: list[int]) -> list[Move]:
        """Moves what lies in `home` elsewhere, first what is `wanted`, then the newest; what finds no place is lost.

        Leaves alone what is wanted where it lies. `wanted` is changed to where things are then, and cut where one of
        them found no place.
        """
        place_of = {block: place for place, block in enumerate(wanted)}
        assert all(not self._holders[block] for block in home), f"another slot holds blocks of {home}"
        staying = {block for block, wish in zip(home, wanted, strict=False) if block == wish}
        leaving = [block for block in home if block in self._idle and block not in staying]
        if not leaving:
            return []
        leaving.sort(key=lambda block: (block not in place_of, -self._idle[block]))
        # The tops of the last homes are needed last.
        blank = sorted(block for block in self._blank if block not in home)
        old = [block for block in reversed(self._oldest()) if block not in home and block not in place_of]
        moves = []
        for block in leaving:
            place = place_of.get(block, len(wanted))
            if not blank and old and (place < len(wanted) or self._idle[old[-1]] < self._idle[block]):
                blank.append(old.pop())
                self._forget(blank[-1])
            if not blank:
                del wanted[place:]
                self._forget(block)
                continue
            target = blank.pop()
            self._idle[target] = self._carry(block, target)
            moves.append((block, target))
            if place < len(wanted):
                wanted[place] = target
        return moves
