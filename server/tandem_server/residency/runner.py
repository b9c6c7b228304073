"""One runner: a process and the wire to it, from its start to its reaped end.

Started and ended by `host` only. `ended` is the one place that tells how it went: a sentence naming the cause.
"""

import asyncio
import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tandem_server.config import Settings
from tandem_server.engine import wire
from tandem_server.processes import Memory
from tandem_server.residency.client import WireClient
from tandem_server.residency.process import Launcher, RunnerProcess
from tandem_server.residency.threads import in_thread
from tandem_server.residency.watchdog import Look, Watchdog

_log = logging.getLogger(__name__)
WEIGH_SECONDS = 10.0


class LoadFailed(Exception):
    """A runner that ended, or told nothing, before its model was loaded; `reason` is its own word for it, if any."""

    def __init__(self, cause: str, reason: str = "") -> None:
        super().__init__(cause)
        self.reason = reason


class Runner:
    """A started runner; make it with `start_runner`."""

    def __init__(
        self,
        model: str,
        process: RunnerProcess,
        folder: Path,
        settings: Settings,
        on_progress: Callable[[wire.Progress], None],
        on_exit: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.model = model
        self.pid = process.pid
        self.stats: wire.Stats | None = None
        self.abandoned = False
        """It cannot be killed; its process and its memory are left behind."""
        self.memory: Memory | None = None
        """Measured every `WEIGH_SECONDS`."""
        self.ended: asyncio.Future[str] = loop.create_future()
        self._loaded: asyncio.Future[wire.Loaded] = loop.create_future()
        self._process = process
        self._folder = folder
        self._settings = settings
        self._on_progress = on_progress
        self._on_exit = on_exit
        self._last_words: wire.Died | None = None
        self._busy_since = 0.0
        self._end_task: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.client: WireClient

    def attach(self, client: WireClient) -> None:
        """Completes the construction: the wire exists before the process does."""
        self.client = client
        self._process.watch(self._exited)
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._weigh())]

    async def loaded(self) -> wire.Loaded:
        """The runner's own words once the model is resident. Raises LoadFailed; bounded by the load's stall time."""
        waited: list[asyncio.Future[Any]] = [self._loaded, self.ended]
        while True:
            wait = self.client.heard_at + self._settings.load_stall_seconds - time.monotonic()
            done, _ = await asyncio.wait(waited, timeout=max(0.0, wait), return_when=asyncio.FIRST_COMPLETED)
            if self.ended in done:
                if self._last_words is not None:  # it gave its cause itself; which process it was helps nobody
                    raise LoadFailed(self._last_words.cause, self._last_words.reason)
                raise LoadFailed(self.ended.result())
            if self._loaded in done:
                return self._loaded.result()
            if time.monotonic() - self.client.heard_at >= self._settings.load_stall_seconds:
                because = f"told nothing for {self._settings.load_stall_seconds:g} s while loading and was ended"
                await self.stop(because)
                raise LoadFailed(self.ended.result())

    def heard(self, message: wire.FromRunner) -> None:
        """A message that belongs to no request."""
        if isinstance(message, wire.Progress):
            self._on_progress(message)
        elif isinstance(message, wire.Loaded) and not self._loaded.done():
            self._loaded.set_result(message)
        elif isinstance(message, wire.Stats):
            self.stats = message
        elif isinstance(message, wire.Died):
            self._last_words = message

    async def stop(self, because: str) -> None:
        """Ends the process and everything it started: SIGTERM to the group, after a bound SIGKILL. Returns reaped."""
        self._process.will_end(because)
        self.client.send(wire.Stop())
        self._process.signal(signal.SIGTERM)
        done, _ = await asyncio.wait({self.ended}, timeout=self._settings.stop_seconds)
        if not done:
            _log.warning(
                "The runner of model %s did not end within %g s; it is killed.", self.model, self._settings.stop_seconds
            )
            await self._kill()

    async def _kill(self) -> None:
        """SIGKILL to the group. A process that not even that ends (the kernel holds it) is given up, and told."""
        self._process.signal(signal.SIGKILL)
        done, _ = await asyncio.wait({self.ended}, timeout=self._settings.kill_seconds)
        if done:
            return
        state = self._process.state()
        _log.error(
            "The runner of model %s (process %d, state %s) cannot be killed, as when a driver hangs; it is left behind "
            "with the memory that it holds. Restart the pod, and look at the node's kernel log.",
            self.model,
            self.pid,
            state or "unknown",
        )
        self.abandoned = True
        self._on_exit()
        await self._settle(f"cannot be killed (state {state or 'unknown'}), as when a driver hangs")

    def _exited(self) -> None:
        self._end_watch()
        if self.ended.done():  # it had been given up, and another runner may serve by now
            self._process.reap()
            return
        # Before the requests end: the slots that they free must not let others start on a dead runner.
        self._on_exit()
        self._end_task = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await self.client.settle()
        cause = self._process.reap()
        if self._last_words:
            cause = f"ended: {self._last_words.cause}"
        sentence = self._sentence(cause)
        self.client.fail_all(sentence)  # before the descendants are gone: nobody shall wait for those
        left = await self._process.end_kin()
        if left:
            _log.error("Processes %s of the runner of model %s do not end when killed.", left, self.model)
        await self._settle(cause)

    async def _settle(self, cause: str) -> None:
        """The one place at which a runner becomes one that has ended."""
        if self.ended.done():
            return
        self.client.fail_all(self._sentence(cause))
        self._end_watch()
        await self.client.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if not self.ended.done():
            self.ended.set_result(self._sentence(cause))

    def _sentence(self, cause: str) -> str:
        return f"the runner of model {self.model} (process {self.pid}) {cause}"

    async def _watch(self) -> None:
        """Ends a runner that hangs: requests that hang are worse than a restart."""
        watchdog = Watchdog(self._settings)
        while True:
            await asyncio.sleep(watchdog.interval)
            look = self._look(time.monotonic())
            if watchdog.asks_for_cpu(look):
                look = replace(look, cpu_seconds=await in_thread(self._process.cpu_seconds))
            because = watchdog.hung(look)
            if because and not self.ended.done():
                _log.error("The runner of model %s %s.", self.model, because)
                self._process.will_end(because)
                await self._kill()
                return

    async def _weigh(self) -> None:
        """Keeps `memory` fresh; apart from the watch, since the kernel may take its time over a large process."""
        while True:
            self.memory = await in_thread(self._process.memory) or self.memory
            if self._loaded.done():
                await asyncio.sleep(WEIGH_SECONDS)
            else:
                await asyncio.wait({self._loaded}, timeout=WEIGH_SECONDS)

    def _end_watch(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _look(self, now: float) -> Look:
        streams = self.client.streams.values()
        aborted = [each.aborted_at for each in streams if each.aborted_at is not None and each.ends_promptly]
        if not streams:
            self._busy_since = now
        return Look(
            now=now,
            beaten=self._process.beaten(),
            state=self._process.state(),
            running=len(streams),
            quiet_since=max(self._busy_since, self.client.heard_at),
            oldest_abort=min(aborted, default=None),
        )


async def start_runner(
    launcher: Launcher,
    spec: wire.RunnerSpec,
    settings: Settings,
    on_progress: Callable[[wire.Progress], None],
    on_exit: Callable[[], None],
) -> Runner:
    """Starts a runner for `spec`, whose `address` is filled in here; `on_exit` is called first of all when it ends.

    Raises OSError.
    """
    folder = Path(tempfile.mkdtemp(prefix="tandem-", dir=settings.run_folder))
    address = f"ipc://{folder / 'wire'}"
    holder: list[Runner] = []
    early: list[wire.FromRunner] = []

    def heard(message: wire.FromRunner) -> None:
        if holder:
            holder[0].heard(message)
        else:
            early.append(message)

    client = WireClient(address, heard)
    try:
        process = await launcher.start(msgspec.structs.replace(spec, address=address))
    except BaseException:
        await client.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    runner = Runner(spec.model, process, folder, settings, on_progress, on_exit)
    holder.append(runner)
    runner.attach(client)
    for message in early:
        runner.heard(message)
    return runner
