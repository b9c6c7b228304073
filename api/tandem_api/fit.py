"""What fits: the memory of one model's runner for so many slots of so long a context, and the context that is given.

Pure arithmetic that all sides share. The engine decides by it at load, the residency manager before it starts a
runner, `tandem plan` before there is a pod. What the numbers are made of stands in `fit_weights` and `fit_steps`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tandem_api.fields import Device
from tandem_api.fit_steps import BLOCK, Steps, cache_positions, capacity_for

DEFAULT_SLOTS = 4
MIB = 1 << 20
CPU_FIXED = 560 * MIB
"""A runner's interpreter, torch and our own code in RAM, libraries' files included; measured, see `make test-long`."""
CPU_LIBRARY_FIXED = 840 * MIB
"""The same with the transformers library."""
GPU_FIXED = 640 * MIB
"""The driver's context, kernels and their workspaces, on the device; assumed, not measured."""
GRAIN = 64
"""A shrunk context is a multiple of so many tokens."""
RESERVE_SHARE = 0.05
RESERVE_BYTES = 256 * MIB
"""Left free on a device whose memory others may take from as well: the larger of the two."""


def reserve_bytes(free: int) -> int:
    """What is left free of `free` bytes that nobody has promised."""
    return max(RESERVE_BYTES, int(free * RESERVE_SHARE))


@dataclass(frozen=True)
class Wish:
    """What is asked of a runner, in the words of a Model's spec."""

    device: Device = Device.GPU
    dtype: str = "Auto"
    quantization: str = "None"
    slots: int | None = None
    context: int | None = None
    """Tokens a slot; None: the model's own limit."""
    min_context: int = 256
    may_shrink: bool = True
    """Less context than asked will do (whenShort: Shrink)."""
    cache_dtype: str = "Auto"
    shared: bool = False
    """Slots draw on one pool, in which at least one whole context fits."""
    task: str = "Auto"


@dataclass(frozen=True)
class Parts:
    """Bytes of one runner, by what they are for."""

    weights: int
    cache: int
    """Keys and values of all contexts."""
    steps: int
    """Intermediate results of the largest step, CUDA graphs, tables of positions."""
    fixed: int
    """Interpreter and libraries on a CPU, the driver's context on a GPU."""
    loading: int = 0
    """What the load takes for a while beyond what all of the above come to."""

    @property
    def total(self) -> int:
        """What the runner takes at its worst moment."""
        return self.weights + self.cache + self.steps + self.fixed + self.loading


@dataclass(frozen=True)
class Fit:
    """What a runner gets."""

    context: int
    """Tokens a slot."""
    slots: int
    parts: Parts
    reason: str = ""
    """Why `context` is smaller than asked, with numbers; empty when it is not."""
    needed: int = 0
    """Bytes of a runner with the whole context that was asked for."""
    pool_blocks: int | None = None
    """Shared: blocks of the pool."""

    @property
    def bytes(self) -> int:
        """What the runner takes in all."""
        return self.parts.total


@dataclass(frozen=True)
class Refusal:
    """Nothing that would do fits."""

    reason: str
    """A sentence with the numbers, and what to do."""
    needed: int
    """Bytes for what was asked."""
    least: int
    """Bytes for the least that would do."""
    free: int
    too_long: bool = False
    """No memory would help: more context was asked for than the model was made for."""


@dataclass(frozen=True)
class Footprint:
    """One model on one kind of device in given formats: all that its size depends on but slots and context."""

    architecture: str
    context_limit: int
    """What the model was made for."""
    weights: int
    token: int
    """Bytes of one token's keys and values."""
    fixed: int
    loading: int
    """What the load takes beyond weights at its worst, before there are contexts."""
    steps: Steps | Callable[[int, int], int]
    """Bytes of a step by slots and context."""
    parameters: int = 0
    dtype: str = ""
    """Of the computation."""
    bounds: tuple[str, ...] = ()
    """What of it is an upper bound rather than known, and why; empty where everything is known."""

    def step(self, slots: int, context: int) -> int:
        """Bytes of all steps beside weights and contexts."""
        return self.steps.bytes(slots, context) if isinstance(self.steps, Steps) else self.steps(slots, context)


