"""From what clients saw in each round to the rows of `bench/long_prompt.py`: the pure part."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from engine_results import OURS

VLLM = "vLLM"
AS_OURS = "vLLM with our budget"
"""The same server, told to compute as few tokens a step as we do."""
AIMED = {VLLM: 1.0}


@dataclass(frozen=True)
class Seen:
    """What the clients of a server saw in some stretch of time, in seconds.

    Attributes:
        firsts: from each short request to its first token.
        gaps: between the tokens of those that had been running before.
    """

    firsts: tuple[float, ...]
    gaps: tuple[float, ...]


@dataclass(frozen=True)
class Round:
    """One server's turn: without the long prompt, and while it was read, which took `prefill` seconds."""

    arm: str
    number: int
    before: Seen
    during: Seen
    prefill: float


def gaps_within(pieces: Sequence[float], began: float, ended: float) -> tuple[float, ...]:
    """Seconds between pieces of an answer, of all gaps that reach into the stretch; such a one counts whole.

    So a server that tells nothing at all during the stretch shows its one long pause.
    """
    return tuple(later - earlier for earlier, later in pairwise(pieces) if later > began and earlier < ended)


def rows(rounds: list[Round]) -> list[dict[str, Any]]:
    """The aim first, then what stands behind it; ratios against peers are taken round by round, medians of rounds."""
    peers = sorted({each.arm for each in rounds} - {OURS})
    made = []
    for title, figure in FIGURES.items():
        for peer in peers:
            made += _against(title, figure, rounds, peer)
    for arm in (OURS, *peers):
        made += _slowed(rounds, arm)
    return made


def _first(seen: Seen) -> float:
    return statistics.median(seen.firsts)


FIGURES: dict[str, Callable[[Round], float]] = {
    "time to first token of a short request while the long prompt is read": lambda one: _first(one.during),
    "the slowest of them": lambda one: max(one.during.firsts),
    "time to first token of a short request without the long prompt": lambda one: _first(one.before),
    "mean time between tokens of running requests while the long prompt is read": lambda one: _mean(one.during),
    "the longest of them": lambda one: max(one.during.gaps),
    "mean time between tokens of running requests without the long prompt": lambda one: _mean(one.before),
    "the long prompt itself, to its first token": lambda one: one.prefill,
}
"""What is set against the peers, by the name that the table has."""
TITLE_AIMED = next(iter(FIGURES))


def _mean(seen: Seen) -> float:
    return statistics.fmean(seen.gaps)


def _against(
    title: str, figure: Callable[[Round], float], rounds: Iterable[Round], peer: str
) -> Iterable[dict[str, Any]]:
    ours = {each.number: figure(each) for each in rounds if each.arm == OURS}
    theirs = {each.number: figure(each) for each in rounds if each.arm == peer}
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return
    ratios = [theirs[number] / ours[number] for number in shared]
    value = statistics.median(ratios)
    target = AIMED.get(peer) if title == TITLE_AIMED else None
    our, their = (statistics.median(found[number] for number in shared) for found in (ours, theirs))
    yield {
        "aim": f"{title}, times shorter than {peer}",
        "value": round(value, 2),
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}; {_shown(our)} against {_shown(their)}",
        "target": "report" if target is None else f">= {target}",
        "ok": None if target is None else value >= target,
    }


def _slowed(rounds: Iterable[Round], arm: str) -> Iterable[dict[str, Any]]:
    """How many times longer running requests wait for a token because of the long prompt."""
    own = [each for each in rounds if each.arm == arm]
    if not own:
        return
    ratios = [_mean(each.during) / _mean(each.before) for each in own]
    before, during = (
        statistics.median(map(_mean, seen)) for seen in zip(*((e.before, e.during) for e in own), strict=True)
    )
    yield {
        "aim": f"{arm}: time between tokens of running requests while the long prompt is read / without it",
        "value": round(statistics.median(ratios), 1),
        "spread": f"{min(ratios):.1f} to {max(ratios):.1f}; {_shown(during)} against {_shown(before)}",
        "target": "report",
        "ok": None,
    }


def _shown(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1000:.0f} ms"
