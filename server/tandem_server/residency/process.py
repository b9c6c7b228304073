"""The runner as an operating-system process: started, watched, ended with everything it started itself.

Between `runner` (which speaks to it) and the kernel. Processes are forked from a fork server that has imported torch
but never touched CUDA, so that a start costs no import. Each is a session of its own; the read end of a pipe, whose
write end only this process holds, tells it and its descendants when this process is gone.
"""

import asyncio
import atexit
import importlib
import multiprocessing
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from types import ModuleType
from typing import Literal

import msgspec

from tandem_server import logs, processes
from tandem_server.engine import lifeline
from tandem_server.engine.wire import RunnerSpec
from tandem_server.residency.causes import exit_cause, memory_kills
from tandem_server.residency.threads import in_thread

GRACE_SECONDS = 0.3
"""For descendants of a dead runner that end by themselves when the pipe closes, before they are killed."""
KIN_SECONDS = 5.0
"""For all of them to be gone."""
_FIRST = "tandem_server.residency.forkserver_start"
_live: set[int] = set()


@dataclass(frozen=True)
class Start:
    """What a forked process is told. `marker` is the runner's alone; `beat_seconds` parts two heartbeats."""

    entry: str
    log_format: Literal["text", "json"]
    marker: str
    beat_seconds: float


def child_main(spec: bytes, start: Start, parent: Connection, heart: Connection) -> None:
    """What a forked runner process executes; never returns to anything that matters."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.environ[lifeline.PARENT_PIPE] = str(parent.fileno())
    os.environ[lifeline.HEARTBEAT] = f"{heart.fileno()}:{start.beat_seconds}"
    os.environ[processes.MARKER] = start.marker
    logs.configure(start.log_format)
    lifeline.hold()
    module, _, function = start.entry.partition(":")
    getattr(importlib.import_module(module), function)(msgspec.msgpack.decode(spec, type=RunnerSpec))


@contextmanager
def _without_main() -> Iterator[None]:
    """Hides the program's main module from multiprocessing, which would import it again in every child.

    A runner needs nothing of it, and the front end's imports would cost each runner half a second and its memory.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _discard(starting: "asyncio.Future[RunnerProcess]") -> None:
    """Ends a process whose start nobody waited for to the end."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().signal(signal.SIGKILL)
        starting.result().reap()


def _kill_all_left() -> None:
    """At interpreter exit: without this, multiprocessing would wait for ever for a runner that nobody ended."""
    for group in list(_live):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


class Launcher:
    """Starts runner processes from one fork server.

    Args:
        entry: `module:function` that a child calls with its RunnerSpec.
        preload: modules that the fork server imports before the first fork.
        beat_seconds: between two heartbeats of a runner.
    """

    def __init__(
        self,
        entry: str,
        preload: tuple[str, ...],
        log_format: Literal["text", "json"] = "text",
        beat_seconds: float = 1.0,
    ) -> None:
        self._entry = entry
        self._beat_seconds = beat_seconds
        self._log_format: Literal["text", "json"] = log_format
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_FIRST, *preload])
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts the fork server, which goes on importing by itself."""
        from multiprocessing import forkserver

        with self._lock:
            forkserver.ensure_running()

    async def start(self, spec: RunnerSpec) -> "RunnerProcess":
        """Starts a process. Raises OSError when the system gives none."""
        starting = asyncio.ensure_future(in_thread(self._start, spec))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_discard)
            raise

    def _start(self, spec: RunnerSpec) -> "RunnerProcess":
        start = Start(self._entry, self._log_format, secrets.token_hex(8), self._beat_seconds)
        reader, writer = self._context.Pipe(duplex=False)
        heart, beating = self._context.Pipe(duplex=False)
        with self._lock, reader, beating:
            process = self._context.Process(
                target=child_main,
                args=(msgspec.msgpack.encode(spec), start, reader, beating),
                name=f"runner of {spec.model}",
                daemon=False,
            )
            try:
                with _without_main():
                    process.start()
            except BaseException:
                writer.close()
                heart.close()
                raise
        return RunnerProcess(process, writer, heart, start.marker)


class RunnerProcess:
    """One started process. `pid` is also its process group and session."""

    def __init__(self, process: ForkServerProcess, pipe: Connection, heart: Connection, marker: str) -> None:
        assert process.pid is not None
        self.pid: int = process.pid
        began = processes.stat_of(self.pid)
        self.kin = processes.Kin(self.pid, marker, processes.pipe_name(pipe.fileno()), began.started if began else 0)
        self._process = process
        self._pipe = pipe
        self._heart = heart
        os.set_blocking(heart.fileno(), False)
        self._kills_before = memory_kills()
        self._asked_to_end: str | None = None
        self._reaped = False
        _live.add(self.pid)

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Calls `on_exit` once on the running event loop when the process has ended."""
        loop = asyncio.get_running_loop()
        sentinel = self._process.sentinel

        def ended() -> None:
            loop.remove_reader(sentinel)
            on_exit()

        loop.add_reader(sentinel, ended)

    def beaten(self) -> bool:
        """Whether a heartbeat came since the last call."""
        try:
            return bool(os.read(self._heart.fileno(), 65_536))
        except BlockingIOError:
            return False

    def state(self) -> str:
        """The process's state letter of /proc, such as `T` for stopped; empty when it is gone."""
        stat = processes.stat_of(self.pid)
        return stat.state if stat is not None else ""

    def cpu_seconds(self) -> float:
        """CPU time that its living processes took so far; walks through /proc."""
        return sum(stat.cpu_seconds for stat in processes.members(self.kin).values())

    def memory(self) -> processes.Memory | None:
        """What its living processes take; walks through /proc."""
        return processes.memory_of(self.kin)

    def reap(self) -> str:
        """After the end: ends what is left of the group, frees what was held, and says why it ended."""
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        self.signal(signal.SIGKILL)
        self._reaped = True
        _live.discard(self.pid)
        self._pipe.close()
        self._heart.close()
        cause = self._asked_to_end or exit_cause(code, memory_kills() - self._kills_before)
        with suppress(ValueError):
            self._process.close()
        return cause

    async def end_kin(self) -> list[int]:
        """After `reap`: ends descendants that left the group for one of their own; returns those that would not."""
        return await in_thread(processes.end_all, self.kin, GRACE_SECONDS, KIN_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the whole group; nothing once it is reaped, since its id may be another's by then."""
        if self._reaped:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            # Either all are gone, or the child has not made its own session yet and is alone.
            if self._process.is_alive():
                os.kill(self.pid, number)
        except PermissionError:
            return

    def will_end(self, because: str) -> None:
        """Notes why the process is about to be ended, for `reap` to tell."""
        self._asked_to_end = self._asked_to_end or because


atexit.register(_kill_all_left)
