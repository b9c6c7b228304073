"""Layers of 8 and 4 bits for our own kernels on a CPU: the numbers of `quantized.py` in the panels of `cpu_linear.py`.

Whole numbers are widened to bfloat16, which holds them exactly, next to where they are multiplied; scales apply to
sums: of an output (Int8), or of a group of inputs (Int4), whose zero point goes with the sum of its inputs.
"""

import torch

from tandem_api.fit_weights import GROUP, TILE
from tandem_server.engine.native.cpu_compiler import NotCompiled
from tandem_server.engine.native.cpu_linear import LANES, CompiledLinear, in_panels
from tandem_server.engine.native.quantized import (
    KERNEL_ERROR,
    dequantize_int4,
    dequantize_int8,
    quantize_int4,
    quantize_int8,
)


class CompiledInt8(CompiledLinear):
    """Panels int8, one bfloat16 scale an output."""

    kind = 1

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        numbers, scales = quantize_int8(weight)
        return in_panels(numbers, 2), scales


class CompiledInt4(CompiledLinear):
    """Panels of two inputs a byte; `[outputs / LANES, inputs / GROUP, 2, LANES]` of scales and zero points."""

    kind, multiple = 2, TILE

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        numbers, pairs = quantize_int4(weight)
        panels = in_panels(numbers.to(torch.uint8), 2)
        scales = pairs.view(len(pairs), -1, LANES, 2).permute(1, 0, 3, 2).contiguous()
        return panels[..., 0] | panels[..., 1] << 4, scales


def compiled_quantized(quantization: str) -> type[CompiledLinear]:
    """What makes the layers of Int8 or Int4. Raises NotCompiled where they compute something else than they should."""
    kind = CompiledInt8 if quantization == "Int8" else CompiledInt4
    generator = torch.Generator().manual_seed(20_260_105)
    weight, x = (torch.randn(n, 8 * GROUP, generator=generator).to(torch.bfloat16) for n in (96, 11))
    with torch.inference_mode():
        whole = (
            dequantize_int8(*quantize_int8(weight))
            if quantization == "Int8"
            else dequantize_int4(*quantize_int4(weight))
        )
        wanted = x.float() @ whole.t()
        off = float((kind(weight, None).floats(x) - wanted).norm() / wanted.norm())
    if not off <= KERNEL_ERROR:
        raise NotCompiled(f"the compiled kernels for {quantization} give other results than torch ({off:.0%} off)")
    return kind
