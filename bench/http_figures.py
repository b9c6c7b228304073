"""From the seconds of each job to the rows of `bench/engine_http.py`: the pure part, with Ollama's figures to beat."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import engine_results
from engine_results import OURS, Case, Measured, name_of

WIRE = "our engine without HTTP"
"""The arm that is asked through the runner's wire: what it is faster by is what the front end costs."""
VLLM = "vLLM"
INT4 = name_of("Int4")
ELSEWHERE = "a machine of 2 cores with AVX2 only"


@dataclass(frozen=True)
class Rate:
    """Tokens a second, from the least to the most that was seen."""

    least: float
    most: float

    @property
    def middle(self) -> float:
        """Between the two."""
        return (self.least + self.most) / 2

    def __str__(self) -> str:
        return f"{self.least:g}" if self.least == self.most else f"{self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class There:
    """What was seen elsewhere, with as many requests at once: the 135M shape, 32 + 128 tokens, through HTTP."""

    ollama: dict[str, Rate]
    """By the arm of ours that it is set against: bf16 against bf16, q4_K_M against Int4."""
    vllm: Rate


THERE = {
    1: There({OURS: Rate(23, 29), INT4: Rate(63, 63)}, Rate(23, 26)),
    8: There({OURS: Rate(47, 55), INT4: Rate(108, 108)}, Rate(41, 43)),
    32: There({OURS: Rate(97, 97), INT4: Rate(84, 84)}, Rate(47, 52)),
}
"""Ollama at pull request 11863's commit with its asynchronous engine, and vLLM's CPU build in bf16; taken once."""
FORMATS = {OURS: ("bfloat16", "bf16"), INT4: ("Int4", "q4_K_M")}


def rows(measured: list[Measured]) -> list[dict[str, Any]]:
    """Ratios of this run, then ours over Ollama's on another machine, alone and each over vLLM on its own machine."""
    return [*engine_results.rows(measured, lambda case, peer: None), *_beside_ollama(measured)]


def _beside_ollama(measured: list[Measured]) -> Iterator[dict[str, Any]]:
    """Only for the shape that Ollama's figures are of."""
    cases = dict.fromkeys(each.case for each in measured)
    for case in (case for case in cases if case.aimed and not case.first and case.batch in THERE):
        for arm in THERE[case.batch].ollama:
            ours = _rates(measured, case, arm)
            if ours:
                yield _rate_row(case, arm, list(ours.values()))
                vllm = _rates(measured, case, VLLM)
                ratios = [ours[number] / vllm[number] for number in sorted(ours.keys() & vllm.keys())]
                if ratios:
                    yield _ratio_row(case, arm, ratios)


def _rates(measured: list[Measured], case: Case, arm: str) -> dict[int, float]:
    return {each.round: each.rate for each in measured if (each.case, each.arm) == (case, arm)}


def _rate_row(case: Case, arm: str, ours: list[float]) -> dict[str, Any]:
    """Met when our median is above the most that Ollama reached."""
    theirs, (our_format, their_format) = THERE[case.batch].ollama[arm], FORMATS[arm]
    ratios = [rate / theirs.most for rate in ours]
    value = statistics.median(ratios)
    return {
        "aim": f"{case.batch} at once: our {our_format} here over Ollama's {their_format} on {ELSEWHERE}",
        "value": round(value, 2),
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}; {statistics.median(ours):.0f} tok/s against {theirs}",
        "target": "> 1",
        "ok": value > 1,
    }


def _ratio_row(case: Case, arm: str, ratios: list[float]) -> dict[str, Any]:
    """What carries over from machine to machine, as far as vLLM does equally well on both."""
    there, (our_format, their_format) = THERE[case.batch], FORMATS[arm]
    theirs = there.ollama[arm]
    low, high = theirs.least / there.vllm.most, theirs.most / there.vllm.least
    return {
        "aim": f"{case.batch} at once: our {our_format} over vLLM's bf16 in this run, beside Ollama's {their_format} "
        f"over vLLM's bf16 on {ELSEWHERE}",
        "value": round(statistics.median(ratios), 2),
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}; Ollama {theirs.middle / there.vllm.middle:.2f} "
        f"({low:.2f} to {high:.2f}), where vLLM had no bf16 instructions",
        "target": "report",
        "ok": None,
    }
