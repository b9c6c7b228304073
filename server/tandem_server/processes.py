"""Processes as /proc tells them: which ones belong to a runner, what they take, and how to end them all.

Beside the path of a request: `residency` asks when a runner ends and for the memory in report and metrics, the runner
itself when its front end is gone. A process belongs to a runner by its session, by the runner's marker in its
environment (what was executed anew), or by the inherited pipe that it holds open (what was only forked).
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARKER = "TANDEM_RUNNER"
"""Environment variable that marks every descendant of a runner; its value is the runner's own."""
PROC = Path("/proc")
LOOK_SECONDS = 0.02
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Kin:
    """What the processes of one runner have in common.

    Attributes:
        session: id of its session, which is the runner's process id.
        marker: value of `MARKER` in the environment.
        pipe: the inherited pipe as /proc names it, such as `pipe:[123]`; empty: there is none.
        since: start of the runner in clock ticks after boot; older processes are no kin.
    """

    session: int
    marker: str
    pipe: str
    since: int = 0


@dataclass(frozen=True)
class Stat:
    """The part of /proc/PID/stat that is of use here."""

    state: str
    parent: int
    group: int
    session: int
    cpu_seconds: float
    started: int
    """Clock ticks after boot."""


def stat_of(pid: int, proc: Path = PROC) -> Stat | None:
    """The process as it is now; None when there is none."""
    try:
        fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return Stat(
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / TICKS,
        started=int(fields[19]),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes in main memory: `rss` counts what is shared for each process, `pss` divides it among its users."""

    rss: int
    pss: int


def memory_of(kin: Kin, proc: Path = PROC) -> Memory | None:
    """What a runner's processes take together, its own included; None when none can be read."""
    found = [memory for pid in members(kin, proc) if (memory := _memory(pid, proc)) is not None]
    return Memory(sum(each.rss for each in found), sum(each.pss for each in found)) if found else None


def _memory(pid: int, proc: Path) -> Memory | None:
    try:
        text = (proc / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return None
    values = {key: rest.split()[0] for key, _, rest in (line.partition(":") for line in text.splitlines()) if rest}
    return Memory(int(values.get("Rss", 0)) * 1024, int(values.get("Pss", 0)) * 1024)


def pipe_name(descriptor: int) -> str:
    """How /proc names the pipe behind a descriptor of this process."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def members(kin: Kin, proc: Path = PROC) -> dict[int, Stat]:
    """The living processes of a runner, this one left out. Zombies are no longer alive."""
    found = {}
    for pid in _pids(proc):
        stat = stat_of(pid, proc)
        if stat is not None and pid != os.getpid() and _belongs(pid, stat, kin, proc):
            found[pid] = stat
    return found


def _pids(proc: Path) -> Iterator[int]:
    for entry in os.scandir(proc):
        if entry.name.isdecimal():
            yield int(entry.name)


def _belongs(pid: int, stat: Stat, kin: Kin, proc: Path) -> bool:
    if stat.state in "ZX" or stat.started < kin.since:
        return False
    return kin.session in (stat.session, stat.group) or _marked(pid, kin, proc) or _holds(pid, kin, proc)


def _marked(pid: int, kin: Kin, proc: Path) -> bool:
    try:
        environment = (proc / str(pid) / "environ").read_bytes()
    except OSError:  # another user's, or gone
        return False
    return f"{MARKER}={kin.marker}".encode() in environment.split(b"\0")


def _holds(pid: int, kin: Kin, proc: Path) -> bool:
    try:
        descriptors = list(os.scandir(proc / str(pid) / "fd"))
    except OSError:
        return False
    for descriptor in descriptors:
        with suppress(OSError):
            if kin.pipe and os.readlink(descriptor.path) == kin.pipe:
                return True
    return False


def end_all(kin: Kin, grace_seconds: float, most_seconds: float) -> list[int]:
    """Waits for the processes of a runner to end, kills them after the grace; blocks. Returns those still there.

    Safe against process ids that are used again: each one is looked at once more through a descriptor of its own.
    """
    began = time.monotonic()
    while left := members(kin):
        elapsed = time.monotonic() - began
        if elapsed >= most_seconds:
            break
        if elapsed >= grace_seconds:
            for pid in left:
                _kill(pid, kin)
        time.sleep(LOOK_SECONDS)
    return list(left)


def _kill(pid: int, kin: Kin) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        stat = stat_of(pid)
        if stat is not None and _belongs(pid, stat, kin, PROC):
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)
