"""Linear layers whose weights are held in 8 or 4 bits, multiplied by kernels that torch itself has.

Made at load in place of the layouts of `linear.py`. Weights alone are quantised, the head's too; a row is multiplied
in bfloat16 as it is, and the embedding table is looked up as it was. Int8 has one scale an output channel, Int4 a scale
and a zero point for every `GROUP` inputs of one. Scales are rounded to bfloat16 before numbers are taken for them, so
their own rounding costs nothing. The kernel is checked against its dequantised weight at every load.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tandem_api.fit_weights import GROUP, TILE
from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.linear import Linear, MakeLinear, make_linear

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
IN_CACHE = 1 << 16
"""Numbers that are quantised at once, so that their float32 copies stay near and small."""
ON_GPU = 1 << 22
"""The same where a launch costs more than a cache's miss."""
INNER_TILES = 8
"""Of the CUDA kernel's packing: it reads 16 x 8 inputs at once."""
KERNEL_ERROR = 0.02
"""Largest difference of a kernel's outputs to the dequantised product, as a share of their size; rounding is 0.4 %."""


@dataclass(frozen=True)
class Layout:
    """How the matrices of a decoder are held."""

    make: MakeLinear = make_linear
    exact: MakeLinear = make_linear
    """Of those that are never quantised."""


UNQUANTIZED = Layout()


