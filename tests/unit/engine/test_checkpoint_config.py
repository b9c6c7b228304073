"""Config files: what is read, and what is refused by name. No torch."""

import json

import pytest

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.config import RopeConfig, architecture_of, read_decoder_config

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read(tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **changes}))
    return read_decoder_config(tmp_path)


def test_defaults(tmp_path):
    config = read(tmp_path)
    assert (config.kv_heads, config.head_size, config.qkv_width, config.dtype) == (4, 16, 192, "bfloat16")
    assert config.rope == RopeConfig(theta=10000.0)
    assert config.cache_bytes_per_token(2) == 2 * 2 * 4 * 16 * 2


def test_rope_is_read_in_both_styles(tmp_path):
    classic = read(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3}).rope
    newer = read(tmp_path, rope_theta=None, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}).rope
    assert classic == newer == RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 8192)
    assert read(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2.0}).rope == RopeConfig("linear", 1e4, 2.0)


@pytest.mark.parametrize(
    ("changes", "limit", "limited"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 1024}, 1024, True),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, 4096, False),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 8192}, 4096, False),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024, "use_sliding_window": False}, 4096, False),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024, "use_sliding_window": True}, 1024, True),
    ],
)
def test_a_sliding_window_bounds_the_context(tmp_path, changes, limit, limited):
    config = read(tmp_path, **changes)
    assert (config.context_limit, config.window_limited) == (limit, limited)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported"),
        ({"architectures": []}, "none named in config.json"),
        ({"architectures": ["BertModel"]}, "BertModel makes embeddings"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised (gptq)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type yarn is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "rope type llama3 needs 'low_freq_factor'"),
        ({"hidden_act": "gelu"}, "hidden_act gelu is not supported"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(LoadError) as caught:
        read(tmp_path, **changes)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff"])
def test_a_broken_config_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(LoadError, match=r"config\.json"):
        read_decoder_config(tmp_path)


def test_supported_architectures_are_told():
    with pytest.raises(LoadError, match="Qwen3ForCausalLM"):
        architecture_of({"architectures": ["Mystery"]})