@dataclass(frozen=True)
class Estimate:
    """What a runner would take, before there is one."""

    footprint: Footprint
    wish: Wish
    slots: int = field(init=False)
    asked: int = field(init=False)
    """Context in tokens a slot, at most the model's limit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", self.wish.slots or DEFAULT_SLOTS)
        limit = self.footprint.context_limit
        object.__setattr__(self, "asked", min(self.wish.context or limit, limit))

    def parts_at(self, context: int, slots: int | None = None, positions: int | None = None) -> Parts:
        """By part, for slots of `context` tokens; `positions` of the cache where they are not all slots' whole ones."""
        slots, model = slots or self.slots, self.footprint
        if positions is None:
            positions = cache_positions(1 if self.wish.shared else slots, context)
        cache, steps = positions * model.token, model.step(slots, context)
        return Parts(model.weights, cache, steps, model.fixed, max(0, model.loading - cache - steps))

    def bytes_at(self, context: int) -> int:
        """In all, for the wished slots of `context` tokens; of a shared pool, with room for one context."""
        return self.parts_at(context).total

    @property
    def minimum_bytes(self) -> int:
        """The least that would load: `minLength` tokens where it may shrink, else all that was asked for."""
        return self.bytes_at(min(self.wish.min_context, self.asked) if self.wish.may_shrink else self.asked)

    @property
    def wanted_bytes(self) -> int:
        """With the whole context that was asked for, in a shared pool for every slot."""
        return self.parts_at(self.asked, positions=cache_positions(self.slots, self.asked)).total

    def fitting(self, free: int) -> Fit | Refusal:
        """What fits into `free` bytes, of which nothing is left over for others: that is the caller's to subtract."""
        model, wish = self.footprint, self.wish
        result = fit_context(wish, model.context_limit, self.slots, free, self.bytes_at, " for weights and all")
        if isinstance(result, Refusal):
            return result
        context, reason = result
        if not wish.shared:
            return Fit(context, self.slots, self.parts_at(context), reason, self.bytes_at(self.asked))
        left = free - model.weights - model.fixed - model.step(self.slots, context)
        blocks = pool_blocks(context, self.slots, model.token, left)
        parts = self.parts_at(context, positions=(blocks + 1) * BLOCK)
        return Fit(context, self.slots, parts, reason, self.wanted_bytes, blocks)


def fit_context(
    wish: Wish, limit: int, slots: int, free: int, needed: Callable[[int], int], beside: str
) -> tuple[int, str] | Refusal:
    """The context that each slot gets and why it is smaller than asked (or ""); or that none will do.

    Slots are kept; the context gives way, to the largest that fits and not below `wish.min_context`.

    Args:
        wish: asked, least, and whether less than asked will do.
        limit: what the model was made for.
        slots: for the text.
        free: bytes.
        needed: bytes by context; never fewer for more.
        beside: ends the phrase "need 3 MiB and 2 MiB is free".
    """
    reason, context = "", wish.context or limit
    if context > limit:
        reason = f"{context} tokens were asked for, the model was made for {limit}"
        if not wish.may_shrink:
            least = needed(limit)
            advice = "lower context.length, or allow it to shrink (whenShort: Shrink)"
            return Refusal(f"{reason}; {advice}", least, least, free, too_long=True)
        context = limit
    if needed(context) <= free:
        return context, reason
    fitting = _largest(context, free, needed)
    numbers = (
        f"{slots} slot{'s' if slots > 1 else ''} of {context} tokens need{'' if slots > 1 else 's'} "
        f"{mib(needed(context))} and {mib(max(0, free))} is free{beside}"
    )
    least = min(wish.min_context, context)
    if wish.may_shrink and (fitting >= least or needed(least) <= free):
        return max(fitting, least), numbers
    least = least if wish.may_shrink else context
    text = f"; at least {least} tokens are asked for, which need {mib(needed(least))}" if wish.may_shrink else ""
    advice = "give it more memory, fewer slots or less context"
    return Refusal(f"the context does not fit: {numbers}{text}; {advice}", needed(context), needed(least), free)


def _largest(context: int, free: int, needed: Callable[[int], int]) -> int:
    """The largest multiple of `GRAIN` below `context` that `free` bytes do for; 0 where none."""
    low, high = 0, (context - 1) // GRAIN
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle * GRAIN) <= free else (low, middle - 1)
    return low * GRAIN


def pool_blocks(context: int, slots: int, token: int, free: int) -> int:
    """Blocks of a pool for slots that share it: as many as there is memory for, at most what all contexts need.

    A whole context fits: `fit_context` has made sure of it for one slot.
    """
    whole = capacity_for(context) // BLOCK
    return max(whole, min(free // (token * BLOCK) - 1, slots * whole))


def mib(size: int) -> str:
    """Bytes as errors tell them."""
    return f"{size / MIB:,.0f} MiB"
