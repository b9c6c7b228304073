"""From the seconds of each job to the rows of the result, and to the aims: the pure part of `bench/engine.py`."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS = "Tandem"
MEMORY = "memory"
"""The limit that the memory's bandwidth sets, as if it were an engine."""
QUANTIZED = {"Int8": 1.6, "Int4": 2.2}
"""Our weights of 8 and 4 bits, and how many times faster than our own bfloat16 they should be at batch 1."""
AIMED = ("random-135M", "bfloat16")
"""What the aims are for; anything else is reported."""


@dataclass(frozen=True)
class Case:
    """What is measured. `first` is a job of one token: its seconds are the time to the first token."""

    model: str
    dtype: str
    batch: int
    prompt: int
    new: int
    sampled: bool

    @property
    def aimed(self) -> bool:
        """Whether there is something to reach."""
        return (self.model, self.dtype) == AIMED

    @property
    def first(self) -> bool:
        """Whether the time to the first token is measured, and not a rate."""
        return self.new == 1

    def title(self) -> str:
        """As the table names it."""
        if self.first:
            return f"{self.model}, {self.dtype}: first token of a prompt of {self.prompt}"
        how = "sampled" if self.sampled else "greedy"
        return f"{self.model}, {self.dtype}, {self.batch} at once, {how}: token rate"


@dataclass(frozen=True)
class Measured:
    """One job on one engine."""

    case: Case
    arm: str
    round: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.case.batch * self.case.new / self.seconds


def least(case: Case, peer: str) -> float | None:
    """The ratio to reach against a peer; None: it is only reported."""
    if not case.aimed:
        return None
    if peer == "vLLM":
        return 1.0
    if peer == "transformers" and case.batch > 1:
        return 3.0
    if case.batch > 1 or case.first:
        return None
    return {MEMORY: 0.8, **{name_of(kind): ratio for kind, ratio in QUANTIZED.items()}}.get(peer)


def rows(measured: list[Measured], aim: Callable[[Case, str], float | None] = least) -> list[dict[str, Any]]:
    """One row for each case and peer: our figure over the peer's, taken round by round, and both figures' medians.

    A ratio over 1 means that we are faster, for rates and for times; our quantised weights are compared with our own
    unquantised ones, and stand first. Cases in which we or a peer failed are left out. `aim` gives the ratio to reach.
    """
    found: dict[Case, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for each in measured:
        found[each.case][each.arm][each.round] = each.seconds
    made = []
    for case, arms in found.items():
        for peer in sorted(name for name in arms if name != OURS):
            shared = sorted(arms[OURS].keys() & arms[peer].keys())
            if shared:
                ours, theirs = ([arms[name][n] for n in shared] for name in (OURS, peer))
                made.append(_row(case, peer, ours, theirs, aim(case, peer)))
    return made


def name_of(quantization: str) -> str:
    """The name of our engine with quantised weights."""
    return OURS if quantization == "None" else f"{OURS} {quantization}"


def _row(case: Case, peer: str, ours: list[float], theirs: list[float], target: float | None) -> dict[str, Any]:
    aim = f"{case.title()}, times faster than {peer}"
    if peer == MEMORY:
        aim = f"{case.title()}, share of what the memory's bandwidth allows"
    elif peer.startswith(OURS):
        ours, theirs = theirs, ours
        aim = f"{case.title()}, {peer.removeprefix(OURS).strip()} weights: times faster than our {case.dtype}"
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    our, their = statistics.median(ours), statistics.median(theirs)
    if case.first:
        figures = f"{our * 1000:.0f} ms against {their * 1000:.0f}"
    else:
        tokens = case.batch * case.new
        figures = f"{tokens / our:.0f} tok/s against {tokens / their:.0f}"
    ratio = statistics.median(ratios)
    return {
        "aim": aim,
        "value": round(ratio, 2),
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}; {figures}",
        "target": "report" if target is None else f">= {target}",
        "ok": None if target is None else ratio >= target,
    }


def rotated(arms: list[str], turn: int) -> list[str]:
    """The order of a turn: each engine comes first, second and so on equally often."""
    shift = turn % len(arms)
    return arms[shift:] + arms[:shift]
