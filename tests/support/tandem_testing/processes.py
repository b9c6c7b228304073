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


def session_leaders(uid: str) -> list[int]:
    """Processes of the pod that lead a session of their own: its runners, and the container's first process."""
    return [pid for pid in of_pod(uid) if _session(pid) == pid]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
