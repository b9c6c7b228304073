"""The one cgroup below which all pods run: made before the kubelet starts, removed by the keeper. Version 1 and 2."""

import contextlib
import os
import time
from pathlib import Path

from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.node_config import CGROUP

_NEEDED = {"cpu", "cpuset", "memory", "pids"}
_TIMEOUT_S = 10.0
_POLL_S = 0.02


def hierarchies(mountinfo: str) -> list[tuple[Path, set[str]]]:
    """The cgroup hierarchies in the text of /proc/self/mountinfo: mount point and, in version 1, controllers."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind == "cgroup2":
            found.append((Path(before.split()[4]), set[str]()))
        elif kind == "cgroup":
            found.append((Path(before.split()[4]), set(options.split()[-1].split(","))))
    return found


def _mounted() -> list[tuple[Path, set[str]]]:
    return hierarchies(Path("/proc/self/mountinfo").read_text())


def make() -> None:
    """Makes the cgroup in every hierarchy. Raises DevclusterError when the machine lacks a controller."""
    mounted = _mounted()
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    present = set(unified.read_text().split()) if unified.exists() else set[str]().union(*(each for _, each in mounted))
    if lacking := _NEEDED - present:
        raise DevclusterError(f"this machine has no cgroup controller {', '.join(sorted(lacking))}: pods need it")
    for root, _ in mounted:
        try:
            (root / CGROUP).mkdir(exist_ok=True)
        except OSError as error:
            raise DevclusterError(
                f"cgroups cannot be made here ({error}): run on a machine or VM of your own"
            ) from error


def remove() -> None:
    """Removes the cgroup with all below. A process that was just killed holds its own for a moment: waits for it."""
    deadline = time.monotonic() + _TIMEOUT_S
    for root, _ in _mounted():
        top = root / CGROUP
        with contextlib.suppress(OSError):
            (top / "cgroup.kill").write_text("1")  # version 2
        while top.exists():
            for folder, _, _ in os.walk(top, topdown=False):
                _remove(Path(folder))
            if top.exists():
                if time.monotonic() > deadline:
                    raise DevclusterError(f"the cgroup {top} is still in use: see the processes in its cgroup.procs")
                time.sleep(_POLL_S)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # busy for a moment: `remove` asks again
        folder.rmdir()
