"""A device without torch that refuses whatever a real one would silently compute wrongly.

It keeps a shadow of every block of the cache: which sequence wrote a position last, as which of its own, with which
token behind which others; positions that nobody wrote are poison. A token is computed from what is read there, so
that a wrong read either fails or changes an answer. What a request is said to find in the cache must be there, made
from the same tokens under the same salt (here: the seed) and without a broken number. Steps are computed in the order
of their launch, each as early or as late as `rng` picks: at its launch, before a later launch, or only when its result
is asked for.
"""

import random
from dataclasses import dataclass, replace

from fake_grammar import nearest, possible

from tandem_server.engine.native.plan import BAD_ROW, NOTHING, Admission, Reseat, StepPlan, StepResult
from tandem_server.engine.native.scheduler import Limits
from tandem_server.engine.native.timeline import DeviceTimes
from tandem_server.engine.wire import Add

NO_TIMES = DeviceTimes(0.0, 0.0, 0.0)
FAILURE = "the fake device has no memory for this"
NAN_TOKEN = 0
"""A prompt that holds it breaks the fake model's numbers."""


def next_token(history: list[int], vocabulary: int) -> int:
    """The fake model: depends on the whole history."""
    if NAN_TOKEN in history:
        return BAD_ROW
    number = len(history)
    for token in history:
        number = (number * 31 + token) % 1_000_003
    return 1 + number % (vocabulary - 1)


