"""Rotary position tables, made once at load and read by row in every step."""

import math

import torch

from tandem_server.engine.native.rope_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_size: int, long: bool = False) -> torch.Tensor:
    """Angle per position of each dimension pair that turns: float64 `[rotated_size / 2]`.

    `long` asks for longrope's frequencies of sequences beyond the original context. The dynamic kind has others only
    beyond the positions that the model was made for, where no context goes.
    """
    size = rope.rotated_size(head_size)
    frequencies = rope.theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    match rope.kind:
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            return _llama3(rope, frequencies)
        case "yarn":
            return _yarn(rope, frequencies, size)
        case "longrope":
            factors = rope.long_factors if long else rope.short_factors
            return frequencies / torch.tensor(factors, dtype=torch.float64)
    return frequencies


def _llama3(rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, with a blend in between, as the Llama 3.1 report has it."""
    turns = rope.original_context * frequencies / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return _blended(frequencies, blend, rope.factor)


def _yarn(rope: RopeConfig, frequencies: torch.Tensor, size: int) -> torch.Tensor:
    """Pairs that turn often in the original context keep their frequency, those that turn seldom are stretched."""

    def pair_of(turns: float) -> float:
        """The pair, as a fraction, that turns so many times."""
        return size * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float64) - low) / (high - low if high != low else 0.001)
    return _blended(frequencies, 1 - ramp.clamp(0.0, 1.0), rope.factor)


def _blended(frequencies: torch.Tensor, kept: torch.Tensor, factor: float) -> torch.Tensor:
    kept = kept.clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / factor)


def rope_tables(
    rope: RopeConfig, head_size: int, positions: int, dtype: torch.dtype, device: torch.device, both: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines `[positions, rotated_size]`; with `both`, longrope's long ones follow behind.

    `x * cos + swap_halves(x) * sin` turns the halves-style pairs of Hugging Face checkpoints; the minus of the first
    half is in `sin` already, and so is the attention factor in both.
    """
    steps = torch.arange(positions, dtype=torch.float64)
    parts = [inverse_frequencies(rope, head_size, long) for long in ((False, True) if both else (False,))]
    angles = torch.cat([torch.outer(steps, frequencies) for frequencies in parts])
    cos = torch.cat((angles.cos(), angles.cos()), -1) * rope.attention_factor
    sin = torch.cat((-angles.sin(), angles.sin()), -1) * rope.attention_factor
    return cos.to(device, dtype), sin.to(device, dtype)
