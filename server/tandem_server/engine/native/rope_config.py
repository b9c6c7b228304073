"""Rotary positions as `config.json` describes them: the classic keys, and `rope_parameters`, also one set a layer type.

Part of the first step of a load (`config.py`); `rope.py` makes the tables.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tandem_server.engine.interface import LoadError

KINDS = ("default", "linear", "llama3", "dynamic", "yarn", "longrope")
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class RopeConfig:
    """`kind` is one of `KINDS`; the rest as the checkpoint's keys of these or like names."""

    kind: str = "default"
    theta: float = 10_000.0
    rotated: float = 1.0
    """Share of a head's dimensions that turn with the position (`partial_rotary_factor`)."""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by it."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    """longrope: divisors of each pair's frequency while the whole sequence has at most `original_context` tokens."""
    long_factors: tuple[float, ...] = ()
    """The same for sequences that are longer."""

    def rotated_size(self, head_size: int) -> int:
        """Dimensions of a head that turn."""
        return int(head_size * self.rotated)


def read_ropes(raw: dict[str, Any], positions: int, local: bool) -> tuple[RopeConfig, RopeConfig]:
    """The positions of layers with full attention, and of those with a sliding window.

    Args:
        raw: `config.json`, with the architecture's own defaults.
        positions: `max_position_embeddings`.
        local: layers with a window turn by `rope_local_base_freq`, unscaled, where the classic keys are used (Gemma 3).

    Raises:
        LoadError: a kind is unknown, or lacks one of its numbers.
    """
    newer = raw.get("rope_parameters")
    if isinstance(newer, dict) and any(name in newer for name in LAYER_TYPES):
        per_type = [newer.get(name) or {} for name in LAYER_TYPES]
        thetas = [float(raw["rope_theta"]), float(raw.get("rope_local_base_freq") or raw["rope_theta"])]
        full, sliding = (
            read_rope({**raw, "rope_theta": theta}, scaling, positions)
            for scaling, theta in zip(per_type, thetas, strict=True)
        )
        return full, sliding
    if local and newer:
        raise LoadError("config.json: rope_parameters must have full_attention and sliding_attention")
    full = read_rope(raw, newer or raw.get("rope_scaling") or {}, positions)
    return full, RopeConfig(theta=float(raw["rope_local_base_freq"])) if local else full


def read_rope(raw: Mapping[str, Any], scaling: dict[str, Any], positions: int) -> RopeConfig:
    """One set of `scaling` parameters; what they leave open is in `raw`. Raises LoadError as `read_ropes`."""
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if kind == "su" or (kind == "yarn" and "short_factor" in scaling):
        kind = "longrope"
    if kind not in KINDS:
        raise LoadError(f"rope type {kind} is not supported; {', '.join(KINDS)} are")
    values: dict[str, Any] = {
        "kind": kind,
        "theta": float(scaling.get("rope_theta") or raw["rope_theta"]),
        "rotated": float(scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0),
    }
    original = raw.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    original = int(original or positions)
    try:
        if kind in ("linear", "dynamic", "llama3"):
            values["factor"] = float(scaling["factor"])
        if kind == "llama3":
            values["low_freq_factor"] = float(scaling["low_freq_factor"])
            values["high_freq_factor"] = float(scaling["high_freq_factor"])
            values["original_context"] = original
        elif kind == "yarn":
            values |= _yarn(scaling, positions, original)
        elif kind == "longrope":
            values |= _longrope(scaling, positions, original)
    except KeyError as error:
        raise LoadError(f"config.json: rope type {kind} needs {error}") from None
    return RopeConfig(**values)


def _yarn(scaling: dict[str, Any], positions: int, original: int) -> dict[str, Any]:
    """As the YaRN paper (arXiv 2309.00071) has it; `mscale` as DeepSeek's configurations do."""
    factor = float(scaling["factor"] or positions / original)

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        numerator, denominator = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = grown(numerator) / grown(denominator) if numerator and denominator else grown(1.0)
    return {
        "factor": factor,
        "original_context": original,
        "attention_factor": float(attention),
        "beta_fast": float(scaling.get("beta_fast") or 32),
        "beta_slow": float(scaling.get("beta_slow") or 1),
        "truncate": bool(scaling.get("truncate", True)),
    }


def _longrope(scaling: dict[str, Any], positions: int, original: int) -> dict[str, Any]:
    """As the LongRoPE paper (arXiv 2402.13753) has it."""
    factor = float(scaling.get("factor") or positions / original)
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "original_context": original,
        "attention_factor": float(attention),
        "short_factors": tuple(float(number) for number in scaling["short_factor"]),
        "long_factors": tuple(float(number) for number in scaling["long_factor"]),
    }
