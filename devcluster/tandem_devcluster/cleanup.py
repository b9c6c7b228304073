"""Removes what the kernel does not: the cluster's folder, its cgroups and, with a node, its link.

Every function may be called at any time and any number of times; the keeper does at a cluster's end, and `up` and
`down` do when they find a cluster whose keeper was killed as well.
"""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.state import ProcessId, alive, identify

KEPT_AFTER_FAILURE = ("log", "spec.json", "state.json", "phase.json")
_END_TIMEOUT_S = 20.0
_POLL_S = 0.02


def kill(process: ProcessId | None) -> None:
    """SIGKILL to exactly this process, and waits for its end. Raises DevclusterError when it does not end."""
    if process is None or not alive(process):
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if identify(process.pid) == process:  # asked again: the descriptor now pins the process
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
    wait_for_end(process, _END_TIMEOUT_S)


def wait_for_end(process: ProcessId, timeout_s: float) -> None:
    """Raises DevclusterError when the process still runs after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while alive(process):
        if time.monotonic() > deadline:
            raise DevclusterError(f"process {process.pid} did not end within {timeout_s:.0f} s")
        time.sleep(_POLL_S)


def reap_descendants() -> None:
    """For a process that adopts orphans: kills what is left of its children and returns when none is left."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while time.monotonic() < deadline:
        for pid in children_of(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_POLL_S)


def children_of(parent: int) -> list[int]:
    """The pids of the processes whose parent is `parent`, by /proc."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                text = (folder / "stat").read_text()
                if int(text[text.rindex(")") + 2 :].split()[1]) == parent:
                    found.append(int(folder.name))
    return found


def remove_folder(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """Removes the folder, or all in it but `keep`. Refuses while something is mounted below it.

    Two processes may do it at once. `state.json` goes last: as long as it is there it says who is cleaning up.
    """
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [path for path in mounted if path == str(folder) or path.startswith(f"{folder}/")]
    if below:
        raise DevclusterError(f"{below[0]} is still mounted, so {folder} was left: run `umount {below[0]}` and `down`")
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "state.json"):
            if entry.name in keep:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, onerror=_unless_gone)
            else:
                entry.unlink(missing_ok=True)
        if not keep:
            folder.rmdir()


def _unless_gone(_function: object, _path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]


def stop(keeper: ProcessId, timeout_s: float) -> None:
    """Asks a keeper to end its cluster and waits for it; one that does not answer in time is killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper.pid, signal.SIGTERM)
    try:
        wait_for_end(keeper, timeout_s)
    except DevclusterError:
        kill(keeper)
