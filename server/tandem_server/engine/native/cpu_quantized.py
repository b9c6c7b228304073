"""Layers of 8 and 4 bits for our own kernels on a CPU: the numbers of `quantized.py` in panels as `cpu_linear.py` has.

Of 8 bits, whole numbers are widened to bfloat16, which holds them exactly, next to where they are multiplied; scales
apply to an output's sum. Of 4 bits they are looked up in a register; a scale and a zero point apply to the sum of their
group, and lie behind its numbers, so that a layer is one stream of bytes.
"""

from collections.abc import Callable

import torch

from tandem_api.fit_weights import GROUP
from tandem_server.engine.native.cpu_compiler import NotCompiled
from tandem_server.engine.native.cpu_linear import LANES, CompiledLinear, in_panels
from tandem_server.engine.native.quantized import (
    KERNEL_ERROR,
    dequantize_int4,
    dequantize_int8,
    quantize_int4,
    quantize_int8,
)

TOGETHER = 8
"""Numbers of 4 bits in a word."""


class CompiledInt8(CompiledLinear):
    """Panels int8, one bfloat16 scale an output."""

    kind = 1

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        numbers, scales = quantize_int8(weight)
        return in_panels(numbers, 2), scales


class CompiledInt4(CompiledLinear):
    """Panels of words of 32 bits, `[outputs / LANES, inputs / GROUP, GROUP / TOGETHER + 1, LANES]`: see `Quanta`.

    Inputs are a multiple of `GROUP`.
    """

    kind = 2

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.sums_width = weight.shape[1] // GROUP
        super().__init__(weight, bias)

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        numbers, scales_and_zeros = quantize_int4(weight)
        outputs, inputs = numbers.shape
        words = torch.zeros(outputs, inputs // TOGETHER, dtype=torch.int32)
        for place in range(TOGETHER):  # one at a time, since whole tensors of 32 bits are large
            words |= numbers[:, place::TOGETHER] << (place // 2 * 4 + place % 2 * 16)
        groups = words.view(-1, LANES, inputs // GROUP, GROUP // TOGETHER).permute(0, 2, 3, 1)
        pairs = scales_and_zeros.view(torch.int32).view(inputs // GROUP, -1, 1, LANES).transpose(0, 1)
        return torch.cat((groups, pairs), 2), None


def compiled_int8() -> type[CompiledInt8]:
    """What makes the layers. Raises NotCompiled where they compute something else than they should."""
    _check(CompiledInt8, lambda weight: dequantize_int8(*quantize_int8(weight)), "Int8")
    return CompiledInt8


def compiled_int4() -> type[CompiledInt4]:
    """The same for 4 bits."""
    _check(CompiledInt4, lambda weight: dequantize_int4(*quantize_int4(weight)), "Int4")
    return CompiledInt4


def _check(make: type[CompiledLinear], restored: Callable[[torch.Tensor], torch.Tensor], kind: str) -> None:
    generator = torch.Generator().manual_seed(20_260_105)
    weight, x = (torch.randn(n, 256, generator=generator).to(torch.bfloat16) for n in (96, 11))
    with torch.inference_mode():
        wanted = x.float() @ restored(weight).t()
        off = float((make(weight, None).floats(x) - wanted).norm() / wanted.norm())
    if not off <= KERNEL_ERROR:
        raise NotCompiled(f"the compiled kernel for {kind} gives other results than torch ({off:.0%} off)")
