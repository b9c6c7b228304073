"""Linear layers of our own kernels on a CPU: one layout for every number of rows, no row's bits depend on another's.

Made at load in place of the layouts of `linear.py` where `cpu_decoder.py` computes the steps. Outputs lie in panels of
`LANES`, within a panel input by input (bfloat16: pair by pair, as its instructions want them), so that a step streams
each weight once. Prompts are multiplied by the same kernel.
"""

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F

from tandem_server.engine.native.cpu_compiler import NotCompiled, kernels

LANES = 16
TO_NUMBERS, TO_FLOATS, ONTO_NUMBERS, GATED = 0, 1, 2, 4
"""As in `linear.h` of `cpu_kernels`."""
ERROR = 0.02
"""Largest difference to the same product by torch, as a share of its size; bfloat16 rounds to 0.4 %."""


class Matrix(ctypes.Structure):
    """`Matrix` of `structs.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scales")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "kind")),
    )


class CompiledLinear:
    """Weight in panels `[outputs / LANES, inputs / pair, LANES, pair]`, rows of zeros behind the last output."""

    kind = 0
    """Of the weights' numbers, as in `structs.h`."""
    sums_width = 0
    """Float32 numbers of scratch that the kernel needs for a row and thread."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self._kernel = kernels(weight.dtype).tandem_linear
        missing = -self.outputs % LANES
        self._panels, self._scales = self.pack(F.pad(weight, (0, 0, 0, missing)) if missing else weight)
        self._bias = None if bias is None else F.pad(bias, (0, missing)).contiguous()
        held = (weight,) if self.kind == 0 else (self._panels, self._scales)
        self.bytes = sum(part.nbytes for part in (*held, bias) if part is not None)
        addresses = (None if part is None else part.data_ptr() for part in (self._panels, self._bias, self._scales))
        self.matrix = Matrix(*addresses, self.inputs, self.outputs + missing, self.kind)
        self._by_reference = ctypes.byref(self.matrix)

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Panels of a weight whose outputs fill them, and its scales."""
        return in_panels(weight, 4 // weight.dtype.itemsize), None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(x, TO_NUMBERS, x.dtype, self.matrix.outputs)[:, : self.outputs]

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.outputs % LANES:
            return residual + self(x)
        return self._multiply(x, ONTO_NUMBERS, x.dtype, self.outputs, residual.contiguous())

    def floats(self, x: torch.Tensor) -> torch.Tensor:
        """The product as it was summed, not rounded: float32 `[rows, outputs]`."""
        return self._multiply(x, TO_FLOATS, torch.float32, self.matrix.outputs)[:, : self.outputs].contiguous()

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        """`silu(first half) * second half` of the outputs, `[rows, outputs / 2]`; halves are multiples of `LANES`."""
        return self._multiply(x, GATED, x.dtype, self.outputs // 2)

    def _multiply(
        self, x: torch.Tensor, mode: int, dtype: torch.dtype, outputs: int, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x.contiguous()
        y, threads = torch.empty(len(x), outputs, dtype=dtype), torch.get_num_threads()
        sums = torch.empty(threads * len(x) * self.sums_width)
        self._kernel(
            self._by_reference,
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(sums.data_ptr()),
            ctypes.c_int64(len(x)),
            mode,
            ctypes.c_void_p(y.data_ptr()),
            None if onto is None else ctypes.c_void_p(onto.data_ptr()),
            ctypes.c_int64(threads),
        )
        return y


def in_panels(weight: torch.Tensor, pair: int) -> torch.Tensor:
    """`[outputs, inputs]` to `[outputs / LANES, inputs / pair, LANES, pair]`."""
    return weight.view(-1, LANES, weight.shape[1] // pair, pair).transpose(1, 2).contiguous()


def compiled_linear(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor | None], CompiledLinear]:
    """What makes the layers. Raises NotCompiled where they cannot be had here, or compute something else."""
    generator = torch.Generator().manual_seed(20_260_104)
    weight, x = (torch.randn(n, 64, generator=generator).to(dtype) for n in (96, 11))
    with torch.inference_mode():
        wanted, layer = x.float() @ weight.float().t(), CompiledLinear(weight, None)
        gate, up = wanted.chunk(2, -1)
        pairs = ((layer(x), wanted), (layer.floats(x), wanted), (layer.gated(x), F.silu(gate) * up))
        off = max(float((y.float() - exact).norm() / exact.norm()) for y, exact in pairs)
    if not off <= ERROR:
        raise NotCompiled(f"the compiled kernels give other results than torch ({off:.0%} off)")
    return CompiledLinear