def expected(add: Add, vocabulary: int, context: int = 1 << 30) -> tuple[list[int], str]:
    """What the request gets when nothing interferes."""
    history, tokens = list(add.prompt), []
    context = min(context, add.context or context)
    while len(tokens) < add.max_tokens:
        if len(history) > context:
            assert add.keep is not None
            keep = min(add.keep, len(add.prompt), context - 2)
            history = history[:keep] + history[keep + (context - keep) // 2 :]
        token = next_token(history, vocabulary)
        if add.grammar == "bad" or token == BAD_ROW:
            return tokens, "error"
        if add.grammar:
            token = nearest(token, {t for t in range(vocabulary) if possible(t, len(tokens))}, vocabulary)
        if token in add.stop_tokens:
            return tokens, "stop"
        tokens.append(token)
        history.append(token)
        if add.grammar and len(tokens) >= int(add.grammar):
            return tokens, "stop"
    return tokens, "length"


@dataclass(frozen=True)
class Written:
    """What stands in a position of the cache."""

    sequence: int
    position: int
    token: int
    chain: int
    """Of the salt and all tokens up to this one."""


@dataclass
class FakePending:
    """A launched step."""

    device: "FakeDevice"
    plan: StepPlan
    outcome: StepResult | None = None
    times: DeviceTimes = NO_TIMES

    def result(self) -> StepResult:
        self.device.compute_up_to(self)
        self.device.unread -= 1
        assert self.outcome is not None
        return self.outcome


class FakeDevice:
    """An executor; without `rng` every step is computed as late as it may be."""

    def __init__(self, limits: Limits, rng: random.Random | None = None, failing: float = 0.0) -> None:
        self._limits, self._rng, self._failing = limits, rng, failing
        self._broken: set[int] = set()
        """Slots whose request has failed; as the real device does, it leaves them out of later steps."""
        self._block = limits.block
        blocks = limits.pool_blocks or limits.slots * limits.slot_blocks
        self._shadow: list[list[Written | None]] = [[None] * self._block for _ in range(blocks)]
        """By block and place in it."""
        self._owner = [NOTHING] * blocks
        self._tables: list[tuple[int, ...]] = [()] * limits.slots
        self._reused = [0] * limits.slots
        """Positions at the beginning that the slot's sequence did not write itself."""
        self._sequence = [NOTHING] * limits.slots
        self._salt = [0] * limits.slots
        self._shifted: list[int | None] = [0] * limits.slots
        """By how much a token's number is above its position; None: not known yet."""
        self._last = [NOTHING] * limits.slots
        self._unsampled: dict[int, int] = {}
        """Slot -> positions that are written, of rows that are sampled later."""
        self._queue: list[FakePending] = []
        self.device_seconds = 0.0
        self.admitted = 0
        self.seats = 0
        """Times that a slot was given blocks to begin with."""
        self.given = 0
        """Times that a slot was given a block."""
        self.computed = 0
        """Prompt tokens."""
        self.launched = 0
        self.failed = 0
        """Requests whose part of a step was refused."""
        self.unread = 0
        self.most_in_flight = 0

    def launch(self, plan: StepPlan) -> FakePending:
        """Queues `plan`; computes none, some or all of what is queued."""
        if self._rng and self._queue and self._rng.random() < 0.3:
            self.compute_up_to(self._queue[0])
        pending = FakePending(self, plan)
        self._queue.append(pending)
        self.unread += 1
        if plan.masks:
            assert plan.number == self.launched, "a step's later samples come before the next step"
            assert not plan.decode
            assert not plan.chunks
        else:
            self.launched += 1
            self.most_in_flight = max(self.most_in_flight, self.unread)
        assert plan.number == self.launched
        if self._rng and self._rng.random() < 0.3:
            self.compute_up_to(pending)
        return pending

    def close(self) -> None:
        """Computes what is left."""
        while self._queue:
            self.compute_up_to(self._queue[0])

    def compute_up_to(self, pending: FakePending) -> None:
        """Computes queued steps, oldest first, until `pending` is done."""
        while pending.outcome is None:
            first = self._queue.pop(0)
            first.outcome = self._compute(first.plan)

    def _compute(self, plan: StepPlan) -> StepResult:
        for source, target in plan.moves:
            assert source != target
            self._shadow[target] = list(self._shadow[source])
            self._owner[target] = NOTHING
        for seat in plan.reseated:
            self._reseat(seat)
        for admission in plan.admitted:
            self._admit(admission)
        failures = self._fail(plan)
        plan = self._without_broken(plan)
        written = {}
        if plan.decode and self._limits.pool_blocks is None:
            longest, span = 1 + max(row.position for row in plan.decode), self._limits.span
            read = min((longest + span - 1) // span * span, self._limits.slot_blocks * self._block)
            for row in plan.decode:
                assert len(self._tables[row.slot]) * self._block >= read, "attention reads beyond the slot's blocks"
        for row in plan.decode:
            assert self._last[row.slot] != NOTHING, "a decode row read a poisoned token"
            self._write(row.slot, row.position, max(1, self._last[row.slot]))
            written[row.slot] = row.position + 1
        for chunk in plan.chunks:
            assert chunk.start + len(chunk.tokens) <= self._limits.context
            self.computed += len(chunk.tokens)
            for place, token in enumerate(chunk.tokens):
                self._write(chunk.slot, chunk.start + place, token)
            # A chunk attends to all that was written before it.
            self._read(chunk.slot, chunk.start)
            if chunk.final:
                written[chunk.slot] = chunk.start + len(chunk.tokens)
        if plan.masks:
            assert set(plan.masks) >= {slot for slot, _ in plan.samples}
            written = {slot: self._unsampled.pop(slot) for slot, _ in plan.samples}
        self._unsampled |= {slot: written.pop(slot) for slot in plan.late - self._broken}
        assert set(written) == {slot for slot, _ in plan.samples}
        assert len(written) == len(plan.samples), "a slot was sampled twice in one step"
        for slot, position in plan.samples:
            if self._shifted[slot] is None:
                self._shifted[slot] = position - written[slot]
            assert written[slot] + (self._shifted[slot] or 0) == position
            self._last[slot] = self._token(slot, written[slot], plan.masks.get(slot))
        return StepResult({slot: self._last[slot] for slot in written}, failures=failures)

    def _token(self, slot: int, written: int, mask: bytes | None) -> int:
        token = next_token(self._read(slot, written), self._limits.vocabulary)
        if mask is None or token == BAD_ROW:
            return token
        bits = int.from_bytes(mask, "little")
        return nearest(token, {t for t in range(self._limits.vocabulary) if bits >> t & 1}, self._limits.vocabulary)

    def _fail(self, plan: StepPlan) -> dict[int, str]:
        """Refuses the part of a slot now and then."""
        if not (self._rng and self._failing):
            return {}
        touched = plan.slots() | {admission.slot for admission in plan.admitted} | set(plan.masks)
        touched -= self._broken
        failed = {slot for slot in sorted(touched) if self._rng.random() < self._failing}
        self._broken |= failed
        self.failed += len(failed)
        return dict.fromkeys(failed, FAILURE)

    def _without_broken(self, plan: StepPlan) -> StepPlan:
        return replace(
            plan,
            decode=tuple(row for row in plan.decode if row.slot not in self._broken),
            chunks=tuple(chunk for chunk in plan.chunks if chunk.slot not in self._broken),
            samples=tuple(sample for sample in plan.samples if sample[0] not in self._broken),
        )

    def _admit(self, admission: Admission) -> None:
        slot = admission.slot
        self.admitted += 1
        self._broken.discard(slot)
        self._last[slot], self._salt[slot], self._shifted[slot] = NOTHING, admission.sampling.seed, 0
        self._sit(slot, admission.blocks, admission.reused)
        tokens = self._read(slot, self._reused[slot])
        assert tokens == admission.prompt[: len(tokens)], "the cache gave a request what others had asked"
        assert len(tokens) < len(admission.prompt)

    def _reseat(self, seat: Reseat) -> None:
        if seat.more:
            self._tables[seat.slot] += seat.blocks
            self._own(seat.slot, seat.blocks)
            return
        self._shifted[seat.slot] = None
        self._sit(seat.slot, seat.blocks, seat.reused)

    def _sit(self, slot: int, blocks: tuple[int, ...], reused: int) -> None:
        assert len(set(blocks)) == len(blocks) <= self._limits.slot_blocks
        self.seats += 1
        self._sequence[slot] = self.seats
        self._tables[slot], self._reused[slot] = blocks, reused * self._block
        self.given += reused
        self._own(slot, blocks[reused:])
        assert NAN_TOKEN not in self._read(slot, self._reused[slot]), "a block that holds a broken number was kept"

    def _own(self, slot: int, blocks: tuple[int, ...]) -> None:
        self.given += len(blocks)
        for block in blocks:
            self._owner[block] = self._sequence[slot]

    def _write(self, slot: int, position: int, token: int) -> None:
        block, sequence = self._tables[slot][position // self._block], self._sequence[slot]
        assert position >= self._reused[slot], "a step wrote to a block that is shared"
        assert self._owner[block] == sequence, f"a step wrote to block {block} after it was given to another request"
        before = self._held(slot, position - 1).chain if position else self._salt[slot]
        self._shadow[block][position % self._block] = Written(sequence, position, token, hash((before, token)))

    def _read(self, slot: int, length: int) -> list[int]:
        """Tokens at the slot's first `length` positions, each written there by this very request or for its like."""
        sequence, chain, history = self._sequence[slot], self._salt[slot], []
        for position in range(length):
            held = self._held(slot, position)
            chain = hash((chain, held.token))
            own = position < self._reused[slot] or held.sequence == sequence
            assert (own, held.position, held.chain) == (True, position, chain), (
                f"position {position} of slot {slot} holds another request's"
            )
            history.append(held.token)
        return history

    def _held(self, slot: int, position: int) -> Written:
        held = self._shadow[self._tables[slot][position // self._block]][position % self._block]
        assert held is not None, f"position {position} of slot {slot} was read before anyone wrote it"
        return held
