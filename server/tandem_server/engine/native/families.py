"""Model families as data: in what each architecture of the fused decoder differs from Llama.

Read by `config.py` (numbers), `weights.py` (names of tensors) and, through them, the decoder, which knows no names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ExpertNames:
    """Where a mixture of experts keeps its tensors, below the layer's name."""

    router: str
    gate: str = ""
    """Name of one expert's matrix, `{}` standing for its number; "" where all experts are `stacked`."""
    up: str = ""
    down: str = ""
    stacked: str = ""
    """gpt-oss: folder of `[experts, inputs, outputs]` tensors with biases, gate and up taking turns."""


@dataclass(frozen=True)
class Family:
    """One architecture. A bias is there always (True), never (False), or where the key of that name says so."""

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    """Queries and keys are normalised head by head."""
    fused: bool = False
    """The checkpoint has `qkv_proj` and `gate_up_proj` instead of five matrices."""
    norm_offset: float = 0.0
    """Added to every norm's weight."""
    exact_norms: bool = False
    """Norms multiply in float32 and round once."""
    sandwich: bool = False
    """Attention and feed-forward have a norm behind them as well."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of their size."""
    activation: str = "hidden_act"
    """Key of the activation's name."""
    windows: str = "none"
    """Which layers have the sliding window: none, all, or those that `layer_types` names ("typed")."""
    window_switch: bool = False
    """`use_sliding_window` must be true for there to be a window."""
    local_rope: bool = False
    """Layers with a window have positions of their own."""
    sinks: bool = False
    """Each head has a logit that takes part in the softmax and stands for no value."""
    experts: ExpertNames | None = None
    clamped: bool = False
    """The experts' activation is gpt-oss' clamped SwiGLU."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What keys mean that `config.json` leaves out, where it is not as in `DEFAULTS`."""


DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_GEMMA: Mapping[str, Any] = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "max_position_embeddings": 8192,
}
_GEMMA2 = Family(
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    norm_offset=1.0,
    exact_norms=True,
    sandwich=True,
    scaled_embedding=True,
    activation="hidden_activation",
    windows="typed",
    defaults={**_GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "MistralForCausalLM": Family(windows="all", defaults={"sliding_window": 4096, "max_position_embeddings": 131_072}),
    "Qwen2ForCausalLM": Family(
        qkv_bias=True,
        windows="typed",
        window_switch=True,
        defaults={"sliding_window": 4096, "max_position_embeddings": 32_768},
    ),
    "Qwen3ForCausalLM": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        windows="typed",
        window_switch=True,
        defaults={"head_dim": 128, "sliding_window": 4096, "max_position_embeddings": 32_768},
    ),
    "Phi3ForCausalLM": Family(
        fused=True,
        windows="all",
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
    ),
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        norm_offset=1.0,
        exact_norms=True,
        sandwich=True,
        scaled_embedding=True,
        activation="hidden_activation",
        windows="typed",
        local_rope=True,
        defaults={
            **_GEMMA,
            "sliding_window_pattern": 6,
            "max_position_embeddings": 131_072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
    "MixtralForCausalLM": Family(
        windows="all",
        experts=ExpertNames(
            "block_sparse_moe.gate",
            "block_sparse_moe.experts.{}.w1",
            "block_sparse_moe.experts.{}.w3",
            "block_sparse_moe.experts.{}.w2",
        ),
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "max_position_embeddings": 131_072,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
    ),
    "Qwen3MoeForCausalLM": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        windows="all",
        window_switch=True,
        experts=ExpertNames(
            "mlp.gate", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"
        ),
        defaults={
            "sliding_window": 4096,
            "max_position_embeddings": 32_768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
    ),
    "GptOssForCausalLM": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        exact_norms=True,
        windows="typed",
        sinks=True,
        experts=ExpertNames("mlp.router", stacked="mlp.experts"),
        clamped=True,
        defaults={
            "attention_bias": True,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000.0,
            "max_position_embeddings": 131_072,
            "sliding_window": 128,
            "sliding_window_pattern": 2,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
    ),
}
