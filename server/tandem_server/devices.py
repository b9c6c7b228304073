"""Memory of the devices that a pod computes on, as the report tells it.

Of a CPU: the container's limit, or the machine's memory; with a budget (`TANDEM_DEVICE_MEMORY`) it counts as several
devices, so that what places models on GPUs is the same without one. Of GPUs: what `nvidia-smi` says, asked in the
background so that a report never waits for the driver. Without importing torch: the front end never does.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tandem_api.fields import Device
from tandem_api.report import DeviceReport

_log = logging.getLogger(__name__)
_CGROUP = Path("/sys/fs/cgroup")
_QUERY = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
REFRESH_SECONDS = 10.0
ANSWER_SECONDS = 20.0
MIB = 2**20


class DeviceError(Exception):
    """The device that the pod was told to use is not there; the message is the driver's."""


class Devices:
    """The pod's devices, one for each entry of the budget where there is one; `start` before the first `now`."""

    def __init__(self, kind: Device, budget: Sequence[int] = ()) -> None:
        self._kind, self._budget = kind, tuple(budget)
        self._gpus: list[DeviceReport] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Looks once. Raises DeviceError when the pod is for a GPU and the driver says that there is none."""
        if self._kind is Device.CPU or shutil.which("nvidia-smi") is None:
            return
        self._gpus = await _ask_driver()
        if len(self._budget) > len(self._gpus):
            count = len(self._gpus)
            raise DeviceError(
                f"TANDEM_DEVICE_MEMORY has {len(self._budget)} sizes, and the driver lists {count} "
                f"GPU{'s' if count != 1 else ''}; give one size for each"
            )
        self._task = asyncio.create_task(self._refresh())

    async def close(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def now(self) -> list[DeviceReport]:
        """What was seen last; of a CPU, what is now."""
        found = [cpu_report()] if self._kind is Device.CPU else list(self._gpus)
        return within(found, self._budget) if found else []

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                self._gpus = await _ask_driver()
            except DeviceError as error:
                _log.warning("The GPU driver does not answer: %s", error)


def within(found: Sequence[DeviceReport], budget: Sequence[int]) -> list[DeviceReport]:
    """The devices with no more memory than each one's entry of the budget; of one CPU as many as there are entries."""
    if not budget:
        return list(found)
    shared = found[0].kind == Device.CPU.value
    devices = [found[0]] * len(budget) if shared else found
    told = []
    for number, (device, size) in enumerate(zip(devices, budget, strict=False)):
        name = f"{device.name}, share {number}" if shared and len(budget) > 1 else device.name
        limits = {"total_bytes": min(size, device.total_bytes), "free_bytes": min(size, device.free_bytes)}
        told.append(device.model_copy(update={"name": name, **limits}))
    return told


async def _ask_driver() -> list[DeviceReport]:
    process = await asyncio.create_subprocess_exec(
        "nvidia-smi", *_QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), ANSWER_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise DeviceError(f"nvidia-smi did not answer within {ANSWER_SECONDS:.0f} s") from None
    text = output.decode(errors="replace").strip()
    if process.returncode != 0:
        raise DeviceError(f"this pod was told to use a GPU, but the driver says: {text}")
    gpus = parse_gpus(text)
    if not gpus:
        raise DeviceError("this pod was told to use a GPU, but the driver lists none; ask for nvidia.com/gpu")
    return gpus


def parse_gpus(text: str) -> list[DeviceReport]:
    """Lines of `name, total MiB, free MiB`; a line with other fields (such as `[N/A]`) counts 0 bytes."""
    found = []
    for line in text.splitlines():
        name, total, free = ([part.strip() for part in line.rsplit(",", 2)] + ["", ""])[:3]
        if name:
            found.append(
                DeviceReport(
                    name=name,
                    kind=Device.GPU.value,
                    total_bytes=int(total) * MIB if total.isdecimal() else 0,
                    free_bytes=int(free) * MIB if free.isdecimal() else 0,
                )
            )
    return found


def cpu_report(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> DeviceReport:
    """Memory of the container's limit where it has one below the machine's, else of the machine."""
    total, free = _machine_memory(meminfo)
    limit = _number(cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes")
    used = _number(cgroup / "memory.current", cgroup / "memory/memory.usage_in_bytes")
    if limit is not None and used is not None and limit < total:
        total, free = limit, max(0, min(free, limit - used))
    cpus = len(os.sched_getaffinity(0))
    return DeviceReport(name=f"{cpus} CPUs", kind=Device.CPU.value, total_bytes=total, free_bytes=free)


def _machine_memory(meminfo: Path) -> tuple[int, int]:
    values = {}
    for line in meminfo.read_text().splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) * 1024
    return values["MemTotal"], values.get("MemAvailable", values.get("MemFree", 0))


def _number(*paths: Path) -> int | None:
    """The number in the first of the files that is there: cgroup v2 names its files otherwise than v1."""
    for path in paths:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None
