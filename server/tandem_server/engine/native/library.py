"""Models without a fused decoder of ours: any causal model of the transformers library that attends by its interface.

The long tail of a load. The library computes everything but attention, which is ours and works on the paged cache.
Before it serves, a model must give the same logits in chunks and single tokens through the cache as the library gives
for the whole text at once: what keeps its meaning elsewhere (recurrent state, masks, lengths) is refused by name.
"""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.config import DecoderConfig, LayerConfig, refuse_quantised
from tandem_server.engine.native.families import Family
from tandem_server.engine.native.library_attention import NAME, LayerFacts, Probe, installed, register
from tandem_server.engine.native.linear import Linear, make_linear
from tandem_server.engine.native.pretrained import from_folder
from tandem_server.engine.native.rope_config import LAYER_TYPES, RopeConfig

PROBE_TOKENS = 8


@dataclass(frozen=True)
class LibraryWeights:
    """A loaded model; `linears` are its matrices where they were replaced by row-invariant ones."""

    model: Any
    facts: dict[int, LayerFacts]
    linears: list[Linear]
    parameters: int
    bytes: int


class RowInvariant(nn.Module):
    """A linear layer of the library, computed by one of ours, whose rows do not depend on how many there are."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        return self.linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def read_library_config(folder: Path, raw: dict[str, Any], architecture: str) -> DecoderConfig:
    """What is known of the model before it is loaded. Raises LoadError, with the reason, for one that is not computed.

    Shapes of the attention are those of `config.json`; `shaped` puts in those that the model really asks for.
    """
    refuse_quantised(raw)
    if raw.get("is_encoder_decoder"):
        raise _refused(architecture, "it is an encoder and a decoder, and only decoders are served")
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # late: it takes seconds

    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise _refused(architecture, "the transformers library has no such model that makes text")
    model_class = _class(architecture)
    if getattr(model_class, "_is_stateful", False):
        raise _refused(architecture, "it keeps a recurrent state outside of attention")
    if not getattr(model_class, "_supports_attention_backend", False):
        raise _refused(architecture, "the library computes its attention in a way of its own")
    try:
        return _described(folder, raw, architecture)
    # A RuntimeError is the library's word for layers that differ in what is asked for.
    except (StrictDataclassError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise _refused(architecture, f"its config.json cannot be used: {error}") from None


def _described(folder: Path, raw: dict[str, Any], architecture: str) -> DecoderConfig:
    from transformers import AutoConfig  # imported late: it takes seconds

    whole = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config = whole.get_text_config(decoder=True)
    layers = int(config.num_hidden_layers)
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in LAYER_TYPES:
            raise _refused(architecture, f"its layer_types name {kind}")
    if getattr(config, "attn_temperature_tuning", False):
        raise _refused(architecture, "its attention depends on the position (attn_temperature_tuning)")
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    return DecoderConfig(
        architecture=architecture,
        vocabulary=int(config.vocab_size),
        hidden=int(config.hidden_size),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        layers=layers,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        context_limit=_context_limit(config, architecture),
        norm_epsilon=0.0,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        layer_configs=(LayerConfig(None, RopeConfig()),) * layers,
    )


def load_library(
    folder: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device, names: set[str]
) -> LibraryWeights:
    """The model with every tensor accounted for. Raises LoadError as `load_decoder` does.

    On a CPU its matrices are replaced by row-invariant ones, unless it reaches into them.
    """
    model = _read(folder, config.architecture, dtype, names).to(device).eval()
    parameters = sum(p.numel() for p in model.parameters())
    linears = _replace_linears(model) if device.type == "cpu" else []
    try:
        facts = _probe(model, config.architecture)
    except AttributeError:
        if not linears:
            raise
        model, linears = _read(folder, config.architecture, dtype, names).to(device).eval(), []
        facts = _probe(model, config.architecture)
    size = sum(p.nbytes for p in model.parameters()) + sum(linear.bytes for linear in linears)
    return LibraryWeights(model, facts, linears, parameters, size)


def shaped(config: DecoderConfig, weights: LibraryWeights) -> DecoderConfig:
    """`config` with the attention that the model's layers ask for. Raises LoadError where they differ too much."""
    facts = list(weights.facts.values())
    for what in ("heads", "kv_heads", "key_size", "value_size", "scale", "cap"):
        values = {getattr(fact, what) for fact in facts}
        if len(values) > 1:
            raise _refused(config.architecture, f"its layers differ in {what}: {sorted(values, key=str)}")
    first = facts[0]
    _check_windows(weights.model, config.architecture, facts)
    return replace(
        config,
        layers=len(facts),
        heads=first.heads,
        kv_heads=first.kv_heads,
        head_size=max(first.key_size, first.value_size),
        layer_configs=tuple(LayerConfig(fact.window, RopeConfig()) for fact in facts),
        family=Family(sinks=first.sinks is not None),
        attention_scale=first.scale,
        attention_cap=first.cap,
    )