class Int8Linear:
    """Weight int8 `[outputs, inputs]`, one bfloat16 scale an output."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, few: int) -> None:
        self.outputs, self.inputs = weight.shape
        self._few = few
        self._weight, self._scales = quantize_int8(weight)
        self._bias = bias
        self.bytes = sum(part.nbytes for part in (self._weight, self._scales, bias) if part is not None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # Decode steps have at most `few` rows, so which of the two is taken never depends on the neighbours.
        if len(x) <= self._few and x.device.type == "cpu":
            y = torch._weight_int8pack_mm(x.contiguous(), self._weight, self._scales)
        else:
            y = F.linear(x, self._weight.to(x.dtype)).mul_(self._scales)
        return y if self._bias is None else y.add_(self._bias)

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


class Int4Linear:
    """Weight of 4 bits in the layout of the device's kernel, a bfloat16 scale and zero point for `GROUP` inputs."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        padded = F.pad(weight, (0, 0, 0, -self.outputs % TILE))
        numbers, self._scales_and_zeros = quantize_int4(padded)
        self._on_cpu = weight.device.type == "cpu"
        if self._on_cpu:
            self._weight = torch._convert_weight_to_int4pack_for_cpu(numbers, 1)
        else:
            pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
            self._weight = torch._convert_weight_to_int4pack(pairs, INNER_TILES)
        self._bias = bias
        self.bytes = sum(part.nbytes for part in (self._weight, self._scales_and_zeros, bias) if part is not None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        multiply = torch._weight_int4pack_mm_for_cpu if self._on_cpu else torch._weight_int4pack_mm
        y = multiply(x.contiguous(), self._weight, GROUP, self._scales_and_zeros)[:, : self.outputs]
        return y if self._bias is None else y.add_(self._bias)

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers int8 `[outputs, inputs]` and bfloat16 scales `[outputs]`, so that `numbers * scale` is near `weight`."""
    numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.bfloat16, device=weight.device)
    at_once = _rows_at_once(weight)
    for first in range(0, len(weight), at_once):
        part = slice(first, first + at_once)
        exact = weight[part].float()
        largest = exact.abs().amax(1) / 127
        scales[part] = largest.clamp_(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
        numbers[part] = exact.div_(scales[part].float()[:, None]).round_().clamp_(-127, 127)
    return numbers, scales


def _rows_at_once(weight: torch.Tensor) -> int:
    return max(1, (IN_CACHE if weight.device.type == "cpu" else ON_GPU) // weight.shape[1])


def dequantize_int8(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The inverse of `quantize_int8`, but for what it rounded: float32 `[outputs, inputs]`."""
    return numbers.float() * scales.float()[:, None]


def quantize_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers 0 to 15, int32 `[outputs, inputs]`; bfloat16 `[inputs / GROUP, outputs, 2]` of scales and zero points.

    A weight is near `(number - 8) * scale + zero` of its group. Of `SHRINKS` each group takes the one with the least
    squared error: a narrower range cuts off its ends and is finer within.
    """
    numbers = torch.empty(weight.shape, dtype=torch.int32, device=weight.device)
    shape = (weight.shape[1] // GROUP, len(weight), 2)
    scales_and_zeros = torch.empty(shape, dtype=torch.bfloat16, device=weight.device)
    at_once = _rows_at_once(weight)
    for first in range(0, len(weight), at_once):
        part = slice(first, first + at_once)
        numbers[part], pairs = _quantize_rows(weight[part])
        scales_and_zeros[:, part] = pairs.transpose(0, 1)
    return numbers, scales_and_zeros


def _quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers `[rows, inputs]`; scales and zero points `[rows, inputs / GROUP, 2]`."""
    grouped = weight.float().view(len(weight), -1, GROUP)
    least, most = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    middle, span = (least + most) / 2, (most - least) / 15
    best = torch.full_like(span, torch.inf)
    scales, zeros = torch.zeros_like(span), torch.zeros_like(span)
    for shrink in SHRINKS:
        scale = (span * shrink).clamp_(min=torch.finfo(torch.bfloat16).tiny).bfloat16().float()
        zero = (middle + scale / 2).bfloat16().float()
        error = _numbers(grouped, scale, zero).mul_(scale).add_(zero).sub_(grouped).square_().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
    numbers = _numbers(grouped, scales, zeros).add_(8).to(torch.int32).view(weight.shape)
    pairs = torch.cat((scales, zeros), -1).bfloat16()
    return numbers, pairs


def _numbers(grouped: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    return (grouped - zeros).div_(scales).round_().clamp_(-8, 7)


def dequantize_int4(numbers: torch.Tensor, scales_and_zeros: torch.Tensor) -> torch.Tensor:
    """The inverse of `quantize_int4`, but for what it rounded: float32 `[outputs, inputs]`."""
    outputs, inputs = numbers.shape
    scales, zeros = scales_and_zeros.float().transpose(0, 1).unbind(-1)
    grouped = numbers.view(outputs, inputs // GROUP, GROUP).float()
    return ((grouped - 8) * scales[..., None] + zeros[..., None]).view(outputs, inputs)


def layout_for(quantization: str, device: torch.device, slots: int) -> Layout:
    """How a decoder's matrices are held under `quantization`: None, Int8 or Int4.

    Raises:
        LoadError: it is not known, or this build of torch lacks its kernel, or the kernel computes something else.
    """
    if quantization == "None":
        return UNQUANTIZED
    if quantization not in ("Int8", "Int4"):
        raise LoadError(f"quantization {quantization} is not known to the native engine; None, Int8 and Int4 are")
    _check_kernel(quantization, device)

    def int8(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return Int8Linear(weight, bias, slots)

    multiple = GROUP if device.type == "cpu" else 16 * INNER_TILES
    return Layout(int8 if quantization == "Int8" else in_groups(Int4Linear, multiple))


def in_groups(make: MakeLinear, multiple: int = GROUP) -> MakeLinear:
    """`make`, for layers that groups of inputs divide; LoadError for any other."""

    def made(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        if weight.shape[1] % multiple:
            raise LoadError(
                f"quantization Int4 needs layers whose inputs are a multiple of {multiple}; this model has one of "
                f"{weight.shape[1]}. Set quantization to Int8 or None"
            )
        return make(weight, bias)

    return made


def _check_kernel(quantization: str, device: torch.device) -> None:
    """Multiplies a small layer and compares it with the product by its dequantised weight."""
    generator = torch.Generator().manual_seed(20_260_103)
    weight = torch.randn(128, 256, generator=generator).to(device, torch.bfloat16)
    x = torch.randn(5, 256, generator=generator).to(device, torch.bfloat16)
    try:
        with torch.inference_mode():
            if quantization == "Int8":
                y, exact = Int8Linear(weight, None, few=8)(x), dequantize_int8(*quantize_int8(weight))
            else:
                y, exact = Int4Linear(weight, None)(x), dequantize_int4(*quantize_int4(weight))
            wanted = x.float() @ exact.t()
            error_share = float((y.float() - wanted).norm() / wanted.norm())
    except (AttributeError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LoadError(
            f"quantization {quantization} cannot be computed here: torch {torch.__version__} has no kernel for it on "
            f"this {device.type} ({reason}). Set quantization to None"
        ) from None
    if not error_share <= KERNEL_ERROR:
        raise LoadError(
            f"quantization {quantization} cannot be computed here: the kernel of torch {torch.__version__} on this "
            f"{device.type} gives other results than its weights say ({error_share:.0%} off). Set quantization to None"
        )
