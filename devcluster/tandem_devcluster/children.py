"""The supervisor's processes: starting them bound to its life, noticing which one ended, showing its last words."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tandem_devcluster import kernel
from tandem_devcluster.errors import DevclusterError

POLL_S = 0.05
_LAST_LINES = 12
_LINE_LENGTH = 400


def last_lines(log: Path, count: int = _LAST_LINES) -> str:
    """The end of a log file, each line cut at 400 letters; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line[:_LINE_LENGTH] for line in lines[-count:])


def describe_end(name: str, status: int, log: Path) -> str:
    """A sentence for a component that ended, with its last log lines; `status` is that of waitpid."""
    code = os.waitstatus_to_exitcode(status)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    words = last_lines(log)
    return f"{name} {how}; its last log lines:\n{words}" if words else f"{name} {how} without a word in its log"


class Children:
    """Component processes by name. Only for a single-threaded process: it waits for any child."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = dict(environment)
        self._names: dict[int, str] = {}

    @property
    def pids(self) -> dict[str, int]:
        """Who runs, as seen from this process's PID namespace."""
        return {name: pid for pid, name in self._names.items()}

    def start(self, name: str, command: list[str]) -> None:
        """Starts a component, its output in `<logs>/<name>.log`. It is killed when the supervisor ends."""
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd="/",
                preexec_fn=kernel.die_with_parent,  # noqa: PLW1509 - safe: this process has one thread
            )
        self._names[process.pid] = name
        process.returncode = 0  # its end is collected by `check`; without this Popen would warn about it

    def check(self, options: int = os.WNOHANG) -> None:
        """Reaps what ended. Raises DevclusterError when it was a component; orphans of others are only reaped."""
        while True:
            try:
                pid, status = os.waitpid(-1, options)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._names:
                name = self._names.pop(pid)
                raise DevclusterError(describe_end(name, status, self._logs / f"{name}.log"))

    def wait_for(self, what: str, ready: Callable[[], bool], timeout_s: float, component: str) -> None:
        """Waits until `ready()`. Raises DevclusterError when a component ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                words = last_lines(self._logs / f"{component}.log")
                raise DevclusterError(f"{what} within {timeout_s:.0f} s; last log lines of {component}:\n{words}")
            time.sleep(POLL_S)
