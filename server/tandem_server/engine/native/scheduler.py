"""Decides what each step does and what its outcome means: pure bookkeeping on the host, no tensors, no clock.

Shared by the plain and the overlapped loop. `plan` counts tokens that are not known yet as placeholders, so that the
next step can be planned while this one computes; `commit` learns the tokens. Finishes and aborts only mark a
sequence; `_release` is the one place that frees slots and blocks, once no step in flight writes to them.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem_server.engine.native.blocks import BlockPool, Choice, near_home
from tandem_server.engine.native.grammar import Grammar
from tandem_server.engine.native.memory import Memory
from tandem_server.engine.native.needs import needs_of
from tandem_server.engine.native.plan import BAD_ROW, Admission, Chunk, Decode, Reseat, StepPlan, StepResult
from tandem_server.engine.native.sequence import Limits as Limits
from tandem_server.engine.native.sequence import Planned as Planned
from tandem_server.engine.native.sequence import Sequence, problem_of
from tandem_server.engine.native.slots import SlotTable
from tandem_server.engine.wire import Add, TokenRow


@dataclass
class Scheduler:
    """All requests of one engine."""

    limits: Limits
    on_admit: Callable[[Add, int], None] = lambda add, slot: None
    choose_blocks: Choice = near_home
    compile: Callable[[str, tuple[int, ...]], Grammar] | None = None
    """Begins to compile a grammar; given the tokens that may end an answer."""
    steps: int = 0
    tokens: int = 0
    dropped: int = 0
    """Rows computed for sequences that had ended already."""
    _compiling: list[Sequence] = field(default_factory=list)
    """Their grammars are not ready yet; nobody waits behind them."""
    _waiting: deque[Sequence] = field(default_factory=deque)
    _running: dict[int, Sequence] = field(default_factory=dict)
    """By request, in order of admission."""
    _unreleased: list[Sequence] = field(default_factory=list)
    _turn: int = 0
    """Chunks given out so far."""

    def __post_init__(self) -> None:
        self.table = SlotTable(self.limits.slots)
        self.memory = Memory(self.limits, self.choose_blocks)

    @property
    def blocks(self) -> BlockPool:
        """The cache's."""
        return self.memory.blocks

    @property
    def tells_seats(self) -> bool:
        """Whether requests may wait for memory here, and are told when that is over."""
        return self.limits.pool_blocks is not None

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet, or no blocks."""
        return len(self._waiting) + len(self._compiling)

    @property
    def idle(self) -> bool:
        """Nothing to do, nothing in flight."""
        return self.resting and not self._compiling

    @property
    def resting(self) -> bool:
        """Nothing to compute and nothing in flight, though grammars may be in the making."""
        return not (self._waiting or self._running or self._unreleased)

    def add(self, add: Add) -> TokenRow | None:
        """Takes a request in. Returns its final row when it cannot be run."""
        # A second use of an id would mix two answers: both end here, with one final row.
        twice = self.abort(add.request) is not None
        problem = f"request id {add.request} is in use already" if twice else problem_of(add, self.limits)
        if problem:
            return TokenRow(add.request, [], "error", problem)
        sequence = Sequence(add, self.limits)
        if add.grammar and self.compile is not None:
            sequence.grammar = self.compile(add.grammar, tuple(add.stop_tokens))
            self._compiling.append(sequence)
        else:
            self._waiting.append(sequence)
        return None

    def compiled(self) -> list[TokenRow]:
        """Lets those wait for a slot whose grammars are ready by now. Returns the final rows of those that failed."""
        rows = []
        for sequence in [s for s in self._compiling if s.grammar is not None and s.grammar.ready]:
            self._compiling.remove(sequence)
            problem = sequence.grammar.error if sequence.grammar is not None else ""
            if problem:
                rows.append(TokenRow(sequence.add.request, [], "error", problem))
            else:
                self._waiting.append(sequence)
        return rows

    def abort(self, request: int, accepted: int = 0) -> TokenRow | None:
        """Marks a request as unwanted. Returns its final row, or None when it has ended already.

        `accepted` tokens of its answer count: they may be found by a later request.
        """
        sequence = self._running.get(request)
        if sequence is not None:
            sequence.accepted = min(accepted, len(sequence.made))
            self._end(sequence, "abort")
            self._release()
            return TokenRow(request, [], "abort")
        for line in (self._waiting, self._compiling):
            for sequence in line:
                if sequence.add.request == request:
                    line.remove(sequence)
                    return TokenRow(request, [], "abort")
        return None

    def plan(self) -> Planned | None:
        """The next step, or None when there is nothing to compute. What it plans counts as launched."""
        reseated = self._shift()
        admitted = self._admit()
        decoding = [s for s in self._running.values() if s.decodes and s.end < s.context]
        decode = tuple(Decode(s.slot, s.end) for s in decoding)
        chunked = self._chunks()
        if not (decode or chunked):
            assert not [*admitted, *reseated], "a sequence got blocks and nothing to compute"
            return None
        reseated += self.memory.cover(decoding)
        takers = decoding + [s for s, chunk in chunked if chunk.final]
        places = [(s, len(s.add.prompt) + s.planned) for s in takers]
        late = tuple((s, place) for s, place in places if s.grammar is not None)
        samples = tuple((s.slot, place) for s, place in places if s.grammar is None)
        writers = (*decoding, *{id(s): s for s, _ in chunked}.values())
        for sequence in takers:
            sequence.planned += 1
        ends = tuple(sequence.end for sequence in takers)
        for sequence in writers:
            sequence.in_flight += 1
        self.steps += 1
        plan = StepPlan(
            number=self.steps,
            moves=self.memory.take_moves(),
            admitted=tuple(admission for _, admission in admitted),
            reseated=reseated,
            decode=decode,
            chunks=tuple(chunk for _, chunk in chunked),
            samples=samples,
            late=frozenset(s.slot for s, _ in late),
            needs=needs_of([s.add.sampling for s in takers if s.grammar is None]),
        )
        return Planned(plan, writers, tuple(takers), ends, tuple(sequence for sequence, _ in admitted), late)

    def late(self, planned: Planned) -> StepPlan | None:
        """The rest of a launched step, once all steps before it are committed: samples whose grammars now know enough.

        None where there is none; rows of requests that have ended meanwhile are left out.
        """
        live = [(s, s.grammar, place) for s, place in planned.late if s.finish is None and s.grammar is not None]
        if not live:
            return None
        return StepPlan(
            number=planned.plan.number,
            samples=tuple((s.slot, place) for s, _, place in live),
            masks={s.slot: grammar.mask() for s, grammar, _ in live},
            needs=needs_of([s.add.sampling for s, _, _ in live]),
        )

    def commit(self, planned: Planned, result: StepResult) -> list[TokenRow]:
        """Takes a step's outcome in: the rows to tell. Steps are committed in the order of their plans."""
        rows: list[TokenRow] = []
        for sequence in planned.writers:
            sequence.in_flight -= 1
            assert sequence.in_flight >= 0, f"a step of request {sequence.add.request} was committed twice"
        touched = dict.fromkeys((*planned.writers, *planned.admitted)) if result.failures else ()
        failed = [s for s in touched if s.slot in result.failures and s.finish is None]
        for sequence, place in zip(planned.takers, planned.ends, strict=True):
            if sequence.finish is not None:
                self.dropped += 1
            elif sequence.slot not in result.failures:
                rows.append(self._take(sequence, place, result))
        for sequence in failed:
            self._end(sequence, "error")
            rows.append(TokenRow(sequence.add.request, [], "error", result.failures[sequence.slot]))
        self._release()
        return rows

    def _shift(self) -> tuple[Reseat, ...]:
        """Sequences whose context is full, and whose tokens are all known, make room in it."""
        full = [s for s in self._running.values() if s.decodes and s.end >= s.context and not s.in_flight]
        return tuple(self.memory.shift(sequence) for sequence in full)

    def _admit(self) -> list[tuple[Sequence, Admission]]:
        """First come, first served: who does not fit yet holds up those behind, so that nobody waits for ever."""
        admitted = []
        while self._waiting and self.table.free and self.memory.fits(self._waiting[0]):
            sequence = self._waiting.popleft()
            sequence.slot = self.table.take(sequence.add.request)
            sequence.served = self._turn
            self._running[sequence.add.request] = sequence
            self.on_admit(sequence.add, sequence.slot)
            admitted.append((sequence, self.memory.admit(sequence)))
        return admitted

    def _chunks(self) -> list[tuple[Sequence, Chunk]]:
        """Prompt chunks of the next step within the budget, one each in turn, first to who was served longest ago.

        So a long prompt makes neither those that decode nor short prompts behind it wait for its end.
        """
        chunked: list[tuple[Sequence, Chunk]] = []
        left = self.limits.budget
        unread = [s for s in self._running.values() if s.prefilled < len(s.prompt)]
        queue = deque(sorted(unread, key=lambda sequence: sequence.served))
        while queue:
            sequence = queue.popleft()
            prompt, start = sequence.prompt, sequence.prefilled
            # Borders are multiples of the chunk, also where the cache had the beginning: they are the request's own.
            tokens = prompt[start : (start // self.limits.chunk + 1) * self.limits.chunk]
            if len(tokens) > left:
                break
            end = start + len(tokens)
            chunked.append((sequence, Chunk(sequence.slot, start, tokens, end == len(prompt))))
            sequence.prefilled = end
            left -= len(tokens)
            self._turn += 1
            sequence.served = self._turn
            if end < len(prompt):
                queue.append(sequence)
        return chunked

    def _take(self, sequence: Sequence, written: int, result: StepResult) -> TokenRow:
        add, token = sequence.add, result.tokens[sequence.slot]
        if token == BAD_ROW:
            self._end(sequence, "error")
            return TokenRow(add.request, [], "error", "the model's output for this request was not a number (NaN)")
        assert 0 <= token < self.limits.vocabulary, f"step gave request {add.request} the token {token}"
        sequence.written = written
        if not sequence.made:
            self.memory.publish(sequence, 0)
        if token in add.stop_tokens:
            self._end(sequence, "stop")
            return TokenRow(add.request, [], "stop", cached=sequence.cached)
        sequence.made.append(token)
        sequence.accepted += 1
        self.tokens += 1
        problem = self._follow(sequence, token)
        if problem:
            self._end(sequence, "error")
            return TokenRow(add.request, [], "error", problem)
        if sequence.grammar is not None and sequence.grammar.complete:
            self._end(sequence, "stop")
        elif len(sequence.made) == add.max_tokens:
            self._end(sequence, "length")
        logprobs = None
        if add.sampling.logprobs is not None:
            logprobs = [result.logprobs[sequence.slot][: 1 + add.sampling.logprobs]]
        return TokenRow(add.request, [token], sequence.finish, None, logprobs, sequence.cached)

    def _follow(self, sequence: Sequence, token: int) -> str:
        """Tells a row's grammar its token; what is wrong with that, if anything."""
        if sequence.grammar is None:
            return ""
        sequence.grammar.accept(token)
        problem = sequence.grammar.error
        return f"the answer left its grammar: {problem}" if problem else ""

    def _end(self, sequence: Sequence, finish: str) -> None:
        """Marks; the slot is freed by `_release`."""
        assert sequence.finish is None, f"request {sequence.add.request} ended twice"
        sequence.finish = finish
        del self._running[sequence.add.request]
        self._unreleased.append(sequence)

    def _release(self) -> None:
        """Frees slots and blocks of ended sequences that no step in flight writes to: the only place that does."""
        for sequence in [s for s in self._unreleased if not s.in_flight]:
            self._unreleased.remove(sequence)
            self.memory.release(sequence)
            self.table.release(sequence.slot, sequence.add.request)
