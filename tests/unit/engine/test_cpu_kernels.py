"""Our compiled kernels on a CPU: the product in all its forms, and machines without them."""

import os
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from tandem_server.engine.native import cpu_compiler
from tandem_server.engine.native.affinity import own_cpus
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.cpu_compiler import NotCompiled
from tandem_server.engine.native.cpu_layout import cpu_layout
from tandem_server.engine.native.cpu_linear import CompiledLinear, compiled_linear
from tandem_server.engine.native.cpu_quantized import CompiledInt4, CompiledInt8, compiled_int4, compiled_int8
from tandem_server.engine.native.linear import row_invariant_sizes
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.quantized import (
    GROUP,
    UNQUANTIZED,
    dequantize_int4,
    dequantize_int8,
    quantize_int4,
    quantize_int8,
)
from tandem_server.engine.wire import RunnerSpec

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("a_compiler")]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def error_share(y: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((y.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("outputs", [16, 96, 112, 101])
@torch.inference_mode()
def test_products_are_as_torchs_for_all_numbers_of_rows_and_panels(outputs, dtype):
    """An even and an odd number of panels, a last one that is not full; fewer rows than a tile, a tile, several."""
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, 64).to(dtype), torch.randn(outputs).to(dtype)
    for rows, own_bias in product((1, 2, 3, 5, 7, 8, 9, 33), (None, bias)):
        layer = CompiledLinear(weight, own_bias)
        x, residual = torch.randn(rows, 64).to(dtype), torch.randn(rows, outputs).to(dtype)
        wanted = x.float() @ weight.float().t() + (0 if own_bias is None else own_bias.float())
        assert error_share(layer(x), wanted) < TOLERANCE[dtype]
        assert error_share(layer.floats(x), wanted) < 1e-5
        assert error_share(layer.onto(residual, x), wanted + residual.float()) < TOLERANCE[dtype]
        if outputs == 96:
            gate, up = wanted.chunk(2, -1)
            assert error_share(layer.gated(x), F.silu(gate) * up) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.inference_mode()
def test_every_number_of_rows_gives_the_same_bits(dtype):
    layer = CompiledLinear(torch.randn(112, 576).to(dtype), None)
    x = torch.randn(40, 576).to(dtype)
    whole, gated, floats = layer(x), layer.onto(x[:, :112], x), layer.floats(x)
    for rows in range(1, 40):
        assert torch.equal(layer(x[:rows]), whole[:rows])
        assert torch.equal(layer.onto(x[:rows, :112], x[:rows]), gated[:rows])
        assert torch.equal(layer.floats(x[:rows]), floats[:rows])
    assert row_invariant_sizes([layer], 16, dtype) == (1, 2, 4, 8, 16)


NARROW = {
    CompiledInt8: lambda weight: dequantize_int8(*quantize_int8(weight)),
    CompiledInt4: lambda weight: dequantize_int4(*quantize_int4(weight)),
}
"""How each is restored."""


@pytest.mark.parametrize("make", NARROW)
@torch.inference_mode()
def test_narrow_weights_are_multiplied_exactly(make):
    """By the very numbers that they are restored to, but for the order of sums; no row's bits depend on another's."""
    torch.manual_seed(1)
    for outputs, inputs in ((96, 256), (101, 64), (112, 1120), (16, 32)):
        weight, bias = torch.randn(outputs, inputs).to(torch.bfloat16), torch.randn(outputs).to(torch.bfloat16)
        layer, x = make(weight, bias), torch.randn(150, inputs).to(torch.bfloat16)
        floats = layer.floats(x)
        assert error_share(floats, x.float() @ NARROW[make](weight).t() + bias.float()) < 1e-5
        for rows in (*range(1, 10), 33, 65, 150):
            assert torch.equal(layer.floats(x[:rows]), floats[:rows])


@pytest.mark.parametrize("make", NARROW)
@torch.inference_mode()
def test_narrow_weights_go_through_all_forms_of_the_product(make):
    weight = torch.randn(96, 128).to(torch.bfloat16)
    layer, x, residual = make(weight, None), torch.randn(9, 128).to(torch.bfloat16), torch.randn(9, 96)
    wanted, residual = x.float() @ NARROW[make](weight).t(), residual.to(torch.bfloat16)
    gate, up = wanted.chunk(2, -1)
    tolerance = TOLERANCE[torch.bfloat16]
    assert error_share(layer(x), wanted) < tolerance
    assert error_share(layer.onto(residual, x), wanted + residual.float()) < tolerance
    assert error_share(layer.gated(x), F.silu(gate) * up) < tolerance


@torch.inference_mode()
def test_each_input_meets_its_own_four_bits():
    """Every number of 0 to 15, in every place of a word and in each group; what rounding hides elsewhere shows here."""
    outputs, inputs = 16, 2 * GROUP
    weight = (torch.arange(outputs)[:, None] * 7 + torch.arange(inputs) * 3).remainder(16).float()
    weight[:, GROUP:] *= 0.25
    weight = weight.to(torch.bfloat16)
    restored = dequantize_int4(*quantize_int4(weight))
    assert {int(number) for number in quantize_int4(weight)[0].flatten()} == set(range(16))
    found = CompiledInt4(weight, None).floats(torch.eye(inputs, dtype=torch.bfloat16))
    assert torch.allclose(found, restored.t(), rtol=0, atol=1e-5)
    lost = CompiledInt4(weight, None).floats(torch.full((1, inputs), torch.nan, dtype=torch.bfloat16))
    assert bool(lost.isnan().all())


@pytest.mark.parametrize(("make", "kind"), [(compiled_int8, "Int8"), (compiled_int4, "Int4")])
def test_narrow_kernels_that_compute_something_else_are_not_used(make, kind, monkeypatch):
    make()
    exact = CompiledLinear.floats
    monkeypatch.setattr(CompiledLinear, "floats", lambda self, x: exact(self, x) * 1.05)
    with pytest.raises(NotCompiled, match=f"compiled kernel for {kind} gives other results than torch"):
        make()


@torch.inference_mode()
def test_what_is_no_number_stays_none():
    """A NaN must reach the logits, where it ends its request; large and infinite ones saturate as in torch."""
    weight = torch.eye(32).repeat(2, 1)
    for dtype in TOLERANCE:
        layer = CompiledLinear(weight.to(dtype), None)
        x = torch.zeros(2, 32, dtype=dtype)
        x[0, :6] = torch.tensor([100.0, -100.0, 1e30, -1e30, 0.0, -3.0])
        x[1, 3] = torch.nan
        gated = layer.gated(x).float()
        assert torch.allclose(gated[0], F.silu(x[0].float()) * x[0].float(), rtol=0.02, atol=1e-30)
        assert gated[1].isnan().any()
        assert layer(x)[1].isnan().any()


def load(folder, **settings):
    return load_generator(RunnerSpec("m", str(folder), "", slots=2, context=200, **settings), lambda *_: None)


def test_the_load_tells_whose_kernels_compute(make_checkpoint):
    folder = make_checkpoint("LlamaForCausalLM")
    assert "steps by compiled kernels" in load(folder, dtype="Float32", threads=1).loaded.engine_reason
    narrow = make_checkpoint("LlamaForCausalLM", hidden_size=32)
    reason = load(narrow, dtype="Float32", threads=1).loaded.engine_reason
    assert "steps by torch's operators, since our kernels do not know sizes that are no multiple of 16" in reason
    assert "no kernels for float16" in load(folder, dtype="Float16", threads=1).loaded.engine_reason


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """Nothing compiled yet, here and on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu_compiler.library_of.cache_clear()
    yield tmp_path / "cache" / "tandem" / "kernels"
    cpu_compiler.library_of.cache_clear()


def test_it_is_compiled_once_for_all_processes(fresh_cache, monkeypatch):
    cpu_compiler.kernels(torch.float32)
    (library,) = fresh_cache.iterdir()
    assert library.suffix == ".so"
    assert fresh_cache.stat().st_mode & 0o77 == 0, "nobody else may put a library there"
    cpu_compiler.library_of.cache_clear()
    monkeypatch.setattr(cpu_compiler, "_compile", lambda *_: pytest.fail("it was compiled again"))
    cpu_compiler.kernels(torch.float32)


def test_a_machine_without_a_compiler_computes_by_torch(fresh_cache, make_checkpoint, monkeypatch):
    monkeypatch.setenv("PATH", "")
    config = read_decoder_config(make_checkpoint("LlamaForCausalLM"))
    layout, reason = cpu_layout(config, torch.float32, 2, fused=True)
    assert layout is UNQUANTIZED
    assert reason == "steps by torch's operators: there is no C compiler"


def test_a_compiler_that_fails_is_told(fresh_cache, tmp_path, monkeypatch):
    (tmp_path / "cc").write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'cc: no room' >&2; exit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotCompiled, match="the C compiler failed: cc: no room"):
        cpu_compiler.kernels(torch.float32)


def test_kernels_that_compute_something_else_are_not_used(monkeypatch):
    monkeypatch.setattr(CompiledLinear, "floats", lambda self, x: self(x).float() + 1)
    with pytest.raises(NotCompiled, match="other results than torch"):
        compiled_linear(torch.float32)


@pytest.mark.parametrize("factor", [1, 10])
def test_clearly_slower_kernels_are_not_used(factor, make_checkpoint, monkeypatch):
    def timer(*arguments: object) -> float:
        return 1e-4 * (factor if arguments[-1] is CompiledLinear else 1)

    monkeypatch.setattr("tandem_server.engine.native.cpu_layout.time_largest_layer", timer)
    config = read_decoder_config(make_checkpoint("LlamaForCausalLM"))
    layout, reason = cpu_layout(config, torch.float32, 2, fused=True)
    assert (layout is UNQUANTIZED) == (factor == 10)
    assert ("1000 us, torch's 100 us" in reason) == (factor == 10)


def test_each_thread_gets_a_cpu_of_its_own_and_gives_it_back():
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("there is one CPU")

    def places() -> list[set[int]]:
        return [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]

    with own_cpus(len(before), caller=True):
        assert os.sched_getaffinity(0) == {min(before)}
        assert {frozenset({cpu}) for cpu in before} <= set(map(frozenset, places()))
    assert all(place == before for place in places())
    with own_cpus(len(before), caller=False):
        assert os.sched_getaffinity(0) == before
    with own_cpus(len(before) + 1, caller=True):
        assert os.sched_getaffinity(0) == before, "more threads than CPUs: the system knows better"
