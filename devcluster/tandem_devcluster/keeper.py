"""The process outside: it outlives the command `up`, starts the supervisor, waits for its end and cleans up.

It is the supervisor's parent, so the kernel tells it of the end whatever the reason; and it adopts what the
supervisor leaves behind. When the keeper itself is killed the supervisor is killed by the kernel, and what is left
on disk is removed by the next `up` or `down`.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tandem_devcluster import cgroups, cleanup, kernel, network, node_lock
from tandem_devcluster.children import last_lines
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.state import Phase, ProcessId, Spec, State, identify, read_phase, read_spec, write_json


class Keeper:
    """One cluster's keeper."""

    def __init__(self, folder: Path, spec: Spec, lock: int | None) -> None:
        self._folder = folder
        self._lock = lock
        self._spec = spec
        self._me = self._identity(os.getpid())
        self._created = time.time()
        self._supervisor = 0
        self._stopping = False

    def run(self, told: int) -> None:
        """Starts the supervisor and returns when it and everything of it is gone; writes a byte to `told` at once."""
        kernel.adopt_orphans()
        if self._lock is not None:
            node_lock.pass_on(self._lock, self._folder)
        signal.signal(signal.SIGTERM, self._stop)
        self._write_state(None)
        os.write(told, b"1")
        os.close(told)
        try:
            self._remove_machine_wide()  # what a killed keeper may have left
            self._supervisor, report, go = self._fork()
            self._write_state(self._identity(self._supervisor))
            if os.read(report, 1) and not self._stopping:
                if self._spec.node:
                    network.connect_host(self._supervisor)
                os.write(go, b"1")
            os.close(go)  # without the byte the child ends by itself
            ended = os.waitid(os.P_PID, self._supervisor, os.WEXITED | os.WNOWAIT)
            if ended is not None and ended.si_code == os.CLD_EXITED and not self._stopping:
                self._tell_failure(last_lines(self._folder / "log" / "keeper.log"))
        except (DevclusterError, OSError) as error:
            self._tell_failure(str(error))
        finally:
            # First deaf, then reaped: a late SIGTERM must not reach another process that got the pid.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            try:
                self._clean()
            finally:
                if self._lock is not None:
                    node_lock.give_back(self._lock)

    def _clean(self) -> None:
        cleanup.reap_descendants()
        self._remove_machine_wide()
        phase = read_phase(self._folder)
        failed = phase is not None and phase.phase == "failed" and not self._stopping
        cleanup.remove_folder(self._folder, cleanup.KEPT_AFTER_FAILURE if failed else ())

    def _tell_failure(self, reason: str) -> None:
        """Says why the cluster ended, unless the supervisor, which is gone by now, has said it."""
        phase = read_phase(self._folder)
        if phase is None or phase.phase != "failed":
            write_json(self._folder / "phase.json", Phase("failed", reason))

    def _remove_machine_wide(self) -> None:
        if self._spec.node:
            network.remove_link()
            cgroups.remove()

    def _write_state(self, supervisor: ProcessId | None) -> None:
        write_json(self._folder / "state.json", State(self._me, self._created, supervisor))

    def _fork(self) -> tuple[int, int, int]:
        """The child's pid, where it says that it is set up, and where it is told to go on."""
        report, said = os.pipe()
        told, go = os.pipe()
        pid = fork_into_namespace() if self._spec.node else os.fork()
        if pid == 0:
            os.close(go)
            become_supervisor(self._folder, self._spec.node, said, told)
        os.close(said)
        os.close(told)
        return pid, report, go

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        if self._supervisor:
            os.kill(self._supervisor, signal.SIGKILL)

    def _identity(self, pid: int) -> ProcessId:
        # A child that has ended already is still ours to wait for, so its pid cannot mean another process.
        return identify(pid) or ProcessId(pid, 0)


def fork_into_namespace() -> int:
    """Like os.fork, the child being the first process of a new PID namespace: when it ends, all in it end."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        kernel.unshare(kernel.CLONE_NEWPID)
        pid = os.fork()
        if pid:
            kernel.setns(own, kernel.CLONE_NEWPID)  # later children of the keeper are the host's again
    finally:
        os.close(own)
    return pid


def become_supervisor(folder: Path, node: bool, said: int, told: int) -> None:
    """In the forked child: bound to the keeper's life, turns into the supervisor. Does not return."""
    try:
        kernel.die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if node:
            kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS)
        os.write(said, b"1")
        if os.read(told, 1):  # nothing comes when the keeper ended before this child was bound to it
            os.execv(sys.executable, [sys.executable, "-m", "tandem_devcluster.supervisor", str(folder)])  # noqa: S606
    except OSError as error:
        print(f"the supervisor could not be started: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def main() -> int:
    """`python -m tandem_devcluster.keeper FOLDER [LOCK]`: goes on in the background, the caller returns at once.

    LOCK is the inherited descriptor of the machine's node lock.
    """
    folder = Path(sys.argv[1])
    lock = int(sys.argv[2]) if len(sys.argv) > 2 else None
    spec = read_spec(folder)
    if spec is None:
        print(f"{folder} holds no spec.json", file=sys.stderr)
        return 2
    started, told = os.pipe()
    if os.fork():
        os.close(told)
        return 0 if os.read(started, 1) else 1  # until the keeper stands in state.json, or has failed to
    os.close(started)
    Keeper(folder, spec, lock).run(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
