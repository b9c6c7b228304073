"""From the seconds of each job to the rows of the result: the pure part of `bench/engine.py`."""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

OURS = "Tandem"


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


def rows(measured: list[Measured]) -> list[dict[str, Any]]:
    """One row for each case and peer: our figure over the peer's, taken round by round, and both figures' medians.

    A ratio over 1 means that we are faster, for rates and for times. Cases in which we or a peer failed are left out.
    """
    found: dict[Case, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for each in measured:
        found[each.case][each.arm][each.round] = each.seconds
    made = []
    for case, arms in found.items():
        for peer in sorted(name for name in arms if name != OURS):
            shared = sorted(arms[OURS].keys() & arms[peer].keys())
            if shared:
                made.append(_row(case, peer, [arms[OURS][n] for n in shared], [arms[peer][n] for n in shared]))
    return made


def _row(case: Case, peer: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    our, their = statistics.median(ours), statistics.median(theirs)
    if case.first:
        figures = f"{our * 1000:.0f} ms against {their * 1000:.0f}"
    else:
        tokens = case.batch * case.new
        figures = f"{tokens / our:.0f} tok/s against {tokens / their:.0f}"
    return {
        "aim": f"{case.title()}, times faster than {peer}",
        "value": round(statistics.median(ratios), 2),
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}; {figures}",
        "target": "report",
        "ok": None,
    }


def rotated(arms: list[str], turn: int) -> list[str]:
    """The order of a turn: each engine comes first, second and so on equally often."""
    shift = turn % len(arms)
    return arms[shift:] + arms[:shift]
