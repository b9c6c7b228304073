"""The simulated half of bench/residency.py: both policies see the same trace, and differ where they should."""

import math

import pytest

from tandem_testing.bench import load

trace = load("residency_trace")
Arrival = trace.Arrival


def test_a_trace_is_the_same_for_a_seed_and_by_zipfs_law():
    arrivals = trace.trace(3, requests=4000)
    assert arrivals == trace.trace(3, requests=4000)
    counts = sorted((sum(one.model == model for one in arrivals) for model in range(trace.MODELS)), reverse=True)
    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.2)
    assert counts[0] / counts[3] == pytest.approx(4.0, rel=0.25)


@pytest.mark.parametrize("policy", [trace.ours, trace.ollama])
def test_what_fits_is_loaded_once(policy):
    arrivals = [Arrival(10.0 * number, number % trace.ROOM) for number in range(60)]
    assert policy(arrivals, [math.inf] * trace.MODELS) == (60 - trace.ROOM) / 60


@pytest.mark.parametrize("policy", [trace.ours, trace.ollama])
def test_a_keep_alive_that_ends_costs_a_load(policy):
    arrivals = [Arrival(100.0 * number, 0) for number in range(10)]
    assert policy(arrivals, [30.0] * trace.MODELS) == 0.0
    assert policy(arrivals, [300.0] * trace.MODELS) == 0.9


def test_ours_keeps_the_recently_used_and_theirs_the_last_by_name():
    arrivals = [Arrival(10.0 * number, model) for number, model in enumerate([0, 1, 2, 0, 3, 0])]
    keeps = [300.0] * trace.MODELS
    assert trace.ours(arrivals, keeps) == 2 / 6
    assert trace.ollama(arrivals, keeps) == 1 / 6
