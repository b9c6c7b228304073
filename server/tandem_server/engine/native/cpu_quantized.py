"""Layers of 8 bits for our own kernels on a CPU: the numbers of `quantized.py` in the panels of `cpu_linear.py`.

Whole numbers are widened to bfloat16, which holds them exactly, next to where they are multiplied; scales apply to an
output's sum. 4 bits are left to torch, whose kernel is several times as fast as ours was.
"""

import torch

from tandem_server.engine.native.cpu_compiler import NotCompiled
from tandem_server.engine.native.cpu_linear import CompiledLinear, in_panels
from tandem_server.engine.native.quantized import KERNEL_ERROR, dequantize_int8, quantize_int8


class CompiledInt8(CompiledLinear):
    """Panels int8, one bfloat16 scale an output."""

    kind = 1

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        numbers, scales = quantize_int8(weight)
        return in_panels(numbers, 2), scales


def compiled_int8() -> type[CompiledInt8]:
    """What makes the layers. Raises NotCompiled where they compute something else than they should."""
    generator = torch.Generator().manual_seed(20_260_105)
    weight, x = (torch.randn(n, 256, generator=generator).to(torch.bfloat16) for n in (96, 11))
    with torch.inference_mode():
        wanted = x.float() @ dequantize_int8(*quantize_int8(weight)).t()
        off = float((CompiledInt8(weight, None).floats(x) - wanted).norm() / wanted.norm())
    if not off <= KERNEL_ERROR:
        raise NotCompiled(f"the compiled kernel for Int8 gives other results than torch ({off:.0%} off)")
    return CompiledInt8
