"""The fused decoder computes what transformers computes: logits within 1e-4 in fp32, the same greedy tokens."""

import random
from pathlib import Path

import pytest
import torch
from engine_fakes import scattered
from family_cases import CASES, SPARSE
from transformers import AutoModelForCausalLM

from tandem_server.engine.native.blocks import BLOCK, BlockPool, near_home
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.cpu_decoder import CpuDecoder, why_not
from tandem_server.engine.native.cpu_linear import compiled_linear
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.quantized import UNQUANTIZED, Layout
from tandem_server.engine.native.weights import load_decoder

pytestmark = pytest.mark.torch


def open_decoder(
    folder: Path, slots: int = 3, context: int = 1000, fragmented: bool = False, kernels: str = "torch"
) -> Decoder:
    config, compiled = read_decoder_config(folder), kernels == "compiled"
    if compiled:
        assert why_not(config) is None
    layout = Layout(*[compiled_linear(torch.float32)] * 2) if compiled else UNQUANTIZED
    weights = load_decoder(Checkpoint(folder, lambda *_: None), config, torch.float32, torch.device("cpu"), layout)
    decoder = (CpuDecoder if compiled else Decoder)(config, weights, slots, context)
    choose = scattered(random.Random(5)) if fragmented else near_home
    pool = BlockPool(slots * decoder.cache.slot_blocks, choose)
    for slot in range(slots):
        count = decoder.cache.slot_blocks
        decoder.cache.admit(slot, pool.share(slot, (), count).blocks)
    return decoder


def decode(decoder: Decoder, tokens: list[int], lengths: list[int]) -> torch.Tensor:
    """Hidden states of one more token a slot, `lengths` counting it."""
    positions, places = decoder.cache.locate(lengths)
    return decoder.decode(torch.tensor(tokens), torch.tensor(positions), torch.tensor(places), lengths)


def prefill(decoder: Decoder, slot: int, tokens: list[int], chunk: int) -> torch.Tensor:
    """Logits after the last token, the prompt going in by chunks."""
    for start in range(0, len(tokens), chunk):
        hidden = decoder.prefill(slot, torch.tensor(tokens[start : start + chunk]), start)
    return decoder.head(hidden)[0]


