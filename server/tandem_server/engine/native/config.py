"""Reads a checkpoint's `config.json` into the few numbers that the fused decoder is built from.

First step of a load. Understands the classic keys (`rope_theta`, `rope_scaling`) and the newer `rope_parameters`.
Whatever the decoder would compute wrongly is refused here by name, never approximated.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_server.engine.interface import LoadError

DECODERS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ENCODERS = ("BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel", "DistilBertModel")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions: `kind` is default, linear or llama3; the rest as the checkpoint's keys of these names."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder of the Llama kind."""

    architecture: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_limit: int
    """Longest context in tokens: what the positions, or a sliding window that is not implemented, allow."""
    norm_epsilon: float
    rope: RopeConfig
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str
    """Number format of the file: float32, bfloat16 or float16."""
    window_limited: bool = False
    """`context_limit` is a sliding window's length, not the positions'."""

    @property
    def qkv_width(self) -> int:
        """Columns of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_size

    def cache_bytes_per_token(self, element_bytes: int) -> int:
        """Memory of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * element_bytes


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from `file`. Raises LoadError naming the file when it is missing or something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"the checkpoint has no {file.name} in {file.parent}; point the source at its folder") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{file} holds {type(value).__name__} where an object is expected")
    return value


def architecture_of(raw: dict[str, Any]) -> str:
    """The class that the checkpoint names. Raises LoadError for one that no part of this engine computes."""
    names = raw.get("architectures") or []
    name = names[0] if isinstance(names, list) and names else ""
    if name not in DECODERS + ENCODERS:
        raise LoadError(
            f"architecture {name or '(none named in config.json)'} is not supported by the native engine; "
            f"it computes {', '.join(DECODERS)} and, for embeddings, {', '.join(ENCODERS)}"
        )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unnamed")
        raise LoadError(
            f"the weights are quantised ({method}); the native engine computes float32, bfloat16 and float16 only: "
            "use the unquantised checkpoint"
        )
    return str(name)


def read_decoder_config(folder: Path) -> DecoderConfig:
    """The decoder that `folder/config.json` describes. Raises LoadError for anything it cannot compute exactly."""
    raw = read_json(folder / "config.json")
    architecture = architecture_of(raw)
    if architecture not in DECODERS:
        raise LoadError(f"{architecture} makes embeddings, not text: set task to Embed or Auto")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise LoadError(f"hidden_act {activation} is not supported; silu is")
    heads = _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    hidden = _positive(raw, "hidden_size")
    if heads % kv_heads:
        raise LoadError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    positions = _positive(raw, "max_position_embeddings", 2048)
    window = _window(raw, architecture)
    attention_bias = bool(raw.get("attention_bias", False)) and architecture != "MistralForCausalLM"
    return DecoderConfig(
        architecture=architecture,
        vocabulary=_positive(raw, "vocab_size"),
        hidden=hidden,
        intermediate=_positive(raw, "intermediate_size"),
        layers=_positive(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=_positive(raw, "head_dim", hidden // heads),
        context_limit=min(positions, window or positions),
        norm_epsilon=float(raw.get("rms_norm_eps", 1e-6)),
        rope=_rope(raw),
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
        output_bias=attention_bias and architecture != "Qwen2ForCausalLM",
        mlp_bias=bool(raw.get("mlp_bias", False)) and architecture == "LlamaForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        window_limited=window is not None and window < positions,
    )


def _positive(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or value < 1:
        raise LoadError(f"config.json: {key} is {value!r}, where a positive whole number is needed")
    return value


def _window(raw: dict[str, Any], architecture: str) -> int | None:
    """Length of a sliding window that is in force, or None."""
    window = raw.get("sliding_window")
    if not isinstance(window, int) or window < 1:
        return None
    if architecture.startswith("Qwen") and not raw.get("use_sliding_window", False):
        return None
    if architecture == "LlamaForCausalLM":
        return None
    return window


def _rope(raw: dict[str, Any]) -> RopeConfig:
    scaling: dict[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if float(scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise LoadError("partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind not in ("linear", "llama3"):
        raise LoadError(f"rope type {kind} is not supported; default, linear and llama3 are")
    try:
        factor = float(scaling["factor"])
        if kind == "linear":
            return RopeConfig("linear", theta, factor)
        return RopeConfig(
            "llama3",
            theta,
            factor,
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise LoadError(f"config.json: rope type {kind} needs {error}") from None
