"""Which kernels multiply a model's matrices on a CPU, and so compute its steps: our own or torch's.

Part of a load, before the weights are read. Ours where they compute the whole step (`cpu_decoder.why_not`), compile
here and are not clearly slower at the product itself, as they are where the CPU has matrix units that they do not use.
"""

import torch

from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.cpu_compiler import NotCompiled
from tandem_server.engine.native.cpu_decoder import why_not
from tandem_server.engine.native.cpu_linear import compiled_linear
from tandem_server.engine.native.cpu_quantized import compiled_int4, compiled_int8
from tandem_server.engine.native.dtype import time_largest_layer
from tandem_server.engine.native.linear import make_linear
from tandem_server.engine.native.quantized import UNQUANTIZED, Layout, in_groups, layout_for

CLEARLY_SLOWER = 1.5
"""Ours are taken up to so many times torch's time: what they save elsewhere is worth it."""
CALLS = 2e-4
"""Seconds below which a measurement says more of calls than of sums."""


def quantized_cpu_layout(
    quantization: str, config: DecoderConfig, device: torch.device, slots: int
) -> tuple[Layout, str]:
    """As `cpu_layout`, for weights of 8 or 4 bits. Raises LoadError where neither kernels can multiply them."""
    reason = why_not(config)
    if reason is None:
        try:
            exact = compiled_linear(torch.bfloat16)
            make = compiled_int8() if quantization == "Int8" else in_groups(compiled_int4())
            return Layout(make, exact), "steps by compiled kernels"
        except NotCompiled as error:
            reason = str(error)
    return layout_for(quantization, device, slots), f"steps by torch's operators: {reason}"


def cpu_layout(config: DecoderConfig, dtype: torch.dtype, slots: int, fused: bool) -> tuple[Layout, str]:
    """How the matrices are held, and by whose kernels the steps are computed."""
    if not fused:
        return UNQUANTIZED, "steps by torch's operators"
    if missing := why_not(config):
        return UNQUANTIZED, f"steps by torch's operators, since our kernels do not know {missing}"
    try:
        make = compiled_linear(dtype)
    except NotCompiled as error:
        return UNQUANTIZED, f"steps by torch's operators: {error}"
    ours, other = (time_largest_layer(config, slots, dtype, make) for make in (make, make_linear))
    if ours > max(CALLS, CLEARLY_SLOWER * other):
        numbers = f"{ours * 1e6:.0f} us, torch's {other * 1e6:.0f} us"
        return UNQUANTIZED, f"steps by torch's operators (the largest layer takes our kernels {numbers})"
    return Layout(make, make), "steps by compiled kernels"
