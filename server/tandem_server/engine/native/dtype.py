"""Chooses the number format to compute in, and the CPU threads: what was asked for, else what is fastest here.

Which format is faster depends on the CPU: without bf16 instructions bfloat16 wins at batch 1 and loses several times
over at batch 8. So `Auto` measures the model's largest layer alone, half full and full.
"""

import time
from collections.abc import Callable

import torch

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.affinity import own_cpus
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.formats import format_of, stored_format
from tandem_server.engine.native.linear import MakeLinear, make_linear

NAMES = {"Float32": torch.float32, "BFloat16": torch.bfloat16, "Float16": torch.float16}
FP8 = torch.float8_e4m3fn
FP8_CAPABILITY = (8, 9)
CLEARLY_FASTER = 0.9
"""bfloat16, or more threads than one, is taken when it needs at most this share of the other's time."""
DOUBTS, DOUBT_SECONDS = 3, 0.5
"""How often, and after what rest, threads that do not seem to help are measured again."""
SMALL = 2e-4
"""Seconds below which a model is so small that threads cost what they save."""
TRIES = 15
"""Of each measurement; the best counts, since other work only ever adds to a time."""


def choose_dtype(
    asked: str,
    config: DecoderConfig,
    device: torch.device,
    slots: int,
    timer: Callable[[torch.dtype], float] | None,
    quantization: str = "None",
) -> tuple[torch.dtype, str]:
    """The format, and why in half a sentence. `timer` (None: measure) gives seconds of a format's multiplications."""
    name, reason = format_of(asked, stored_format(config.dtype), device.type != "cpu", quantization)
    if name is not None:
        return NAMES[name], reason
    timer = timer or (lambda dtype: time_largest_layer(config, slots, dtype))
    plain, half = timer(torch.float32), timer(torch.bfloat16)
    numbers = f"the largest layer takes {_us(plain)} in Float32, {_us(half)} in BFloat16"
    if half <= CLEARLY_FASTER * plain:
        return torch.bfloat16, f"BFloat16 by measurement ({numbers})"
    return torch.float32, f"Float32 by measurement ({numbers})"


def choose_cache_dtype(asked: str, dtype: torch.dtype, device: torch.device, fused: bool) -> torch.dtype:
    """The format of keys and values. Raises LoadError where FP8 was asked for and cannot be had."""
    if asked == "Auto":
        return dtype
    if asked != "FP8":
        raise LoadError(f"kvCache.dtype {asked} is not known; Auto and FP8 are")
    if device.type != "cuda":
        raise LoadError("kvCache.dtype FP8 needs a GPU; set it to Auto on a CPU")
    if not fused:
        raise LoadError("kvCache.dtype FP8 needs a model with a fused decoder; set it to Auto")
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        has, needs = (".".join(map(str, version)) for version in (capability, FP8_CAPABILITY))
        raise LoadError(f"kvCache.dtype FP8 needs compute capability {needs}, this GPU has {has}; set it to Auto")
    return FP8


def choose_threads(
    available: int, timer: Callable[[int], float], pause: Callable[[float], None] = time.sleep
) -> tuple[int, str]:
    """One thread or `available`, and why; `timer` gives seconds of a number of threads for the same work.

    Virtual CPUs may share a core for seconds at a time: so what would leave CPUs idle for good is measured again.
    """
    if available == 1:
        return 1, ""
    one, every = timer(1), timer(available)
    for _ in range(DOUBTS):
        if every <= CLEARLY_FASTER * one or one < SMALL:
            break
        pause(DOUBT_SECONDS)
        every = min(every, timer(available))
    numbers = f"the largest layer takes {_us(one)} with 1, {_us(every)} with {available}"
    if every <= CLEARLY_FASTER * one:
        return available, f"{available} threads by measurement ({numbers})"
    return 1, f"1 thread by measurement ({numbers})"


def time_threads(
    threads: int, config: DecoderConfig, slots: int, dtype: torch.dtype, make: MakeLinear = make_linear
) -> float:
    """Seconds as `time_largest_layer` has them, threads placed as they will be; leaves torch with so many threads."""
    torch.set_num_threads(threads)
    with own_cpus(threads, caller=True):
        return time_largest_layer(config, slots, dtype, make)


@torch.inference_mode()
def time_largest_layer(config: DecoderConfig, slots: int, dtype: torch.dtype, make: MakeLinear = make_linear) -> float:
    """Seconds of a multiplication by the widest layer matrix at 1 row, half of `slots` and all; the best of `TRIES`."""
    width = max(2 * config.intermediate, config.qkv_width)
    linear = make(torch.ones(width, config.hidden, dtype=dtype), None)
    seconds = 0.0
    for rows in sorted({1, max(1, slots // 2), slots}):
        x = torch.ones(rows, config.hidden, dtype=dtype)
        linear(x)
        times = []
        for _ in range(TRIES):
            began = time.perf_counter()
            linear(x)
            times.append(time.perf_counter() - began)
        seconds += min(times)
    return seconds


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"
