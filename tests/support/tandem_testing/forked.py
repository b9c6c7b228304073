"""The operator as a fork of a process that has imported it already: a start costs 0.05 s of CPU instead of 0.7.

For tests that start it a hundred times. It is a process like any other: it reads the same settings from its
environment, has its own memory and can be killed with signal 9.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
# pytest too, since a child runs again what this process was started with, which imports it.
_SERVER.set_forkserver_preload(["pytest", "tandem_operator.__main__"])


def _operate(environment: dict[str, str], log: str) -> None:
    os.environ.update(environment)
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    from tandem_operator.__main__ import main

    sys.exit(main())


class Forked:
    """One operator; the methods are those of `asyncio.subprocess.Process`."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._process = _SERVER.Process(target=_operate, args=(environment, str(log)), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process while it lives."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        """Waits for its end; its exit status."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        watched = os.dup(self._process.sentinel)  # several may wait, and a descriptor has one reader
        loop.add_reader(watched, ended.set)
        try:
            while self._process.exitcode is None:
                await ended.wait()
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        return self._process.exitcode
