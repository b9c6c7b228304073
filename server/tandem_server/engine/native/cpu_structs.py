"""What `cpu_decoder.py` hands to the kernels: the structures of `structs.h`, field by field.

Addresses only: whoever makes one keeps the tensors that it points to.
"""

import ctypes
from collections.abc import Sequence

import torch

from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.cpu_linear import CompiledLinear, Matrix
from tandem_server.engine.native.linear import Linear

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
"""By the names in `config.ACTIVATIONS`; gpt-oss' clamped one is 2."""
CLAMPED = 2


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _numbers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names]


class Feed(ctypes.Structure):
    """`Feed`: a feed-forward, or one expert's."""

    _fields_ = (("gate_up", Matrix), ("down", Matrix))


class Layer(ctypes.Structure):
    """`Layer`."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "output", "router")),
        ("feeds", ctypes.POINTER(Feed)),
        *_pointers("input_norm", "feed_norm", "output_norm", "feed_output_norm", "query_norm", "key_norm"),
        *_pointers("sinks", "cos", "sin", "cache"),
        *_numbers("window", "experts"),
    )


class Activation(ctypes.Structure):
    """`Activation`."""

    _fields_ = (*_numbers("kind"), ("limit", ctypes.c_float), ("alpha", ctypes.c_float))


class Model(ctypes.Structure):
    """`Model`."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *_pointers("norm"),
        *_numbers("layer_count", "hidden", "heads", "kv_heads", "size", "rotated", "places", "threads"),
        *_numbers("chosen", "normalised"),
        ("activation", Activation),
        *((name, ctypes.c_float) for name in ("epsilon", "scale", "cap")),
    )


class Step(ctypes.Structure):
    """`Step`."""

    _fields_ = (
        *_pointers("turned", "lengths", "tables", "x", "hidden"),
        *_pointers("qkv", "mixed", "inner", "normed", "blocked", "gathered", "routes", "weights", "experts", "sums"),
        *_pointers("attention", "counters"),
        *_numbers("rows", "first", "table_stride", "sums_width", "attention_width"),
    )


class Ends(ctypes.Structure):
    """`Ends`."""

    _fields_ = (
        *_pointers("embedding"),
        ("head", Matrix),
        *_pointers("logits"),
        ("headed", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("embedding_scale", "logit_cap")),
    )


def address(tensor: torch.Tensor | None) -> int | None:
    """Of a contiguous tensor's first number."""
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def matrix_of(linear: Linear) -> Matrix:
    """Of a layer that the kernels multiply by."""
    assert isinstance(linear, CompiledLinear)
    return linear.matrix


def feeds_of(linears: Sequence[Linear], is_sparse: bool) -> tuple[Matrix, ctypes.Array[Feed], int]:
    """The router (empty: there is none), the feed-forwards, the number of experts; see `FeedForward.linears`."""
    router, rest = (matrix_of(linears[0]), linears[1:]) if is_sparse else (Matrix(), linears)
    count = len(rest) // 2
    pairs = zip(rest[:count], rest[count:], strict=True)
    feeds = (Feed * count)(*(Feed(matrix_of(gate_up), matrix_of(down)) for gate_up, down in pairs))
    return router, feeds, count if is_sparse else 0


def activation_of(config: DecoderConfig) -> Activation:
    """Of the feed-forwards."""
    experts = config.experts
    if experts is not None and experts.limit is not None:
        return Activation(CLAMPED, experts.limit, experts.alpha)
    return Activation(ACTIVATIONS[config.activation], 0.0, 0.0)
