"""Whole models by our compiled kernels on a CPU: nearness to float32, bits that nothing changes, steps of one call."""

import pytest
import torch
from family_cases import SPARSE
from test_cpu_kernels import NARROW, TOLERANCE, error_share, load
from test_native_parity import decode, library_model, prefill

from tandem_server.engine.native.blocks import BlockPool, near_home
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.cpu_decoder import CpuDecoder
from tandem_server.engine.native.cpu_linear import CompiledLinear, compiled_linear
from tandem_server.engine.native.cpu_step import CpuStep, Drawn
from tandem_server.engine.native.needs import needs_of
from tandem_server.engine.native.plan import BAD_ROW, Admission, Chunk, Decode, StepPlan
from tandem_server.engine.native.quantized import Layout
from tandem_server.engine.native.weights import load_decoder
from tandem_server.engine.wire import Sampling

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("a_compiler")]


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
