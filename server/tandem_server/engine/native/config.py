"""Reads a checkpoint's `config.json` into the few numbers that the fused decoder is built from.

First step of a load. `families.py` says how architectures differ, `rope_config.py` reads the positions.
Whatever the decoder would compute wrongly is refused here by name, never approximated.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.families import DEFAULTS, FAMILIES, Family
from tandem_server.engine.native.rope_config import LAYER_TYPES, RopeConfig, read_ropes

DECODERS = tuple(FAMILIES)
ENCODERS = ("BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel", "DistilBertModel")
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_NULL_MEANS_NONE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


class NotFused(LoadError):
    """The fused decoder does not compute this; the text says what of it."""


@dataclass(frozen=True)
class LayerConfig:
    """What may differ from layer to layer."""

    window: int | None
    """A token sees so many tokens, itself included; None: all before it."""
    rope: RopeConfig
    sparse: bool = False
    """Its feed-forward is a mixture of experts."""


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts."""

    count: int
    chosen: int
    """Experts that each token goes through."""
    intermediate: int
    normalised: bool
    """The weights of the chosen ones sum to 1."""
    limit: float | None = None
    """gpt-oss: gate and up are clamped to it."""
    alpha: float = 1.0
    """gpt-oss: slope of the gate's sigmoid."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder of the Llama kind."""

    architecture: str
    vocabulary: int
    hidden: int
    intermediate: int
    """Width of the feed-forward: the dense layers' where there are any, else one expert's."""
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_limit: int
    """Longest context in tokens: what the positions allow."""
    norm_epsilon: float
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    dtype: str
    """Number format of the file: float32, bfloat16 or float16."""
    layer_configs: tuple[LayerConfig, ...]
    family: Family = FAMILIES["LlamaForCausalLM"]
    activation: str = "silu"
    attention_scale: float | None = None
    """Factor of the scores; None: one over the root of the head's size."""
    attention_cap: float | None = None
    """Scores are squeezed into plus and minus this."""
    logit_cap: float | None = None
    experts: ExpertsConfig | None = None

    @property
    def qkv_width(self) -> int:
        """Columns of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_size

    @property
    def plain_attention(self) -> bool:
        """Whether torch's attention computes the scores; caps and sinks it does not know."""
        return self.attention_cap is None and not self.family.sinks

    def cache_bytes_per_token(self, element_bytes: int) -> int:
        """Memory of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * element_bytes

    def rope_switch(self, context: int) -> int | None:
        """Sequences longer than this turn by other frequencies from their first token on (longrope); None: none do."""
        lengths = [rope.original_context for rope in self._ropes() if rope.kind == "longrope"]
        return min(lengths) if lengths and min(lengths) < context else None

    def _ropes(self) -> set[RopeConfig]:
        return {layer.rope for layer in self.layer_configs}


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
    """The class that the checkpoint names. Raises LoadError where it names none."""
    names = raw.get("architectures") or []
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise LoadError("config.json names no architecture (architectures)")
    return names[0]


def refuse_quantised(raw: dict[str, Any]) -> None:
    """Raises LoadError where `config.json` says that the weights are quantised."""
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unnamed")
        raise LoadError(
            f"the weights are quantised ({method}); the native engine reads float32, bfloat16 and float16 only: "
            "use the unquantised checkpoint, or set engine: VLLM"
        )


def read_decoder_config(folder: Path) -> DecoderConfig:
    """The decoder that `folder/config.json` describes.

    Raises:
        NotFused: the fused decoder does not compute such a model, though another way might.
        LoadError: a number is missing or impossible, or the weights are quantised.
    """
    raw = read_json(folder / "config.json")
    architecture = architecture_of(raw)
    if architecture in ENCODERS:
        raise LoadError(f"{architecture} makes embeddings, not text: set task to Embed or Auto")
    refuse_quantised(raw)
    if architecture not in DECODERS:
        raise NotFused(f"{architecture} has no fused decoder")
    family = FAMILIES[architecture]
    raw = _with_defaults(raw, family)
    if raw.get("use_bidirectional_attention"):
        raise LoadError("config.json: use_bidirectional_attention is set, which is for embeddings: set task to Embed")
    activation = str(raw[family.activation])
    if activation not in ACTIVATIONS:
        raise NotFused(f"{family.activation} {activation} is not supported; {', '.join(ACTIVATIONS)} are")
    heads = _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    hidden = _positive(raw, "hidden_size")
    if heads % kv_heads:
        raise LoadError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    head_size = _positive(raw, "head_dim", hidden // heads)
    positions = _positive(raw, "max_position_embeddings")
    layers = _layers(raw, family, positions, head_size)
    experts = _experts(raw, family)
    dense = experts is None or not all(layer.sparse for layer in layers)
    scalar = raw.get("query_pre_attn_scalar")
    return DecoderConfig(
        architecture=architecture,
        vocabulary=_positive(raw, "vocab_size"),
        hidden=hidden,
        intermediate=_positive(raw, "intermediate_size") if dense or experts is None else experts.intermediate,
        layers=len(layers),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        context_limit=max(_reach(layer.rope, positions) for layer in layers),
        norm_epsilon=float(raw["rms_norm_eps"]),
        tied=bool(raw["tie_word_embeddings"]),
        qkv_bias=_bias(raw, family.qkv_bias),
        output_bias=_bias(raw, family.output_bias),
        mlp_bias=_bias(raw, family.mlp_bias),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        layer_configs=layers,
        family=family,
        activation=ACTIVATIONS[activation],
        attention_scale=float(scalar) ** -0.5 if scalar else None,
        attention_cap=_cap(raw, "attn_logit_softcapping"),
        logit_cap=_cap(raw, "final_logit_softcapping"),
        experts=experts,
    )


def _with_defaults(raw: dict[str, Any], family: Family) -> dict[str, Any]:
    """`raw` with the architecture's defaults; null is as good as absent, but where it says that there is none."""
    said = {key: value for key, value in raw.items() if value is not None or key in _NULL_MEANS_NONE}
    return {**DEFAULTS, **family.defaults, **said}


