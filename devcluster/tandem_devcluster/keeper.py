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

from tandem_devcluster import cleanup, kernel
from tandem_devcluster.state import ProcessId, Spec, State, identify, read_phase, read_spec, write_json


class Keeper:
    """One cluster's keeper."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self._folder = folder
        self._spec = spec
        self._me = self._identity(os.getpid())
        self._created = time.time()
        self._supervisor = 0
        self._stopping = False

    def run(self) -> None:
        """Starts the supervisor and returns when it and everything of it is gone."""
        kernel.adopt_orphans()
        signal.signal(signal.SIGTERM, self._stop)
        self._write_state(None)
        try:
            self._supervisor, report, go = self._fork()
            self._write_state(self._identity(self._supervisor))
            if os.read(report, 1) and not self._stopping:
                self._connect()
                os.write(go, b"1")
            os.close(go)  # without the byte the child ends by itself
            os.waitid(os.P_PID, self._supervisor, os.WEXITED | os.WNOWAIT)
        finally:
            # First deaf, then reaped: a late SIGTERM must not reach another process that got the pid.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._clean()

    def _connect(self) -> None:
        """Host side of the node's network; nothing for a control plane."""

    def _clean(self) -> None:
        cleanup.reap_descendants()
        phase = read_phase(self._folder)
        failed = phase is not None and phase.phase == "failed" and not self._stopping
        cleanup.remove_folder(self._folder, cleanup.KEPT_AFTER_FAILURE if failed else ())

    def _write_state(self, supervisor: ProcessId | None) -> None:
        write_json(self._folder / "state.json", State(self._me, self._created, supervisor))

    def _fork(self) -> tuple[int, int, int]:
        """The child's pid, where it says that it is set up, and where it is told to go on."""
        report, said = os.pipe()
        told, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            become_supervisor(self._folder, said, told)
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


def become_supervisor(folder: Path, said: int, told: int) -> None:
    """In the forked child: bound to the keeper's life, turns into the supervisor. Does not return."""
    try:
        kernel.die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(said, b"1")
        if os.read(told, 1):  # nothing comes when the keeper ended before this child was bound to it
            os.execv(sys.executable, [sys.executable, "-m", "tandem_devcluster.supervisor", str(folder)])  # noqa: S606
    finally:
        os._exit(127)


def main() -> int:
    """`python -m tandem_devcluster.keeper FOLDER`: goes on in the background, the caller returns at once."""
    folder = Path(sys.argv[1])
    spec = read_spec(folder)
    if spec is None:
        print(f"{folder} holds no spec.json", file=sys.stderr)
        return 2
    if os.fork():
        os._exit(0)
    Keeper(folder, spec).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