def library_model(folder: Path):
    """transformers' own, with the attention that knows caps and sinks."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_same_logits_and_greedy_tokens_as_transformers(case, kernels, make_checkpoint):
    architecture, overrides = CASES[case]
    folder = make_checkpoint(architecture, **overrides)
    if case == "llama-sharded":
        assert len(list(folder.glob("*.safetensors"))) > 1
    reference = library_model(folder)
    decoder = open_decoder(folder, kernels=kernels)
    prompts = [[5, 9, 33, 7], [(i * 37) % 150 + 3 for i in range(150)], [11]]
    rows = [[prefill(decoder, slot, prompt, 64)] for slot, prompt in enumerate(prompts)]
    answers = [[int(logits[0].argmax())] for logits in rows]
    for _ in range(12):
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        logits = decoder.head(decode(decoder, [a[-1] for a in answers], lengths))
        for slot, answer in enumerate(answers):
            rows[slot].append(logits[slot])
            answer.append(int(logits[slot].argmax()))
    for prompt, answer, own in zip(prompts, answers, rows, strict=True):
        wanted = reference(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        assert (torch.stack(own) - wanted).abs().max() <= 1e-4
        assert wanted.argmax(-1).tolist() == answer
    assert len({tuple(answer) for answer in answers}) == 3, "the three prompts must not all give the same answer"


WINDOWED = {
    "mistral": ("MistralForCausalLM", {"sliding_window": 100}),
    "gemma2": ("Gemma2ForCausalLM", {"sliding_window": 100, "head_dim": 16}),
    "gpt-oss": ("GptOssForCausalLM", {"sliding_window": 100, "head_dim": 16, **SPARSE}),
}


@pytest.mark.parametrize("case", WINDOWED)
@torch.inference_mode()
def test_windows_over_several_spans(case, kernels, make_checkpoint, monkeypatch):
    """Long sequences, whole spans of which no window sees, beside short ones: in every order of reading."""
    folder = make_checkpoint(WINDOWED[case][0], **WINDOWED[case][1])
    decoder = open_decoder(folder, slots=4, kernels=kernels)
    fragmented = open_decoder(folder, slots=4, fragmented=True, kernels=kernels)
    decoder.prove_span()
    fragmented.prove_span()
    prompt = [(i * 37) % 150 + 3 for i in range(900)]
    reference = library_model(folder)(torch.tensor([[*prompt, 4]])).logits[0]
    for lengths in ([900, 700, 650, 800], [900, 3, 0, 600]):
        results = []
        for one in (decoder, fragmented):
            for slot, length in enumerate(lengths):
                if length:
                    logits = prefill(one, slot, prompt[:length], 256)
                    assert (logits - reference[length - 1]).abs().max() <= 1e-4
            for uneven in (0, 1000):
                monkeypatch.setattr("tandem_server.engine.native.attention.UNEVEN", uneven)
                results.append(decode(one, [4] * 4, [n + 1 if n else 0 for n in lengths]))
        taking_part = [slot for slot, length in enumerate(lengths) if length]
        for result in results:
            assert torch.equal(result[taking_part], results[0][taking_part])
        assert (decoder.head(results[0])[0] - reference[900]).abs().max() <= 1e-4


@torch.inference_mode()
def test_chunked_prefill_equals_prefill_at_once(kernels, make_checkpoint):
    decoder = open_decoder(make_checkpoint("LlamaForCausalLM"), kernels=kernels)
    prompt = [(i * 37) % 150 + 3 for i in range(700)]
    at_once = prefill(decoder, 0, prompt, 700)
    for chunk in (1, 17, 256, 512):
        # To our kernels each token is a row that depends on no other row, be it of a prompt.
        tolerance = 0 if kernels == "compiled" else 1e-4
        assert (prefill(decoder, 1, prompt, chunk) - at_once).abs().max() <= tolerance


@torch.inference_mode()
def test_slots_beyond_one_span_and_uneven_lengths(make_checkpoint, monkeypatch):
    """A long sequence beside short ones is attended to apart: bit for bit the same as together."""
    folder = make_checkpoint("LlamaForCausalLM")
    reference = library_model(folder)
    decoder = open_decoder(folder, slots=4)
    prompt = [(i * 37) % 150 + 3 for i in range(900)]
    for slot, prompt_length in enumerate((900, 3, 5, 7)):
        prefill(decoder, slot, prompt[:prompt_length], 256)
    tokens, lengths = [4, 4, 4, 4], [901, 4, 6, 8]
    uneven = decode(decoder, tokens, lengths)
    monkeypatch.setattr("tandem_server.engine.native.attention.UNEVEN", 1000)
    together = decode(decoder, tokens, lengths)
    assert torch.equal(uneven, together)
    wanted = reference(torch.tensor([[*prompt, 4]])).logits[0, -1]
    assert (decoder.head(uneven)[0] - wanted).abs().max() <= 1e-4


@torch.inference_mode()
def test_where_the_blocks_lie_changes_no_bit(kernels, make_checkpoint, monkeypatch):
    """Blocks at home, as a run elsewhere, and scattered over the pool: prefill, decode together, decode one by one."""
    folder = make_checkpoint("LlamaForCausalLM")
    home, fragmented, moved = (
        open_decoder(folder, slots=4, fragmented=fragmented, kernels=kernels) for fragmented in (False, True, False)
    )
    count = moved.cache.slot_blocks
    for slot in range(4):
        moved.cache.admit(slot, range((3 - slot) * count, (4 - slot) * count))
    assert BLOCK * count == 1024
    assert not fragmented.cache.at_home([1, 1, 1, 1])
    assert not moved.cache.at_home([1, 1, 1, 1])
    prompt = [(i * 37) % 150 + 3 for i in range(900)]
    for lengths in ([600, 610, 520, 590], [700, 640, 3, 0]):
        results: list[list[torch.Tensor]] = []
        busy = sum(n > 0 for n in lengths)
        for decoder in (home, fragmented, moved):
            rows = [prefill(decoder, slot, prompt[:n], 256) for slot, n in enumerate(lengths) if n]
            for step in range(1, 4):
                rows.append(decode(decoder, [4, 5, 6, 7], [n + step if n else 0 for n in lengths])[:busy])
            with monkeypatch.context() as patch:
                patch.setattr("tandem_server.engine.native.attention.UNEVEN", 0)
                rows.append(decode(decoder, [4, 5, 6, 7], [n + 4 if n else 0 for n in lengths])[:busy])
            results.append(rows)
        for other in results[1:]:
            for one, same in zip(results[0], other, strict=True):
                assert torch.equal(one, same)