def refused_by_check(architecture: str, difference: float) -> LoadError:
    """For a model whose logits through the cache are not those of the library."""
    return _refused(
        architecture, f"its logits differ by {difference:.2g} from the library's when its text comes in parts"
    )


def _refused(architecture: str, why: str) -> LoadError:
    return LoadError(f"architecture {architecture} is not supported by the native engine: {why}; set engine: VLLM")


def _class(architecture: str) -> Any:
    import transformers

    return getattr(transformers, architecture)


def _context_limit(config: Any, architecture: str) -> int:
    """Positions that the model was made for; up to where those that scale with the length keep their first scale."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        raise _refused(architecture, "its config.json does not say how long its context is (max_position_embeddings)")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        if rope.get("rope_type") == "longrope":
            positions = min(positions, int(rope.get("original_max_position_embeddings") or positions))
    return positions


def _check_windows(model: Any, architecture: str, facts: list[LayerFacts]) -> None:
    """A window that `config.json` tells must have reached the attention."""
    config = model.config.get_text_config(decoder=True)
    types = getattr(config, "layer_types", None) or []
    sliding = [kind == "sliding_attention" for kind in types]
    window = getattr(config, "sliding_window", None)
    if not sliding and window and getattr(config, "use_sliding_window", True):
        sliding = [True] * len(facts)
    if window and any(slides and fact.window is None for slides, fact in zip(sliding, facts, strict=False)):
        raise _refused(architecture, "its sliding window does not reach the attention interface")


def _read(folder: Path, architecture: str, dtype: torch.dtype, names: set[str]) -> Any:
    register()
    model, info = from_folder(_class(architecture), folder, dtype, architecture, attn_implementation=NAME)
    for kind, text in (
        ("missing_keys", "is missing from the checkpoint"),
        ("mismatched_keys", "has another shape than config.json calls for"),
        ("unexpected_keys", "is in the checkpoint, and its architecture does not use it"),
    ):
        found = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info[kind])
        if found:
            raise LoadError(f"tensor {found[0]} {text} ({len(found)} in all, of {len(names)})")
    return model


def _replace_linears(model: nn.Module) -> list[Linear]:
    """Puts `RowInvariant` in the place of each linear layer, one after the other; gives what it computes with."""
    made: list[Linear] = []
    places = [(p, name) for p in model.modules() for name, child in p.named_children() if type(child) is nn.Linear]
    for parent, name in places:
        layer = parent.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        made.append(make_linear(layer.weight.detach().clone(), bias))
        setattr(parent, name, RowInvariant(made[-1]))
    return made


@torch.inference_mode()
def _probe(model: Any, architecture: str) -> dict[int, LayerFacts]:
    """What each layer that attends asks for, in the order of the layers."""
    probe = Probe()
    tokens = torch.arange(1, PROBE_TOKENS + 1, device=model.device)[None]
    try:
        with installed(probe):
            forward(model, tokens, torch.arange(PROBE_TOKENS, device=model.device)[None], 1)
    except (LoadError, RuntimeError, TypeError) as error:
        raise _refused(architecture, str(error)) from None
    if not probe.layers:
        raise _refused(architecture, "none of its layers attends through the library's interface")
    return dict(sorted(probe.layers.items()))


def forward(model: Any, tokens: torch.Tensor, positions: torch.Tensor, keep: int) -> torch.Tensor:
    """Logits `[keep or all, vocabulary]` of `tokens` `[1, count]`; `keep` 0 keeps all, else that many last ones."""
    known = inspect.signature(model.forward).parameters
    asked = {"logits_to_keep": keep} if "logits_to_keep" in known else {}
    logits: torch.Tensor = model(input_ids=tokens, position_ids=positions, use_cache=False, **asked).logits[0]
    return logits[-keep:]