def _positive(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or value < 1:
        raise LoadError(f"config.json: {key} is {value!r}, where a positive whole number is needed")
    return value


def _bias(raw: dict[str, Any], rule: bool | str) -> bool:
    return bool(raw.get(rule, False)) if isinstance(rule, str) else rule


def _cap(raw: dict[str, Any], key: str) -> float | None:
    value = raw.get(key)
    return float(value) if value else None


def _reach(rope: RopeConfig, positions: int) -> int:
    """Longest context: yarn's configurations tell its factor and often leave the positions at what was before it."""
    return max(positions, int(rope.original_context * rope.factor)) if rope.kind == "yarn" else positions


def _layers(raw: dict[str, Any], family: Family, positions: int, head_size: int) -> tuple[LayerConfig, ...]:
    count = _positive(raw, "num_hidden_layers")
    full, local = read_ropes(raw, positions, family.local_rope)
    for rope in (full, local):
        rotated = rope.rotated_size(head_size)
        if rotated < 2 or rotated % 2 or rope.rotated > 1:
            raise LoadError(f"partial_rotary_factor {rope.rotated} of heads of {head_size} is no even number of them")
        for factors in (rope.short_factors, rope.long_factors):
            if rope.kind == "longrope" and len(factors) != rotated // 2:
                raise LoadError(f"longrope has {len(factors)} factors, heads that turn {rotated} need {rotated // 2}")
    types = _layer_types(raw, family, count)
    window = raw.get("sliding_window")
    if not isinstance(window, int) or window < 1 or (family.window_switch and not raw["use_sliding_window"]):
        window = None
    sparse = _sparse_layers(raw, family, count)
    return tuple(
        LayerConfig(window, local, is_sparse) if kind == "sliding_attention" else LayerConfig(None, full, is_sparse)
        for kind, is_sparse in zip(types, sparse, strict=True)
    )


def _layer_types(raw: dict[str, Any], family: Family, count: int) -> list[str]:
    """ "full_attention" or "sliding_attention" for each layer."""
    if family.windows != "typed":
        return ["sliding_attention" if family.windows == "all" else "full_attention"] * count
    types = raw.get("layer_types")
    if types is None:
        first, pattern = raw["max_window_layers"], raw.get("sliding_window_pattern")
        sliding = [(i + 1) % pattern != 0 if pattern else i >= first for i in range(count)]
        return ["sliding_attention" if slides else "full_attention" for slides in sliding]
    if not isinstance(types, list) or len(types) != count:
        raise LoadError(f"config.json: layer_types must name each of the {count} layers")
    unknown = sorted({str(kind) for kind in types} - set(LAYER_TYPES))
    if unknown:
        raise NotFused(f"config.json: layer_types names {unknown[0]}, which is not supported")
    return types


def _sparse_layers(raw: dict[str, Any], family: Family, count: int) -> list[bool]:
    if family.experts is None:
        return [False] * count
    dense, every = raw.get("mlp_only_layers") or [], int(raw.get("decoder_sparse_step") or 1)
    return [index not in dense and (index + 1) % every == 0 for index in range(count)]


def _experts(raw: dict[str, Any], family: Family) -> ExpertsConfig | None:
    if family.experts is None:
        return None
    given = "num_local_experts" if "num_local_experts" in raw else "num_experts"
    count, chosen = _positive(raw, given), _positive(raw, "num_experts_per_tok")
    if chosen > count:
        raise LoadError(f"config.json: num_experts_per_tok {chosen} is more than the {count} experts")
    return ExpertsConfig(
        count=count,
        chosen=chosen,
        intermediate=_positive(raw, "moe_intermediate_size", raw.get("intermediate_size")),
        normalised=bool(raw["norm_topk_prob"]),
        limit=float(raw["swiglu_limit"]) if family.clamped else None,
        alpha=float(raw["swiglu_alpha"]) if family.clamped else 1.0,
    )
