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
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Literal

import msgspec

from tandem_server import logs
from tandem_server.engine.wire import RunnerSpec

PARENT_PIPE = "TANDEM_PARENT_PIPE"
"""Environment variable of a runner: number of the file descriptor that reads end-of-file when the pod's front end is
gone."""
_MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
_FIRST = "tandem_server.residency.forkserver_start"
_live: set[int] = set()


def child_main(spec: bytes, entry: str, log_format: Literal["text", "json"], parent: Connection) -> None:
    """What a forked runner process executes; never returns to anything that matters."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.environ[PARENT_PIPE] = str(parent.fileno())
    logs.configure(log_format)
    module, _, function = entry.partition(":")
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
    """

    def __init__(self, entry: str, preload: tuple[str, ...], log_format: Literal["text", "json"] = "text") -> None:
        self._entry = entry
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
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, spec))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_discard)
            raise

    def _start(self, spec: RunnerSpec) -> "RunnerProcess":
        reader, writer = self._context.Pipe(duplex=False)
        with self._lock, reader:
            process = self._context.Process(
                target=child_main,
                args=(msgspec.msgpack.encode(spec), self._entry, self._log_format, reader),
                name=f"runner of {spec.model}",
                daemon=False,
            )
            try:
                with _without_main():
                    process.start()
            except BaseException:
                writer.close()
                raise
        return RunnerProcess(process, writer, spec.model)


class RunnerProcess:
    """One started process. `pid` is also its process group and session."""

    def __init__(self, process: ForkServerProcess, pipe: Connection, model: str) -> None:
        assert process.pid is not None
        self.pid: int = process.pid
        self._process = process
        self._pipe = pipe
        self._model = model
        self._kills_before = _memory_kills()
        self._asked_to_end: str | None = None
        _live.add(self.pid)

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Calls `on_exit` once on the running event loop when the process has ended."""
        loop = asyncio.get_running_loop()
        sentinel = self._process.sentinel

        def ended() -> None:
            loop.remove_reader(sentinel)
            on_exit()

        loop.add_reader(sentinel, ended)

    def reap(self) -> str:
        """After the end: ends whatever of the group is left, frees what was held, and says why it ended."""
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        self.signal(signal.SIGKILL)
        _live.discard(self.pid)
        self._pipe.close()
        cause = self._asked_to_end or exit_cause(code, _memory_kills() - self._kills_before)
        with suppress(ValueError):
            self._process.close()
        return cause

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the whole group."""
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


def exit_cause(code: int | None, memory_kills: int = 0) -> str:
    """How a process ended, as the predicate of a sentence. `code` is Python's: negative for a signal."""
    if code is None or code == 255:
        return "vanished together with the fork server"
    if code >= 0:
        return (
            "ended by itself with code 0" if code == 0 else f"ended with exit code {code}; its log lines above say more"
        )
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    cause = f"was killed by signal {-code} ({name})"
    if -code == signal.SIGKILL:
        if memory_kills > 0:
            return cause + " because the container ran out of memory; raise its memory limit or lower context or slots"
        return cause + ", as the kernel does when memory runs out"
    if -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL):
        return cause + ", a fault in native code"
    return cause


def _memory_kills() -> int:
    """How often the kernel killed a process of this container for memory."""
    try:
        for line in _MEMORY_EVENTS.read_text().splitlines():
            key, _, number = line.partition(" ")
            if key == "oom_kill":
                return int(number)
    except (OSError, ValueError):
        return 0
    return 0


atexit.register(_kill_all_left)
