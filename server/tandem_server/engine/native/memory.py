"""Which blocks each sequence has: its home or its share of a pool, and what earlier requests left there.

Between the scheduler and the blocks. Guaranteed: a slot has a home for its whole context and takes it as the step's
rows grow, so that what others left there is kept as long as it can be. Shared: a request takes all that it can ever
need when it is admitted, so that never more is promised than there is and nothing is preempted. Prompts are published
once their first token came out as a number, answers when they have ended and it is known how much of them counts.
"""

from collections.abc import Sequence as Many

from tandem_server.engine.native.blocks import BlockPool, Choice, Grant, Move, near_home
from tandem_server.engine.native.plan import Admission, Reseat
from tandem_server.engine.native.sequence import Limits, Sequence


class Memory:
    """Blocks of all slots, and how many prompt tokens were found in them."""

    def __init__(self, limits: Limits, choose: Choice = near_home) -> None:
        self._limits = limits
        self._shared = limits.pool_blocks is not None
        self.blocks = BlockPool(limits.pool_blocks or limits.slots * limits.slot_blocks, choose)
        self.asked = 0
        """Prompt tokens of admitted requests."""
        self.found = 0
        """Of those, how many were in the cache."""
        self._moves: list[Move] = []

    def fits(self, sequence: Sequence) -> bool:
        """Whether the request can be admitted, given a slot, with its worst case."""
        if not self._shared:
            return True
        found = self._find(sequence)
        return self._worst(sequence) - len(found) <= self.blocks.room(found)

    def admit(self, sequence: Sequence) -> Admission:
        """Gives the sequence's slot its first blocks; it must fit."""
        grant = self._seat(sequence)
        sequence.cached = sequence.prefilled
        self.asked += len(sequence.prompt)
        self.found += sequence.cached
        add = sequence.add
        return Admission(sequence.slot, add.sampling, add.prompt, tuple(add.stop_tokens), grant.blocks, grant.reused)

    def shift(self, sequence: Sequence) -> Reseat:
        """The sequence's context is full: drops part of it and gives the slot blocks for the rest, anew."""
        self.blocks.release(sequence.slot)
        sequence.shift()
        grant = self._seat(sequence)
        return Reseat(sequence.slot, grant.blocks, grant.reused, more=False)

    def cover(self, decoding: Many[Sequence]) -> tuple[Reseat, ...]:
        """More blocks for those that decode, where attention at the longest one's span would read beyond theirs."""
        if self._shared or not decoding:
            return ()
        count = self._limits.blocks_for(1 + max(sequence.end for sequence in decoding))
        reseated = []
        for sequence in decoding:
            if self.blocks.held(sequence.slot) < count:
                grant = self.blocks.grow(sequence.slot, count)
                self._moves += grant.moves
                reseated.append(Reseat(sequence.slot, grant.blocks, 0, more=True))
        return tuple(reseated)

    def take_moves(self) -> tuple[Move, ...]:
        """Moves that the next step must do first."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def publish(self, sequence: Sequence, accepted: int) -> None:
        """Names the blocks that are full of prompt and of `accepted` tokens of the answer, and surely written."""
        limits = self._limits
        if not limits.reuse or accepted < sequence.origin or (self._shared and sequence.shifts):
            return
        tokens = [*sequence.prompt, *sequence.made[sequence.origin : accepted]]
        count = min(len(tokens), sequence.written) // limits.block
        self.blocks.publish(sequence.slot, sequence.chain.names(tokens, count))

    def release(self, sequence: Sequence) -> None:
        """Takes back all blocks of a sequence that no step in flight writes to."""
        self.publish(sequence, sequence.accepted)
        self.blocks.release(sequence.slot)

    def _seat(self, sequence: Sequence) -> Grant:
        found, slot = self._find(sequence), sequence.slot
        if self._shared:
            grant = self.blocks.share(slot, found, self._worst(sequence))
        else:
            count = self._limits.blocks_for(len(sequence.prompt))
            grant = self.blocks.settle(slot, found, count, slot * self._limits.slot_blocks)
        self._moves += grant.moves
        sequence.prefilled = grant.reused * self._limits.block
        return grant

    def _find(self, sequence: Sequence) -> tuple[int, ...]:
        """All but the last token of the prompt may be found: something must be computed to go on from."""
        limits = self._limits
        # A sequence that may shift gives its blocks back and takes as many: they must be its own to the last.
        if not limits.reuse or (self._shared and sequence.shifts):
            return ()
        return self.blocks.find(sequence.chain.names(sequence.prompt, (len(sequence.prompt) - 1) // limits.block))

    def _worst(self, sequence: Sequence) -> int:
        return self._limits.blocks_for(sequence.longest)
