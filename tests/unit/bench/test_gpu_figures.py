"""The arithmetic of `bench/gpu.py`: bounds, and what is read from a timeline."""

import pytest

from tandem_server.engine.wire import StepRecord
from tandem_testing.bench import load

figures = load("gpu_figures")


def test_the_shapes_have_the_sizes_of_their_names():
    assert figures.SHAPES["0.6B"].multiplied == pytest.approx(0.6e9, rel=0.02)
    assert figures.SHAPES["8B"].multiplied == pytest.approx(7.6e9, rel=0.02)
    assert figures.SHAPES["8B"].token_bytes == 36 * 2 * 8 * 128 * 2


def test_few_requests_are_bound_by_bytes_and_many_by_products():
    shape, roof = figures.SHAPES["8B"], figures.Roof(4e12, 8e14)
    alone = figures.decode_bound(shape, 1, 1000, roof)
    assert alone == pytest.approx((2 * shape.multiplied + 1000 * shape.token_bytes) / 4e12)
    assert figures.decode_bound(shape, 4096, 0, roof) == pytest.approx(2 * shape.multiplied * 4096 / 8e14)


def test_a_timeline_becomes_medians_of_the_steps_that_decode_everything():
    def record(step: int, decoded: int, prompt: int, began: float) -> StepRecord:
        host = (began - 0.003, began - 0.002, began, began + 0.001, began + 0.004, began + 0.005)
        return StepRecord(step, decoded, prompt, False, host, (began, began + 0.003, began + 0.004))

    records = [record(1, 0, 64, 0.0), record(2, 2, 0, 1.0), record(3, 2, 0, 1.006), record(4, 1, 0, 1.1)]
    steps = figures.steps_of(records, 2)
    assert steps.device == pytest.approx(0.004)
    assert steps.host == pytest.approx(0.003 + 0.001)
    assert steps.period == pytest.approx(0.006)
    assert (steps.prefill, steps.prompt_tokens) == (pytest.approx(0.004), 64)
    assert figures.predicted_gain(steps) == pytest.approx(0.006 / 0.004)
    with pytest.raises(ValueError, match="5 requests"):
        figures.steps_of(records, 5)
