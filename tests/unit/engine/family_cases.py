"""One small configuration for each way in which the fused families differ: (architecture, what it overrides)."""

ORIGINAL = 256
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 2000,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.5, 2.5, 4.0, 8.0],
}
GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
TYPES = ["sliding_attention", "full_attention"]
SPARSE = {"num_local_experts": 6, "num_experts_per_tok": 2}


def rope(**parameters) -> dict[str, object]:
    return {"rope_parameters": parameters}


CASES = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-linear": ("LlamaForCausalLM", rope(rope_type="linear", rope_theta=1e4, factor=4.0)),
    "llama-llama3": ("LlamaForCausalLM", rope(**LLAMA3)),
    "llama-dynamic": ("LlamaForCausalLM", rope(rope_type="dynamic", rope_theta=1e4, factor=4.0)),
    "llama-yarn": ("LlamaForCausalLM", rope(**YARN)),
    "llama-yarn-mscale": (
        "LlamaForCausalLM",
        rope(**YARN, truncate=False, beta_fast=20.0, beta_slow=2.0, mscale=1.2, mscale_all_dim=0.7),
    ),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-one-kv-head": ("LlamaForCausalLM", {"num_key_value_heads": 1, "head_dim": 32}),
    "llama-sharded": ("LlamaForCausalLM", {"shard": "60KB"}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None, "head_dim": 16}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 40}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "qwen3-window-biases": (
        "Qwen3ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 40,
            "layer_types": TYPES,
            "attention_bias": True,
            "head_dim": 16,
        },
    ),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 40}),
    "phi3-partial": ("Phi3ForCausalLM", rope(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        {"original_max_position_embeddings": 2000, **rope(**LONGROPE, partial_rotary_factor=0.5)},
    ),
    "gemma2": ("Gemma2ForCausalLM", {"sliding_window": 40, "head_dim": 16, "query_pre_attn_scalar": 24}),
    "gemma2-tight-caps": (
        "Gemma2ForCausalLM",
        {"sliding_window": 40, "head_dim": 16, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"sliding_window": 40, "head_dim": 16, "layer_types": TYPES, "rope_parameters": GEMMA3_ROPES},
    ),
    "mixtral": ("MixtralForCausalLM", SPARSE),
    "mixtral-window": ("MixtralForCausalLM", {"sliding_window": 40, "num_local_experts": 3, "num_experts_per_tok": 3}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "qwen3-moe-some-dense": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
    ),
    "gpt-oss": ("GptOssForCausalLM", {"head_dim": 16, "sliding_window": 40, "layer_types": TYPES, **SPARSE}),
    "gpt-oss-clamped": ("GptOssForCausalLM", {"head_dim": 16, "swiglu_limit": 0.3, **SPARSE}),
}
