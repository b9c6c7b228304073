"""Locks between processes of this machine, held by an open file and released by the kernel when its holder ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.1


def try_lock(path: Path, holder: str) -> int | None:
    """Takes the lock and writes `holder` into its file. Returns the descriptor, None when another holds it.

    The file is removed by `unlock`, so after taking the lock it is checked to be still the one under that name.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_current(path, descriptor):
            write_holder(descriptor, holder)
            return descriptor
        os.close(descriptor)


def write_holder(descriptor: int, holder: str) -> None:
    """Says in the lock's file who holds it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder.encode(), 0)


def holder_of(path: Path) -> str:
    """What the holder wrote, empty when nobody did."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def unlock(path: Path, descriptor: int) -> None:
    """Gives the lock back and removes its file."""
    if _is_current(path, descriptor):
        path.unlink(missing_ok=True)
    os.close(descriptor)


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Waits for the lock. Raises TimeoutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (descriptor := try_lock(path, str(os.getpid()))) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {path}, held by process {holder_of(path)}")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        unlock(path, descriptor)


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
