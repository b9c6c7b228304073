"""The pure parts of `bench/engine.py`: what is measured, in which order, and the rows that come of it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"


def load(name: str) -> ModuleType:
    """A script of the folder `bench`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


results = load("engine_results")
Case, Measured = results.Case, results.Measured
RATE = Case("m", "float32", 8, 32, 64, True)
FIRST = Case("m", "float32", 1, 256, 1, True)


def test_ratios_are_taken_round_by_round():
    seconds = {"Tandem": [1.0, 2.0, 4.0], "vLLM": [2.0, 2.0, 2.0]}
    measured = [
        Measured(RATE, arm, number, each) for arm, rounds in seconds.items() for number, each in enumerate(rounds)
    ]
    (row,) = results.rows(measured)
    assert row["aim"] == "m, float32, 8 at once, sampled: token rate, times faster than vLLM"
    assert row["value"] == 1.0
    assert row["spread"] == "0.50 to 2.00; 256 tok/s against 256"
    assert (row["target"], row["ok"]) == ("report", None)


def test_times_to_the_first_token_are_better_when_they_are_shorter():
    (row,) = results.rows([Measured(FIRST, "Tandem", 1, 0.02), Measured(FIRST, "transformers", 1, 0.03)])
    assert row["aim"] == "m, float32: first token of a prompt of 256, times faster than transformers"
    assert (row["value"], row["spread"]) == (1.5, "1.50 to 1.50; 20 ms against 30")


def test_each_peer_has_a_row_and_one_that_is_not_there_has_none():
    measured = [Measured(RATE, arm, 1, 1.0) for arm in ("Tandem", "vLLM", "transformers")]
    assert [row["aim"].split()[-1] for row in results.rows(measured)] == ["transformers", "vLLM"]
    assert results.rows([Measured(RATE, "Tandem", 1, 1.0)]) == []
    assert results.rows([Measured(RATE, "Tandem", 1, 1.0), Measured(RATE, "vLLM", 2, 1.0)]) == []


def test_everyone_is_first_equally_often():
    arms = ["a", "b", "c"]
    orders = [results.rotated(arms, turn) for turn in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("greedy", [True, False])
def test_random_weights_are_only_sampled(monkeypatch, greedy):
    monkeypatch.syspath_prepend(str(BENCH))
    engine = load("engine")
    found = engine.cases("m", "float32", greedy)
    assert {case.batch for case in found if not case.first} == {1, 8, 32}
    assert {case.sampled for case in found} == ({True, False} if greedy else {True})
    assert [case.first for case in found].count(True) == 1


def test_all_engines_get_the_same_prompts_and_each_round_others(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    engine = load("engine")
    job = engine.job_of(RATE, 1, 3072)
    assert job == engine.job_of(RATE, 1, 3072)
    assert job != engine.job_of(RATE, 2, 3072)
    assert (len(job.prompts), {len(prompt) for prompt in job.prompts}, job.new) == (8, {32}, 64)
    assert job.seed is not None
    assert engine.job_of(Case("m", "float32", 1, 32, 64, False), 1, 3072).seed is None
