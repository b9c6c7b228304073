"""Our compiled kernels on a CPU: the product in all its forms, whole models in bfloat16, and machines without them."""

import os
import shutil
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from family_cases import SPARSE
from test_native_parity import decode, library_model, prefill

from tandem_server.engine.native import cpu_compiler
from tandem_server.engine.native.affinity import own_cpus
from tandem_server.engine.native.blocks import BlockPool, near_home
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.cpu_compiler import NotCompiled
from tandem_server.engine.native.cpu_decoder import CpuDecoder
from tandem_server.engine.native.cpu_layout import cpu_layout
from tandem_server.engine.native.cpu_linear import CompiledLinear, compiled_linear
from tandem_server.engine.native.cpu_quantized import CompiledInt4, CompiledInt8, compiled_int4, compiled_int8
from tandem_server.engine.native.cpu_step import CpuStep, Drawn
from tandem_server.engine.native.linear import row_invariant_sizes
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.needs import needs_of
from tandem_server.engine.native.plan import BAD_ROW, Admission, Chunk, Decode, StepPlan
from tandem_server.engine.native.quantized import (
    GROUP,
    UNQUANTIZED,
    Layout,
    dequantize_int4,
    dequantize_int8,
    quantize_int4,
    quantize_int8,
)
from tandem_server.engine.native.weights import load_decoder
from tandem_server.engine.wire import RunnerSpec, Sampling

pytestmark = pytest.mark.torch

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def a_compiler():
    if not any(map(shutil.which, cpu_compiler.COMPILERS)):
        pytest.skip("there is no C compiler")


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


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        ("Qwen3ForCausalLM", {"head_dim": 128}),
        ("MistralForCausalLM", {"sliding_window": 40, "head_dim": 64, "hidden_size": 256}),
        ("Gemma2ForCausalLM", {"sliding_window": 40, "head_dim": 256}),
        ("Gemma3ForCausalLM", {"sliding_window": 40, "head_dim": 32}),
        ("MixtralForCausalLM", SPARSE),
        ("GptOssForCausalLM", {"sliding_window": 40, "head_dim": 64, **SPARSE}),
    ],
)
@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_the_librarys(architecture, overrides, make_checkpoint):
    """Logits along the same text, against the float32 model: ours may not be farther off than torch's bfloat16."""
    folder = make_checkpoint(architecture, dtype="bfloat16", **overrides)
    config = read_decoder_config(folder)
    layout = Layout(*[compiled_linear(torch.bfloat16)] * 2)
    weights = load_decoder(Checkpoint(folder, lambda *_: None), config, torch.bfloat16, torch.device("cpu"), layout)
    decoder = CpuDecoder(config, weights, 2, 400)
    pool = BlockPool(2 * decoder.cache.slot_blocks, near_home)
    for slot in range(2):
        decoder.cache.admit(slot, pool.share(slot, (), decoder.cache.slot_blocks).blocks)
    text = [(i * 37) % 150 + 3 for i in range(170)]
    own = [prefill(decoder, 0, text[:150], 64)]
    for length in range(151, 170):
        own.append(decoder.head(decode(decoder, [text[length - 1], 0], [length, 0]))[0])
    exact = library_model(folder)
    wanted = exact(torch.tensor([text])).logits[0, 149:169]
    theirs = exact.to(torch.bfloat16)(torch.tensor([text])).logits[0, 149:169].float()
    assert error_share(torch.stack(own), wanted) <= 1.2 * error_share(theirs, wanted)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("LlamaForCausalLM", {"head_dim": 48, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1}),
        ("Qwen3ForCausalLM", {"head_dim": 16, "num_attention_heads": 50, "num_key_value_heads": 1}),
        ("MistralForCausalLM", {"sliding_window": 150, "head_dim": 64}),
        ("Gemma2ForCausalLM", {"sliding_window": 150, "head_dim": 32}),
        ("GptOssForCausalLM", {"sliding_window": 40, "head_dim": 64, **SPARSE}),
    ],
)
@torch.inference_mode()
def test_a_rows_bits_do_not_depend_on_what_it_attends_beside(architecture, overrides, dtype, make_checkpoint):
    """However a prompt is cut, and where its last tokens come one by one, with NaN in all that nobody wrote.

    Heads of an odd number of panels, more queries a key head than a tile has, windows that begin within a chunk.
    """
    folder = make_checkpoint(architecture, dtype=str(dtype).removeprefix("torch."), **overrides)
    config = read_decoder_config(folder)
    layout = Layout(*[compiled_linear(dtype)] * 2)
    weights = load_decoder(Checkpoint(folder, lambda *_: None), config, dtype, torch.device("cpu"), layout)
    text, found = [(i * 37) % 150 + 3 for i in range(330)], []
    for size in (330, 300, 129, 64, 7):
        decoder = CpuDecoder(config, weights, 1, 400)
        pool = BlockPool(decoder.cache.slot_blocks, near_home)
        decoder.cache.admit(0, pool.share(0, (), decoder.cache.slot_blocks).blocks)
        decoder.cache.pool.fill_(torch.nan)
        logits = prefill(decoder, 0, text if size == 330 else text[:300], size)
        for length in range(301, 331) if size != 330 else ():
            logits = decoder.head(decode(decoder, [text[length - 1]], [length]))[0]
        found.append(logits)
    assert bool(found[0].isfinite().all())
    assert all(torch.equal(logits, found[0]) for logits in found)


