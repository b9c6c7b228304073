"""One node a machine: the lock that says which cluster has it. Taken by `cluster.up`, held by the keeper for life."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem_devcluster import locks
from tandem_devcluster.errors import DevclusterError

_FOLDERS = (Path("/run/lock"), Path("/run"), Path("/var/tmp"))  # noqa: S108 - root's own file, opened without following
_PATIENCE_S = 3.0  # the holder may be cleaning up


def path() -> Path:
    """The lock's file: the same for every user's environment, since the machine is the same."""
    folder = next(each for each in _FOLDERS if each.is_dir())
    return folder / "tandem-devcluster.lock"


def take(folder: Path) -> int:
    """The descriptor that holds the lock. Raises DevclusterError that names the holder's cluster and process."""
    deadline = time.monotonic() + _PATIENCE_S
    while (descriptor := locks.try_lock(path(), holder(folder, os.getpid()))) is None:
        if time.monotonic() < deadline:
            time.sleep(locks.POLL_S)
            continue
        raise DevclusterError(
            f"only one cluster with a node fits on a machine, and {locks.holder_of(path())} has it; "
            "end that one first: python -m tandem_devcluster down --name NAME (make demo-down for the demo's)"
        )
    return descriptor


@contextmanager
def free() -> Iterator[bool]:
    """True while no cluster has the machine, which none can take then. A file that a killed holder left goes."""
    descriptor = locks.try_lock(path(), f"a clean-up (process {os.getpid()})")
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            locks.unlock(path(), descriptor)


def pass_on(descriptor: int, folder: Path) -> None:
    """Called by the keeper, which inherited the descriptor: names itself and keeps it from its own children."""
    os.set_inheritable(descriptor, False)
    locks.write_holder(descriptor, holder(folder, os.getpid()))


def give_back(descriptor: int) -> None:
    """Frees the machine for the next cluster."""
    locks.unlock(path(), descriptor)


def holder(folder: Path, pid: int) -> str:
    """What stands in the file."""
    return f"the cluster '{folder.name}' (process {pid}, {folder})"
