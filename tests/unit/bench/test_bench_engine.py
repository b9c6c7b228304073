"""The pure parts of `bench/engine.py`: what is measured, in which order, and the rows that come of it."""

import pytest

from tandem_testing.bench import load

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


AIMED = {batch: Case("random-135M", "bfloat16", batch, 32, 128, True) for batch in (1, 8, 32)}


@pytest.mark.parametrize(
    ("batch", "peer", "target"),
    [
        (1, "vLLM", ">= 1.0"), (8, "vLLM", ">= 1.0"), (32, "vLLM", ">= 1.0"),
        (1, "transformers", "report"), (8, "transformers", ">= 3.0"), (32, "transformers", ">= 3.0"),
        (1, "memory", ">= 0.8"), (1, "Tandem Int8", ">= 1.6"), (1, "Tandem Int4", ">= 2.2"),
        (8, "Tandem Int8", "report"), (32, "Tandem Int4", "report"),
    ],
)  # fmt: skip
def test_the_aims_are_those_of_the_135M_shape_in_bfloat16(batch, peer, target):
    both = [Measured(AIMED[batch], "Tandem", 1, 1.0), Measured(AIMED[batch], peer, 1, 1.0)]
    (row,) = results.rows(both)
    assert row["target"] == target
    assert row["ok"] == {"report": None, ">= 1.0": True, ">= 0.8": True}.get(target, False)
    (elsewhere,) = results.rows([Measured(RATE, "Tandem", 1, 1.0), Measured(RATE, peer, 1, 1.0)])
    assert (elsewhere["target"], elsewhere["ok"]) == ("report", None)


def test_quantised_weights_are_compared_with_our_own_and_the_limit_is_a_share():
    measured = [Measured(AIMED[1], "Tandem", 1, 3.0), Measured(AIMED[1], "Tandem Int4", 1, 1.0)]
    limit, quantised = results.rows([*measured, Measured(AIMED[1], "memory", 1, 2.7)])[::-1]
    assert quantised["aim"].endswith("Int4 weights: times faster than our bfloat16")
    assert (quantised["value"], quantised["ok"]) == (3.0, True)
    assert limit["aim"].endswith("share of what the memory's bandwidth allows")
    assert (limit["value"], limit["ok"]) == (0.9, True)


def test_what_a_step_reads_leaves_the_embedding_table_out(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 100, "hidden_size": 8}')
    assert load("engine").step_bytes(5000, tmp_path) == 3400


def test_everyone_is_first_equally_often():
    arms = ["a", "b", "c"]
    orders = [results.rotated(arms, turn) for turn in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("greedy", [True, False])
def test_random_weights_are_only_sampled(greedy):
    engine = load("engine")
    found = engine.cases("m", "float32", greedy)
    assert {case.batch for case in found if not case.first} == {1, 8, 32}
    assert {case.sampled for case in found} == ({True, False} if greedy else {True})
    assert [case.first for case in found].count(True) == 1


def test_all_engines_get_the_same_prompts_and_each_round_others():
    engine = load("engine")
    job = engine.job_of(RATE, 1, 3072)
    assert job == engine.job_of(RATE, 1, 3072)
    assert job != engine.job_of(RATE, 2, 3072)
    assert (len(job.prompts), {len(prompt) for prompt in job.prompts}, job.new) == (8, {32}, 64)
    assert job.seed is not None
    assert engine.job_of(Case("m", "float32", 1, 32, 64, False), 1, 3072).seed is None
    assert engine.job_of(RATE, 0, 3072).new == 8, "warming up"
