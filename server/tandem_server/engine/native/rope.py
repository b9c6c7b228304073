"""Rotary position tables, made once at load and read by row in every step."""

import math

import torch

from tandem_server.engine.native.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_size: int) -> torch.Tensor:
    """Angle per position of each dimension pair: float64 `[head_size / 2]`.

    The llama3 kind stretches long wavelengths by `factor` and blends in between, as the Llama 3.1 report has it.
    """
    frequencies = rope.theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind != "llama3":
        return frequencies
    turns = rope.original_context * frequencies / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return frequencies * (blend + (1 - blend) / rope.factor)


def rope_tables(
    rope: RopeConfig, head_size: int, positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines `[positions, head_size]`.

    `x * cos + swap_halves(x) * sin` turns the halves-style pairs of Hugging Face checkpoints; the minus of the first
    half is in `sin` already.
    """
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), inverse_frequencies(rope, head_size))
    cos = torch.cat((angles.cos(), angles.cos()), -1)
    sin = torch.cat((-angles.sin(), angles.sin()), -1)
    return cos.to(device, dtype), sin.to(device, dtype)
