"""What one step does: made on the host by the scheduler, carried out by `step.py`, read again when it is committed.

A plan holds no tensors and no tokens that are not known yet: the input of a decode row is the slot's last token,
which is on the device and may still be in the making when the plan is launched.
"""

from dataclasses import dataclass, field

from tandem_server.engine.native.needs import Needs
from tandem_server.engine.wire import Sampling

BAD_ROW = -2
"""In a step's tokens: this row's logits were not finite."""
NOTHING = -1
"""In a step's tokens and in poisoned buffers: no token here."""


@dataclass(frozen=True)
class Admission:
    """A request takes a slot: its sampling state and its block table go to the device."""

    slot: int
    sampling: Sampling
    prompt: list[int]
    stop_tokens: tuple[int, ...] = ()
    """What `sampling.min_tokens` keeps back."""
    blocks: tuple[int, ...] = ()
    """Blocks of the cache, in the order of their positions."""
    reused: int = 0
    """So many of the first blocks hold keys and values already; the request reads them and never writes to them."""


@dataclass(frozen=True)
class Reseat:
    """A slot that holds its request gets other blocks: more of them, or all anew."""

    slot: int
    blocks: tuple[int, ...]
    reused: int
    """As in `Admission`; with `more`, nothing changes for the blocks that the slot has."""
    more: bool
    """`blocks` come behind those that the slot has."""


@dataclass(frozen=True)
class Decode:
    """A slot's last token goes in, standing at `position`."""

    slot: int
    position: int


@dataclass(frozen=True)
class Chunk:
    """Part of a slot's prompt goes in; `final` when it is the last part."""

    slot: int
    start: int
    tokens: list[int]
    final: bool


@dataclass(frozen=True)
class StepPlan:
    """One forward of a batch."""

    number: int
    admitted: tuple[Admission, ...] = ()
    decode: tuple[Decode, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    samples: tuple[tuple[int, int], ...] = ()
    """(slot, position of the new token) of each row that gets a token."""
    late: frozenset[int] = frozenset()
    """Slots whose rows get their token later, by a plan of its own, for a grammar must first learn the token before."""
    masks: dict[int, bytes] = field(default_factory=dict)
    """Such a later plan: slot -> the tokens that are possible, see `Grammar.mask`. It computes nothing but samples."""
    needs: Needs = field(default_factory=Needs)
    moves: tuple[tuple[int, int], ...] = ()
    """Blocks whose content is copied to another one, in order, before anything else is done."""
    reseated: tuple[Reseat, ...] = ()

    def slots(self) -> set[int]:
        """All slots that the step writes to."""
        return {row.slot for row in self.decode} | {chunk.slot for chunk in self.chunks}


@dataclass(frozen=True)
class StepResult:
    """What came of a step, on the host."""

    tokens: dict[int, int]
    """Slot -> new token, or `BAD_ROW`."""
    logprobs: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """Slot -> the chosen token's pair, then the most likely ones."""
    failures: dict[int, str] = field(default_factory=dict)
    """Slot -> why its part of the step could not be computed; whatever else stands here for the slot is void."""

    def joined(self, late: "StepResult") -> "StepResult":
        """With what came of the step's later samples."""
        return StepResult(self.tokens | late.tokens, self.logprobs | late.logprobs, self.failures | late.failures)
