"""The long tail: models without a fused decoder go through the transformers library, over our cache, or are refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.config import read_json
from tandem_server.engine.native.library import load_library, read_library_config, shaped
from tandem_server.engine.native.library_decoder import LibraryDecoder
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.wire import RunnerSpec

pytestmark = pytest.mark.torch

MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
TOGETHER = {
    "olmo2": ("Olmo2ForCausalLM", {}),
    "granite": ("GraniteForCausalLM", {"logits_scaling": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4}),
    "cohere": ("CohereForCausalLM", {"logit_scale": 0.5}),
    "starcoder2": ("Starcoder2ForCausalLM", {"sliding_window": 30}),
    "glm": ("GlmForCausalLM", {"head_dim": 16}),
}
ONE_BY_ONE = {
    "gpt2": ("GPT2LMHeadModel", {}),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek": ("DeepseekV3ForCausalLM", MLA),
}
"""Matrices that are no linear layers: their rows are not known to be independent of each other."""


def load(folder, **settings):
    spec = RunnerSpec(
        "m", str(folder), "", **{"dtype": "Float32", "slots": 3, "threads": 1, "context": 400, **settings}
    )
    return load_generator(spec, lambda *_: None)


@torch.inference_mode()
def compare(decoder, folder, reference=None) -> None:
    """Prompts in chunks, then single tokens of all slots, against the library's logits for the whole text."""
    reference = reference or AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    prompts = [[5, 9, 33, 7], [(i * 37) % 150 + 3 for i in range(100)], [11]]
    texts = [[*prompt, 4, 17, 99, 120] for prompt in prompts]
    count = decoder.cache.slot_blocks
    for slot in range(3):
        decoder.cache.admit(slot, range(slot * count, (slot + 1) * count))
    rows: list[list[torch.Tensor]] = [[], [], []]
    for slot, prompt in enumerate(prompts):
        for start in range(0, len(prompt), 40):
            last = decoder.prefill(slot, torch.tensor(prompt[start : start + 40]), start)
        rows[slot].append(decoder.head(last)[0])
    for step in range(4):
        lengths = [len(prompt) + step + 1 for prompt in prompts]
        positions, places = (torch.tensor(numbers) for numbers in decoder.cache.locate(lengths))
        tokens = torch.tensor([text[length - 1] for text, length in zip(texts, lengths, strict=True)])
        logits = decoder.head(decoder.decode(tokens, positions, places, lengths))
        for slot in range(3):
            rows[slot].append(logits[slot])
    for text, prompt, own in zip(texts, prompts, rows, strict=True):
        wanted = reference(torch.tensor([text])).logits[0, len(prompt) - 1 :]
        assert (torch.stack(own) - wanted).abs().max() <= 1e-4
        assert wanted.argmax(-1).tolist() == torch.stack(own).argmax(-1).tolist()


@pytest.mark.parametrize("case", TOGETHER | ONE_BY_ONE)
def test_same_logits_as_the_library_alone(case, make_checkpoint):
    architecture, overrides = (TOGETHER | ONE_BY_ONE)[case]
    folder = make_checkpoint(architecture, **overrides)
    engine = load(folder)
    compare(engine._step._decoder, folder)
    way = "together" if case in TOGETHER else "one by one"
    assert f"{architecture} goes through the transformers library, its rows {way}" in engine.loaded.engine_reason
    parameters = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).num_parameters()
    assert engine.loaded.parameters == parameters
    assert engine.loaded.weight_bytes >= 4 * parameters


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("Gemma2ForCausalLM", {"sliding_window": 30, "head_dim": 16, "attn_logit_softcapping": 0.5}),
        ("GptOssForCausalLM", {"sliding_window": 30, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_caps_windows_and_sinks_come_through_the_interface(architecture, overrides, make_checkpoint):
    """Families that have a fused decoder as well: what they ask of attention is the most there is."""
    folder = make_checkpoint(architecture, **overrides)
    config = read_library_config(folder, read_json(folder / "config.json"), architecture)
    weights = load_library(folder, config, torch.float32, torch.device("cpu"), set())
    decoder = LibraryDecoder(shaped(config, weights), weights, 3, 400)
    assert [layer.window for layer in decoder.config.layer_configs] == [30, None]
    assert not decoder.config.plain_attention
    compare(decoder, folder)


def test_what_the_fused_decoder_lacks_is_computed_by_the_library(make_checkpoint):
    folder = make_checkpoint("LlamaForCausalLM", hidden_act="relu")
    engine = load(folder)
    compare(engine._step._decoder, folder)
    assert "hidden_act relu is not supported" in engine.loaded.engine_reason


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "recurrent state outside of attention"),
        ({"architectures": ["JambaForCausalLM"], "model_type": "jamba"}, "recurrent state outside of attention"),
        ({"architectures": ["RecurrentGemmaForCausalLM"]}, "recurrent state outside of attention"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"architectures": ["BloomForCausalLM"]}, "computes its attention in a way of its own"),
        ({"architectures": ["NobodysForCausalLM"], "auto_map": {}}, "has no such model that makes text"),
        ({"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text"}, "layer_types name chunked_attention"),
        ({"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_size": "x"}, "its config.json cannot"),
        ({"architectures": ["Olmo2ForCausalLM"], "quantization_config": {"quant_method": "awq"}}, "quantised (awq)"),
    ],
)
def test_what_attention_alone_does_not_tell_is_refused_by_name(config, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError) as caught:
        load(tmp_path)
    assert said in str(caught.value)
    assert "set engine: VLLM" in str(caught.value)
    assert config["architectures"][0] in str(caught.value) or "quantised" in said


