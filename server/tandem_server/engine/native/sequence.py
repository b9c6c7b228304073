"""One request on its way through the scheduler, what it must keep to, and the steps that speak of it. No tensors."""

from dataclasses import dataclass, field

from tandem_server.engine.native.blocks import BLOCK, SPAN
from tandem_server.engine.native.grammar import Grammar
from tandem_server.engine.native.needs import bias_problem
from tandem_server.engine.native.plan import StepPlan
from tandem_server.engine.native.prefix import Chain
from tandem_server.engine.wire import Add, TokenRow


@dataclass(frozen=True)
class Limits:
    """What requests and steps must keep to."""

    slots: int
    context: int
    vocabulary: int
    chunk: int = 256
    """Prompt tokens of one request that go in at once; chunks end at its multiples, whoever else runs."""
    budget: int = 512
    """Prompt tokens of one step."""
    slot_blocks: int = 1
    """Blocks of the cache that hold a slot's whole context."""
    block: int = BLOCK
    """Positions of a block."""
    span: int = SPAN
    """Positions that attention reads are its multiples."""
    pool_blocks: int | None = None
    """Shared: blocks of the one pool that all slots draw on. None, Guaranteed: each slot has its whole context."""
    reads_own: bool = False
    """Attention of a decode step reads no more of a slot than its own sequence: as a GPU's kernels do."""
    reuse: bool = True
    """Whether blocks are kept for later requests that begin alike."""

    def __post_init__(self) -> None:
        assert self.budget >= self.chunk, f"no chunk of {self.chunk} tokens fits a budget of {self.budget}"
        whole = self.blocks_for(self.context)
        assert self.pool_blocks is None or self.pool_blocks >= whole, (
            f"no {whole} blocks fit a pool of {self.pool_blocks}"
        )

    def blocks_for(self, positions: int) -> int:
        """Blocks that attention over so many positions reads."""
        return min(self.slot_blocks, -(-(-(-positions // self.span) * self.span) // self.block))


def problem_of(add: Add, limits: Limits) -> str | None:
    """Why a request cannot be run, or None."""
    if not add.prompt:
        return "the prompt has no tokens"
    if add.max_tokens < 1:
        return f"max_tokens is {add.max_tokens}, it must be at least 1"
    context = min(limits.context, add.context or limits.context)
    new = add.max_tokens if add.keep is None else 1
    if len(add.prompt) + new > context:
        return f"{len(add.prompt)} prompt tokens and {new} new ones exceed the context of {context} tokens"
    if min(add.prompt) < 0 or max(add.prompt) >= limits.vocabulary:
        bad = next(token for token in add.prompt if not 0 <= token < limits.vocabulary)
        return f"token id {bad} of the prompt is outside the vocabulary of {limits.vocabulary}"
    return bias_problem(add.sampling, tuple(add.stop_tokens), limits.vocabulary)


@dataclass(eq=False)
class Sequence:
    """One request. After a shift its `prompt` is what was kept of it and of the answer."""

    add: Add
    limits: Limits
    prompt: list[int] = field(init=False)
    slot: int = -1
    prefilled: int = 0
    """Tokens of `prompt` that are in the cache, or that planned steps put there."""
    served: int = 0
    """When it was last given a chunk, or was admitted, counted in chunks."""
    planned: int = 0
    """Tokens that planned steps sample: those made and those in the making."""
    origin: int = 0
    """Of those, how many were made before the last shift."""
    made: list[int] = field(default_factory=list)
    """Tokens told."""
    cached: int = 0
    """Tokens of the request's own prompt that were found in the cache."""
    written: int = 0
    """Positions whose keys and values are there for certain: a later token came of them, and it was a number."""
    in_flight: int = 0
    """Launched steps that write to the slot and are not committed yet."""
    finish: str | None = None
    accepted: int = 0
    """Tokens of the answer that count; those behind a stop string do not."""
    grammar: Grammar | None = None
    """What its answer must follow."""
    chain: Chain = field(init=False)
    """Names of the blocks of `prompt`, and of the answer behind it."""

    def __post_init__(self) -> None:
        self._begin(self.add.prompt)

    @property
    def end(self) -> int:
        """Position of the next token that a planned step may put in: that of the last sampled one."""
        return len(self.prompt) + self.planned - self.origin - 1

    @property
    def decodes(self) -> bool:
        """Whether its next row is a decode row, as far as the prompt is concerned."""
        return self.prefilled == len(self.prompt) and self.planned < self.add.max_tokens

    @property
    def context(self) -> int:
        """Tokens of the request's context."""
        return min(self.limits.context, self.add.context or self.limits.context)

    @property
    def longest(self) -> int:
        """Positions that it may come to use."""
        return min(self.context, len(self.add.prompt) + self.add.max_tokens)

    @property
    def shifts(self) -> bool:
        """Whether it may reach the end of its context and go on."""
        return self.add.keep is not None and len(self.add.prompt) + self.add.max_tokens > self.context

    def shift(self) -> None:
        """Drops half of what follows the kept beginning; what stays is read as a new prompt, at new positions.

        All of the sequence must be known, the last token included, which has not been put in yet.
        """
        whole = [*self.prompt, *self.made[self.origin :]]
        keep = min(self.add.keep or 0, len(self.add.prompt), self.context - 2)
        self._begin(whole[:keep] + whole[keep + (self.context - keep) // 2 :])
        self.prefilled, self.origin, self.written = 0, len(self.made), 0

    def _begin(self, prompt: list[int]) -> None:
        self.prompt, self.chain = prompt, Chain(self.add.salt, self.limits.block)


@dataclass(frozen=True)
class Planned:
    """A plan, and the sequences that it speaks of."""

    plan: StepPlan
    writers: tuple[Sequence, ...] = ()
    """Sequences whose slots the step writes to."""
    takers: tuple[Sequence, ...] = ()
    """Of those, the ones that get a token, in the order of `plan.samples`."""
    ends: tuple[int, ...] = ()
    """For each of those, the positions that its token came of."""
    admitted: tuple[Sequence, ...] = ()
    """Sequences that got their slot in this step."""
    late: tuple[tuple[Sequence, int], ...] = ()
    """Of the takers, those whose token is sampled later, each with its position."""

    def seats(self) -> list[TokenRow]:
        """A row without tokens for each of those: it waits no longer."""
        return [TokenRow(s.add.request, [], None, cached=s.cached) for s in self.admitted]
