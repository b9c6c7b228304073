"""What fits where, for `tandem plan`: pure, by the estimates and by the rules of residency that pods go by.

From estimates of models to a plan: who lies on which device, what the model gets beside them, who would have to go.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tandem_api.fit import Estimate, Fit, Refusal
from tandem_server.residency.ledger import Grant, Leave, Ledger, Need, Phase, Resident
from tandem_server.residency.rules import Times, decide

SLOTS = (1, 2, 4, 8, 16, 32)
CONTEXTS = tuple(1 << power for power in range(8, 25))
COLUMNS = 6
TIMES = Times()
LATE = 1e9
"""A moment at which every patience has come to its end."""


@dataclass(frozen=True)
class Model:
    """One that is asked about, or is resident."""

    name: str
    estimate: Estimate

    @property
    def need(self) -> Need:
        """What it asks the manager for."""
        least = self.estimate.minimum_bytes
        return Need(least, max(least, self.estimate.wanted_bytes))


@dataclass(frozen=True)
class Placed:
    """A resident on a device with what it got there."""

    model: Model
    device: int
    fit: Fit


@dataclass(frozen=True)
class Cell:
    """One size of the table."""

    slots: int
    context: int
    bytes: int
    fits: bool


@dataclass(frozen=True)
class Outcome:
    """What the model gets: a fit, with those who go for it; or a refusal."""

    given: Fit | Refusal
    evicted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that is printed."""

    model: Model
    capacity: tuple[int, ...]
    """Bytes of each device that runners may take."""
    kept: int
    """Bytes of each that are left free beside them."""
    alone: Fit | Refusal
    table: tuple[tuple[Cell, ...], ...]
    """A row for each number of slots."""
    residents: tuple[Placed, ...] = ()
    homeless: tuple[str, ...] = ()
    """Residents that find no room beside those before them."""
    beside_idle: Outcome | None = None
    """With residents that nobody uses: they make room."""
    beside_busy: Outcome | None = None
    """With residents in use: they stay."""

    @property
    def possible(self) -> bool:
        """Whether the model can be loaded at all."""
        return isinstance(self.alone, Fit)


def make_plan(model: Model, others: Sequence[Model], capacity: Sequence[int], kept: int = 0) -> Plan:
    """The plan for `model` on devices with so much for runners; `others` are loaded, the longest unused first."""
    largest = max(capacity)
    ledger = Ledger(list(capacity), len(others) + 2)
    placed: list[Placed] = []
    homeless: list[str] = []
    for number, other in enumerate(others):
        grant = next(iter(_decisions(ledger, other, number, busy=True)), None)
        given = other.estimate.fitting(grant.bytes) if isinstance(grant, Grant) else None
        if not isinstance(grant, Grant) or not isinstance(given, Fit):
            ledger.residents.pop(other.name, None)
            homeless.append(other.name)
            continue
        one = ledger.residents[other.name]
        one.phase, one.bytes, one.queued, one.quiet_since = Phase.LOADED, given.bytes, 0, float(number)
        placed.append(Placed(other, grant.device, given))
    beside = [_outcome(ledger, model, busy) for busy in (False, True)] if others else [None, None]
    return Plan(
        model,
        tuple(capacity),
        kept,
        model.estimate.fitting(largest),
        _table(model.estimate, largest),
        tuple(placed),
        tuple(homeless),
        *beside,
    )


def _decisions(ledger: Ledger, model: Model, number: int, busy: bool) -> list[object]:
    """What the rules decide for `model` when it asks now."""
    for one in ledger.residents.values():
        one.running = int(busy)
    ledger.residents[model.name] = Resident(model.name, model.need, float(number), queued=1)
    return list(decide(ledger, TIMES, LATE)[0])


def _outcome(ledger: Ledger, model: Model, busy: bool) -> Outcome:
    """What `model` gets beside those of `ledger`, which is left as it is."""
    mine = Ledger(ledger.capacity, ledger.most)
    mine.residents = {name: replace(one) for name, one in ledger.residents.items()}
    decisions = _decisions(mine, model, len(mine.residents), busy)
    evicted = tuple(decision.name for decision in decisions if isinstance(decision, Leave))
    for name in evicted:
        del mine.residents[name]
    if evicted:
        decisions = list(decide(mine, TIMES, LATE)[0])
    grant = next((decision for decision in decisions if isinstance(decision, Grant)), None)
    held = [sum(one.bytes for one in mine.residents.values() if one.device == n) for n in range(len(mine.capacity))]
    free = max(size - taken for size, taken in zip(mine.capacity, held, strict=True))
    return Outcome(model.estimate.fitting(grant.bytes if grant else free), evicted)


def _table(estimate: Estimate, free: int) -> tuple[tuple[Cell, ...], ...]:
    """Sizes by slots and context; the asked ones are among them, and the model's limit is the last column."""
    limit = estimate.footprint.context_limit
    longest = [context for context in CONTEXTS if context < limit]
    contexts = sorted({*longest[-(COLUMNS - 2) :], estimate.asked, limit})
    if not estimate.footprint.token:
        contexts = [estimate.asked]
    rows = sorted({*SLOTS, estimate.slots}) if estimate.footprint.token else [estimate.slots]
    sizes = [
        [(slots, context, estimate.parts_at(context, slots=slots, whole=True).total) for context in contexts]
        for slots in rows
    ]
    return tuple(tuple(Cell(*size, fits=size[-1] <= free) for size in row) for row in sizes)
