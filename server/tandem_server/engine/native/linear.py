"""Linear layers in the layout that the device multiplies fastest, with results that do not depend on the batch.

On a CPU `torch.nn.functional.linear` picks another kernel, with another order of summation, for other batch sizes.
A weight packed for oneDNN, or stored transposed, does not (measured; `docs/decisions/0003-engine.md`), and is the
faster one at batch 4 and above. `row_invariant_sizes` makes sure of it on the machine at hand, at every load.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

PACK_FROM_ELEMENTS = 1 << 20
"""Below this oneDNN's call overhead (15 us) costs more than its packing gains."""


class Linear(Protocol):
    """`y = x W^T + b` for `x` of `[rows, inputs]`."""

    inputs: int
    outputs: int
    bytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, outputs]`."""

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`residual + y`, in one kernel where the device has one."""


MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]
"""A layer of a weight `[outputs, inputs]` and perhaps a bias."""


class TransposedLinear:
    """Weight held as `[inputs, outputs]`: small matrices on a CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self.bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._weight = weight.t().contiguous()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(residual, x, self._weight)
        return y if self._bias is None else y.add_(self._bias)


class PackedLinear:
    """Weight packed for oneDNN: large matrices on a CPU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self.bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        # The fused sum costs more to call (14 us) than a second kernel on rows that are in the cache already.
        return self(x).add_(residual)


class PlainLinear:
    """Weight as in the checkpoint, shared with the embedding table when tied: CUDA."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self.bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(residual, x, self._weight.t())
        return y if self._bias is None else y.add_(self._bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The layout for `weight` `[outputs, inputs]` on the device where it lies."""
    if weight.device.type != "cpu":
        return PlainLinear(weight, bias)
    if packing_available(weight.dtype) and (weight.numel() >= PACK_FROM_ELEMENTS or weight.dtype != torch.float32):
        return PackedLinear(weight, bias)
    return TransposedLinear(weight, bias)


def packing_available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch packs weights for oneDNN, and this CPU multiplies such."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (dtype is not torch.float16 or torch.ops.mkldnn._is_mkldnn_fp16_supported())
    )


def row_invariant_sizes(linears: Iterable[Linear], slots: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Batch sizes, ascending and ending with `slots`, at which every row comes out bit for bit as at `slots` rows.

    A step with few busy slots may then compute fewer rows without any token depending on its neighbours.
    """
    candidates = [size for size in _powers_of_two(slots) if size < slots]
    generator = torch.Generator().manual_seed(20_260_101)
    for linear in {(layer.inputs, layer.outputs, type(layer)): layer for layer in linears}.values():
        x = torch.randn(slots, linear.inputs, generator=generator).to(dtype)
        residual = torch.randn(slots, linear.outputs, generator=generator).to(dtype)
        whole, whole_onto = linear(x), linear.onto(residual.clone(), x)
        candidates = [
            size
            for size in candidates
            if torch.equal(linear(x[:size]), whole[:size])
            and torch.equal(linear.onto(residual[:size].clone(), x[:size]), whole_onto[:size])
        ]
    return (*candidates, slots)


def smallest_size(sizes: Sequence[int], rows: int) -> int:
    """The first of ascending `sizes` that holds `rows` rows."""
    return next(size for size in sizes if size >= rows)


def _powers_of_two(limit: int) -> list[int]:
    return [1 << power for power in range(limit.bit_length())]
