"""One node a machine: the lock that says which cluster has it. Taken by `cluster.up`, held by the keeper for life."""

import os
from pathlib import Path

from tandem_devcluster import locks
from tandem_devcluster.errors import DevclusterError

_FOLDERS = (Path("/run/lock"), Path("/run"), Path("/var/tmp"))  # noqa: S108 - root's own file, opened without following


def path() -> Path:
    """The lock's file: the same for every user's environment, since the machine is the same."""
    folder = next(each for each in _FOLDERS if each.is_dir())
    return folder / "tandem-devcluster.lock"


def take(folder: Path) -> int:
    """The descriptor that holds the lock. Raises DevclusterError that names the holder's cluster and process."""
    descriptor = locks.try_lock(path(), holder(folder, os.getpid()))
    if descriptor is None:
        raise DevclusterError(f"only one cluster with a node fits on a machine, and {locks.holder_of(path())} has it")
    return descriptor


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
