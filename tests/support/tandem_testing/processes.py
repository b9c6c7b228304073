"""Processes of a pod as the machine sees them, so that a test can kill one that kubectl cannot reach."""

import os
import signal
from pathlib import Path


def of_pod(uid: str) -> list[int]:
    """Process ids of the pod with `uid`, by their cgroup."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if uid in (folder / "cgroup").read_text():
                    found.append(int(folder.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def command(pid: int) -> str:
    """Command line of a process, or an empty text when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def parent(pid: int) -> int:
    """Process id of a process's parent; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def runners(uid: str) -> list[int]:
    """The runner processes of the serving pod with `uid`: what its fork server has forked."""
    forked = {pid for pid in of_pod(uid) if "forkserver" in command(pid)}
    return [pid for pid in forked if parent(pid) in forked]


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
