"""What the machine gives a runner: CPU threads and memory, as the container's limits have it, not as the host has.

Read at load. The probes read `/proc`, `/sys/fs/cgroup` and CUDA; what fits is decided by `tandem_api.fit`.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from tandem_api.fields import Device
from tandem_api.fit import GPU_FIXED, Refusal, Wish, fit_context, mib, reserve_bytes
from tandem_server.engine.interface import DoesNotFit, LoadError
from tandem_server.engine.wire import RunnerSpec

CGROUP = Path("/sys/fs/cgroup")


def cpu_threads(asked: int | None, cgroup: Path = CGROUP) -> int:
    """Threads to compute with: `asked`, else the CPUs that affinity and the cgroup's quota leave."""
    if asked:
        return asked
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _cpu_quota(cgroup))))


def _cpu_quota(cgroup: Path) -> float:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def available_bytes(device: torch.device, limit: int | None = None, cgroup: Path = CGROUP) -> int:
    """Memory that may still be taken on `device`: of `limit`, where there is one, what this process has not taken."""
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
    else:
        free = min(_machine_available(), _container_available(cgroup))
    return free if limit is None else max(0, min(free, limit - taken_bytes(device)))


def taken_bytes(device: torch.device) -> int:
    """Memory of `device` that this process holds; of a GPU's driver what is assumed."""
    return resident_bytes() if device.type == "cpu" else torch.cuda.memory_reserved(device) + GPU_FIXED


def _machine_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def _container_available(cgroup: Path) -> int:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        reclaimable = _stat(cgroup / "memory.stat", "inactive_file")
    except OSError:
        try:
            limit = (cgroup / "memory/memory.limit_in_bytes").read_text().strip()
            used = int((cgroup / "memory/memory.usage_in_bytes").read_text())
            reclaimable = _stat(cgroup / "memory/memory.stat", "total_inactive_file")
        except OSError:
            return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used + reclaimable)


def _stat(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def resident_bytes() -> int:
    """Memory of this process that is really in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def usable_bytes(device: torch.device, limit: int | None, cgroup: Path = CGROUP) -> int:
    """Memory that contexts and steps may be planned with: under a limit all that it leaves, else not the last of it."""
    free = available_bytes(device, limit, cgroup)
    return free - reserve_bytes(free) if limit is None else free


def check_weights_fit(needed: int, available: int, what: str = "the weights need") -> None:
    """Raises DoesNotFit with both numbers when the weights alone are too large."""
    if needed > available:
        raise DoesNotFit(
            f"{what} {mib(needed)}, {mib(available)} is free; give the pod more memory or use a smaller model"
        )


def given_context(wish: Wish, limit: int, slots: int, free: int, needed: Callable[[int], int]) -> tuple[int, str]:
    """As `tandem_api.fit.fit_context`, with the weights loaded.

    Raises:
        LoadError: more was asked for than the model was made for, and less will not do.
        DoesNotFit: not even the least context that will do fits; the text has the numbers.
    """
    given = fit_context(wish, limit, slots, free, needed, " beside the weights")
    if isinstance(given, Refusal):
        raise (LoadError if given.too_long else DoesNotFit)(given.reason)
    return given


def wish_of(spec: RunnerSpec) -> Wish:
    """What the runner was asked for, in the words of the arithmetic."""
    return Wish(
        Device(spec.device),
        spec.dtype,
        spec.quantization,
        spec.slots,
        spec.context,
        spec.min_context,
        spec.may_shrink,
        spec.cache_dtype,
        spec.shared_cache,
        spec.task,
    )
