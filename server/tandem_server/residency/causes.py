"""Why a runner process ended, as a sentence: its exit code or signal, and whether memory ran out.

Last on the path of a runner's life; `process` asks. The kernel counts its kills for memory per container: cgroup v2 in
`memory.events`, v1 in `memory.oom_control`.
"""

import signal
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def exit_cause(code: int | None, memory_kills: int = 0) -> str:
    """How a process ended, as the predicate of a sentence. `code` is Python's: negative for a signal."""
    if code is None or code == 255:
        return "vanished together with the fork server"
    if code >= 0:
        return (
            "ended by itself with code 0" if code == 0 else f"ended with exit code {code}; its log lines above say more"
        )
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    cause = f"was killed by signal {-code} ({name})"
    if -code == signal.SIGKILL:
        if memory_kills > 0:
            return cause + " because the container ran out of memory; raise its memory limit or lower context or slots"
        return cause + ", as the kernel does when memory runs out"
    if -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL):
        return cause + ", a fault in native code"
    return cause


def memory_kills(root: Path = CGROUPS, own: Path = OWN) -> int:
    """How often the kernel killed a process of this container for memory; 0 where it does not say.

    Args:
        root: where the cgroup file systems are mounted.
        own: the cgroups of this process, one `number:controllers:path` a line.
    """
    for file in _counters(root, own):
        try:
            text = file.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            key, _, number = line.partition(" ")
            if key == "oom_kill" and number.strip().isdecimal():
                return int(number)
    return 0


def _counters(root: Path, own: Path) -> list[Path]:
    """Files that may count the kills, the nearest first. A container often sees its own cgroup as the root."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    paths = {controllers: path.lstrip("/") for _, controllers, path in (line for line in lines if len(line) == 3)}
    first = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), "")
    return [
        root / paths.get("", "") / "memory.events",
        root / "memory.events",
        root / "memory" / first / "memory.oom_control",
        root / "memory" / "memory.oom_control",
    ]
