"""The pure parts of `bench/long_prompt.py`: which pauses count, and the rows that come of it."""

import pytest

from tandem_testing.bench import load

figures = load("long_prompt_figures")
Round, Seen = figures.Round, figures.Seen


def turn(arm: str, number: int, first: float, *, gap: float = 0.2, prefill: float = 20.0) -> object:
    return Round(arm, number, Seen((0.01, 0.02, 0.03), (0.01, 0.01)), Seen((first, 3 * first, first), (gap,)), prefill)


def test_a_pause_that_reaches_into_the_stretch_counts_whole():
    pieces = [0.0, 1.0, 4.0, 4.5, 9.0]
    assert figures.gaps_within(pieces, 2.0, 4.2) == (3.0, 0.5)
    assert figures.gaps_within(pieces, 5.0, 8.0) == (4.5,), "nothing was told meanwhile"
    assert figures.gaps_within(pieces, 4.0, 4.5) == (0.5,)
    assert figures.gaps_within([1.0], 0.0, 5.0) == ()


def test_the_aim_stands_first_and_ratios_are_taken_round_by_round():
    rounds = [turn("Tandem", number, 1.0) for number in (1, 2, 3)]
    rounds += [turn("vLLM", 1, 0.5), turn("vLLM", 2, 2.0), turn("vLLM", 4, 9.0)]
    row = figures.rows(rounds)[0]
    assert row["aim"] == (
        "time to first token of a short request while the long prompt is read, times shorter than vLLM"
    )
    assert (row["value"], row["target"], row["ok"]) == (1.25, ">= 1.0", True)
    assert row["spread"] == "0.50 to 2.00; 1000 ms against 1250 ms"
    assert [row["ok"] for row in figures.rows(rounds)[1:]] == [None] * (len(figures.rows(rounds)) - 1)


@pytest.mark.parametrize(("theirs", "ok"), [(0.9, False), (1.0, True)])
def test_a_first_token_later_than_vllms_misses_the_aim(theirs, ok):
    assert figures.rows([turn("Tandem", 1, 1.0), turn("vLLM", 1, theirs)])[0]["ok"] is ok


def test_vllm_told_to_take_smaller_steps_is_only_reported():
    rounds = [turn("Tandem", 1, 1.0), turn(figures.AS_OURS, 1, 0.1)]
    assert {row["ok"] for row in figures.rows(rounds)} == {None}


def test_the_slowest_and_the_long_prompt_itself_are_told():
    rows = {row["aim"]: row for row in figures.rows([turn("Tandem", 1, 1.0), turn("vLLM", 1, 2.0, prefill=10.0)])}
    assert rows["the slowest of them, times shorter than vLLM"]["spread"].endswith("3000 ms against 6000 ms")
    assert rows["the long prompt itself, to its first token, times shorter than vLLM"]["value"] == 0.5


def test_how_much_running_requests_are_slowed_is_told_for_each_server():
    rows = figures.rows([turn("Tandem", 1, 1.0, gap=0.2), turn("vLLM", 1, 1.0, gap=0.5)])[-2:]
    assert [(row["aim"].split(":")[0], row["value"]) for row in rows] == [("Tandem", 20.0), ("vLLM", 50.0)]
    assert rows[0]["spread"] == "20.0 to 20.0; 200 ms against 10 ms"


def test_without_a_peer_only_our_own_slowing_is_told():
    (row,) = figures.rows([turn("Tandem", 1, 1.0)])
    assert row["aim"].startswith("Tandem: time between tokens")