@pytest.mark.parametrize("make", NARROW)
@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        # All experts for each row: a choice between equal ones would turn on what rounding changes.
        ("MixtralForCausalLM", {"num_local_experts": 3, "num_experts_per_tok": 3}),
        ("Gemma2ForCausalLM", {}),
    ],
)
@torch.inference_mode()
def test_narrow_weights_in_experts_and_between_norms(make, architecture, overrides, make_checkpoint):
    """A model of narrow weights says what one of the restored weights says, but for rounding these to bfloat16."""
    folder = make_checkpoint(architecture, dtype="bfloat16", **overrides)
    config, text = read_decoder_config(folder), [(i * 37) % 150 + 3 for i in range(150)]

    def restored(weight: torch.Tensor, bias: torch.Tensor | None) -> CompiledLinear:
        return CompiledLinear(NARROW[make](weight).to(torch.bfloat16), bias)

    said = []
    for held in (make, restored):
        layout, checkpoint = Layout(held, CompiledLinear), Checkpoint(folder, lambda *_: None)
        weights = load_decoder(checkpoint, config, torch.bfloat16, torch.device("cpu"), layout)
        decoder = CpuDecoder(config, weights, 2, 200)
        pool = BlockPool(2 * decoder.cache.slot_blocks, near_home)
        for slot in range(2):
            decoder.cache.admit(slot, pool.share(slot, (), decoder.cache.slot_blocks).blocks)
        first = [prefill(decoder, slot, text[: 150 - slot], 70) for slot in range(2)]
        said.append(torch.cat([torch.stack(first), decoder.head(decode(decoder, [7, 9], [151, 150]))]))
    assert error_share(said[0], said[1]) < 0.05


def load(folder, **settings):
    return load_generator(RunnerSpec("m", str(folder), "", slots=2, context=200, **settings), lambda *_: None)


def drawn(step: CpuStep, samplings: list[Sampling], steps: int = 40) -> tuple[list[dict[int, int]], int]:
    """Tokens of so many decode steps of requests beside each other, and how many of them were one call."""
    blocks, prompt, needs = step._decoder.cache.slot_blocks, [5, 9, 33, 7], needs_of(samplings)
    step._checked, calls = True, 0
    admitted = tuple(
        Admission(slot, own, prompt, blocks=tuple(range(slot * blocks, (slot + 1) * blocks)))
        for slot, own in enumerate(samplings)
    )
    slots = range(len(samplings))
    chunks = tuple(Chunk(slot, 0, prompt, True) for slot in slots)
    plan = StepPlan(0, admitted, (), chunks, tuple((slot, 4) for slot in slots), needs=needs)
    made = [step.compute(plan).to_host().tokens]
    for number in range(1, steps):
        rows = [slot for slot in slots if slot == 0 or number % 3]  # the others rest now and then
        positions = {slot: 4 + sum(slot in tokens for tokens in made) for slot in rows}
        decode = tuple(Decode(slot, position - 1) for slot, position in positions.items())
        output = step.compute(StepPlan(number, (), decode, (), tuple(positions.items()), needs=needs))
        calls += isinstance(output, Drawn)
        made.append(output.to_host().tokens)
    return made, calls


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma2ForCausalLM"])
def test_a_step_that_is_one_call_draws_what_its_parts_would(architecture, dtype, make_checkpoint):
    """Scaled embeddings and capped logits included; a request that the kernel cannot draw takes the step apart."""
    engine = load(make_checkpoint(architecture, dtype=dtype.lower()), dtype=dtype, threads=1)
    step = engine._step
    assert isinstance(step, CpuStep)
    usual = [Sampling(temperature=0.0), Sampling(temperature=1.3, top_k=30, seed=8)]
    fused, calls = drawn(step, usual)
    assert calls == 39
    parts = step._decoder.head(step._hidden[:2])
    assert torch.equal(step._logits[0], parts[0]), "which way a step takes changes no bit of a row"
    step._is_fused = False
    assert drawn(step, usual) == (fused, 0)
    step._is_fused = True
    assert len({tokens[1] for tokens in fused if 1 in tokens}) > 5
    for own in (
        Sampling(typical_p=0.5),
        Sampling(repetition_penalty=1.2),
        Sampling(logprobs=2),
        Sampling(min_tokens=3),
    ):
        apart, calls = drawn(step, [usual[0], own])
        assert calls == 0
        assert [tokens[0] for tokens in apart] == [tokens[0] for tokens in fused]


def test_a_row_without_numbers_ends_alone_in_one_call(make_checkpoint):
    engine = load(make_checkpoint("LlamaForCausalLM"), dtype="Float32", threads=1)
    greedy = [Sampling(temperature=0.0)] * 2
    drawn(engine._step, greedy, steps=2)
    engine._step._decoder.cache.pool[:, :, : engine._step._decoder.capacity] = torch.nan  # the first slot's
    needs = needs_of(greedy)
    plan = StepPlan(2, (), (Decode(0, 5), Decode(1, 5)), (), ((0, 6), (1, 6)), needs=needs)
    output = engine._step.compute(plan)
    assert isinstance(output, Drawn)
    assert output.to_host().tokens[0] == BAD_ROW
    assert output.to_host().tokens[1] >= 0


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
