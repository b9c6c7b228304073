"""The device that a runner computes on: the one that the pod was told to use, or an error that says why not.

First of all in a load, for models that make text and those that embed.
"""

import time
from collections.abc import Callable

import torch

from tandem_api.fit import DEFAULT_SLOTS as DEFAULT_SLOTS
from tandem_api.fit import GPU_FIXED
from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.resources import cpu_threads, resident_bytes
from tandem_server.engine.wire import RunnerSpec

BACK_SECONDS = 5.0
ONE_THREAD_BELOW = 1 << 19
"""Elements of the largest layer matrix."""


def open_device(spec: RunnerSpec, widest: int) -> torch.device:
    """The device that the pod was told to use, its allocator bound to the runner's limit. Raises LoadError without it.

    `widest` is the number of elements of the model's largest layer matrix: for small ones a second CPU thread costs
    more in handing over than it saves, and where the CPUs are shared it stalls every operation.
    """
    if spec.device != "GPU":
        torch.set_num_threads(cpu_threads(spec.threads or (1 if widest < ONE_THREAD_BELOW else None)))
        return torch.device("cpu")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        device = torch.device("cuda", spec.device_index)
        torch.cuda.set_device(device)
        if spec.memory_limit is not None:
            whole = torch.cuda.get_device_properties(device).total_memory
            share = max(0.0, min(1.0, (spec.memory_limit - GPU_FIXED) / whole))
            torch.cuda.set_per_process_memory_fraction(share, device)
            wait_for_memory(lambda: torch.cuda.mem_get_info(device)[0], spec.memory_limit - GPU_FIXED)
    except (RuntimeError, AssertionError) as error:
        raise LoadError(
            f"a GPU was asked for and none can be used: {error}; set device: CPU to compute on the CPU"
        ) from None
    # Where torch prefers cuDNN's attention it makes a plan for every length of a prompt that it has not seen yet.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def wait_for_memory(free: Callable[[], int], wanted: int, seconds: float = BACK_SECONDS) -> None:
    """Returns once so many bytes are free: those of a runner that was just ended come back a moment after its end.

    After `seconds` it returns all the same; the load then decides by what there is.
    """
    deadline = time.monotonic() + seconds
    while free() < wanted and time.monotonic() < deadline:
        time.sleep(BACK_SECONDS / 100)


def device_name(device: torch.device) -> str:
    """As people read it: the GPU's name, or the CPU with the threads that are set now."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"


def used_bytes(device: torch.device) -> int:
    """Memory in use: of this process on a CPU, of the allocator on a GPU."""
    return resident_bytes() if device.type == "cpu" else torch.cuda.memory_reserved(device)