def test_a_model_whose_text_may_not_come_in_parts_is_found_out(make_checkpoint, monkeypatch):
    """Convolutions over earlier tokens, let past the first look: the check at load sees other logits."""
    folder = make_checkpoint("Lfm2ForCausalLM", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    with pytest.raises(LoadError, match="its layer_types name conv"):
        load(folder)
    monkeypatch.setattr("tandem_server.engine.native.library.LAYER_TYPES", ("conv", "full_attention"))
    with pytest.raises(LoadError, match=r"Lfm2ForCausalLM is not supported .* when its text comes in parts"):
        load(folder)


def test_a_window_that_does_not_reach_the_interface_is_refused(make_checkpoint, monkeypatch):
    folder = make_checkpoint("Starcoder2ForCausalLM", sliding_window=300)
    attention = transformers.models.starcoder2.modeling_starcoder2.ALL_ATTENTION_FUNCTIONS

    def without_window(implementation, default):
        chosen = type(attention).get_interface(attention, implementation, default)
        return lambda *args, sliding_window=None, **kwargs: chosen(*args, **kwargs)

    monkeypatch.setattr(attention, "get_interface", without_window, raising=False)
    with pytest.raises(LoadError, match="its sliding window does not reach the attention interface"):
        load(folder)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_every_tensor_is_accounted_for(change, make_checkpoint, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(make_checkpoint("Olmo2ForCausalLM"), folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        tensors.pop(name)
    elif change == "unexpected":
        name = "model.layers.0.self_attn.q_proj.lora"
        tensors[name] = torch.zeros(2, 2)
    else:
        tensors[name] = tensors[name][:5].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=name):
        load(folder)


def test_lengths_at_which_positions_change_bound_the_context(make_checkpoint):
    """The library chooses longrope's frequencies for a whole batch; up to the original context there is one choice."""
    folder = make_checkpoint(
        "Olmo2ForCausalLM",
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 200,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
        },
    )
    assert load(folder, context=None).loaded.context_limit == 200


def test_the_library_is_imported_only_by_who_needs_it(make_checkpoint):
    """Its import takes seconds, and fused models and the fork server can do without."""
    program = (
        "import sys; from tandem_server.engine import runner; from tandem_server.engine.wire import RunnerSpec\n"
        f"spec = RunnerSpec('m', {str(make_checkpoint('LlamaForCausalLM'))!r}, '', dtype='Float32', threads=1)\n"
        "runner.load_generator(spec, lambda *_: None)\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'transformers'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (
            {"quantization": "Int8"},
            "quantization Int8 is for models with a fused decoder, and Olmo2ForCausalLM has none",
        ),
        ({"shared_cache": True}, "kvCache.policy Shared is for models with a fused decoder, and Olmo2ForCausalLM has"),
    ],
)
def test_what_only_the_fused_decoder_can_do_is_refused_by_name(wish, words, make_checkpoint):
    with pytest.raises(LoadError, match=words) as refused:
        load(make_checkpoint("Olmo2ForCausalLM"), **wish)
    assert "engine: VLLM" in str(refused.value)
