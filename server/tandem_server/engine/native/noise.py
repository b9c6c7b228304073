"""Random numbers that depend on (seed, position, token) and on nothing else.

A counter-based generator of a few integer operations, the same on every device and in every batch: so a request's
tokens do not depend on what runs beside it, nor on when it was admitted. The mixing steps are the published
finalisers of SplitMix64 (Steele, Lea, Flood 2014) and of Wellons' 32-bit hash search ("lowbias32").
"""

import torch

_GOLDEN_64 = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
_MIX_64 = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_GOLDEN_32 = -0x61C88647
_MIX_32 = (0x7FEB352D, -0x7B935975)


def row_keys(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One 64-bit key a row from int64 `seeds` and `positions` `[rows]`: int64 `[rows]`."""
    return _mix64(_mix64(seeds + _GOLDEN_64) ^ (positions * _GOLDEN_64))


def gumbel(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32, one number for each of `tokens` (int64 `[rows or 1, n]`) under each row's key.

    The largest of `logits + noise` is a draw from `softmax(logits)`. Resolution is 23 bits, so the noise lies in
    about -2.8 to 16.6 and is always finite.
    """
    low, high = (keys & 0xFFFFFFFF)[:, None], ((keys >> 32) & 0xFFFFFFFF)[:, None]
    bits = _mix32(_mix32(tokens.to(torch.int32) * _GOLDEN_32 ^ _as_int32(low)) ^ _as_int32(high))
    uniform = (bits >> 9).bitwise_and_(0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _mix64(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_64[0]
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_64[1]
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _mix32(x: torch.Tensor) -> torch.Tensor:
    """Writes into `x`: whole vocabularies come through here."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_MIX_32[0])
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_MIX_32[1])
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _as_int32(x: torch.Tensor) -> torch.Tensor:
    """The low 32 bits of int64 numbers in 0 .. 2**32 - 1, as int32."""
    return torch.where(x > 0x7FFFFFFF, x - 0x100000000, x).to(torch.int32)
