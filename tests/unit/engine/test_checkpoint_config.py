"""Config files: what is read, and what is refused by name. No torch."""

import json

import pytest

from tandem_api.fit_steps import step_bytes
from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.config import DecoderConfig, NotFused, read_decoder_config
from tandem_server.engine.native.rope_config import RopeConfig
from tandem_server.engine.native.shape import step_shape_of

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


def rope_of(config: DecoderConfig) -> RopeConfig:
    (rope,) = {layer.rope for layer in config.layer_configs}
    return rope


def test_defaults(tmp_path):
    config = read(tmp_path)
    assert (config.kv_heads, config.head_size, config.qkv_width, config.dtype) == (4, 16, 192, "bfloat16")
    assert rope_of(config) == RopeConfig(theta=10000.0)
    assert config.cache_bytes_per_token(2) == 2 * 2 * 4 * 16 * 2


def test_rope_is_read_in_both_styles(tmp_path):
    classic = read(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3})
    newer = read(tmp_path, rope_theta=None, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    assert rope_of(classic) == rope_of(newer) == RopeConfig("llama3", 5e5, 1.0, 8.0, 1.0, 4.0, 8192)
    linear = read(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert rope_of(linear) == RopeConfig("linear", 1e4, factor=2.0)


def test_gemma_3_positions_in_both_styles(tmp_path):
    """One base for each kind of layer; what is scaled are the layers that see everything."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    common = {"architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "num_hidden_layers": 6, "sliding_window": 512}
    classic = read(tmp_path, **common, rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=scaling)
    newer = read(
        tmp_path,
        **common,
        rope_parameters={
            "full_attention": {**scaling, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert classic.layer_configs == newer.layer_configs
    assert [layer.window for layer in classic.layer_configs] == [512] * 5 + [None]
    assert classic.layer_configs[0].rope == RopeConfig(theta=1e4)
    assert classic.layer_configs[5].rope == RopeConfig("linear", 1e6, factor=8.0)
    assert classic.tied


def test_lengths_that_scaled_positions_reach(tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert read(tmp_path, rope_scaling=yarn).context_limit == 16384
    assert read(tmp_path, rope_scaling={"type": "dynamic", "factor": 4.0}).context_limit == 4096
    phi = {
        "architectures": ["Phi3ForCausalLM"],
        "max_position_embeddings": 16384,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    }
    config = read(tmp_path, **phi)
    assert (config.context_limit, config.rope_switch(4096), config.rope_switch(4097)) == (16384, None, 4096)
    assert rope_of(config).attention_factor == pytest.approx((1 + 2 / 12) ** 0.5)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["LlamaForCausalLM"], "sliding_window": 1024}, [None, None]),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 1024}, [1024, 1024]),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, [None, None]),
        ({"architectures": ["MistralForCausalLM"]}, [4096, 4096]),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 1024, "use_sliding_window": False}, [None, None]),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            [None, 9],
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            [9, None],
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 7}, [7, None]),
        ({"architectures": ["Phi3ForCausalLM"], "sliding_window": 7}, [7, 7]),
    ],
)
def test_which_layers_have_a_window(tmp_path, changes, windows):
    config = read(tmp_path, **changes)
    assert [layer.window for layer in config.layer_configs] == windows
    assert config.context_limit == 4096, "a window bounds what a token sees, not the context"


def test_memory_of_what_families_add(tmp_path):
    """A window has a mask of its own, and capped scores are held in float32; a large context shows both."""
    plain = read(tmp_path, architectures=["MistralForCausalLM"], sliding_window=None)
    some = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "head_dim": 16}
    windowed = read(tmp_path, architectures=["Qwen2ForCausalLM"], **some)
    capped = read(tmp_path, architectures=["Gemma2ForCausalLM"], head_dim=16, sliding_window=None)
    sizes = [step_bytes(step_shape_of(config), 4, 256, 4, 100_000) for config in (plain, windowed, capped)]
    assert sizes[1] - sizes[0] == (256 + 4) * 100_000 * 9
    assert sizes[2] - sizes[0] == 4 * 64 * 100_000 * 4 * 4
    assert len({config.cache_bytes_per_token(4) for config in (plain, windowed, capped)}) == 1


def test_experts_are_counted_under_either_name(tmp_path):
    qwen = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    for key in ("num_experts", "num_local_experts"):
        experts = read(tmp_path, **qwen, **{key: 5}).experts
        assert experts
        assert (experts.count, experts.chosen, experts.intermediate) == (5, 2, 32)
    assert read(tmp_path, **qwen).intermediate == 32
    assert read(tmp_path, **qwen, mlp_only_layers=[0]).intermediate == 96


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": []}, "config.json names no architecture"),
        ({"architectures": ["BertModel"]}, "BertModel makes embeddings"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised (gptq)"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "set engine: VLLM"),
        ({"rope_scaling": {"rope_type": "mrope", "factor": 4.0}}, "rope type mrope is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope type yarn needs 'factor'"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "longrope has 1 factors, heads that turn 16 need 8",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "rope type llama3 needs 'low_freq_factor'"),
        ({"hidden_act": "relu"}, "hidden_act relu is not supported"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"partial_rotary_factor": 0.07}, "partial_rotary_factor"),
        (
            {"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention", "chunked_attention"]},
            "layer_types names chunked_attention",
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"]}, "must name each of the 2 layers"),
        ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}, "set task to Embed"),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok 3 is more than the 2 experts",
        ),
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


def test_an_architecture_without_a_fused_decoder_is_told_apart(tmp_path):
    """It may go another way, unlike a number that is impossible."""
    with pytest.raises(NotFused, match="MysteryForCausalLM has no fused decoder"):
        read(tmp_path, architectures=["MysteryForCausalLM"])
    with pytest.raises(NotFused, match="hidden_act relu"):
        read(tmp_path, hidden_act="relu")
    with pytest.raises(LoadError) as caught:
        read(tmp_path, vocab_size=0)
    assert not isinstance(caught.value, NotFused)
