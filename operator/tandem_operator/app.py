"""Wires the operator together and runs it: watches -> cache -> queue -> workers -> reconcile.

Order of the start: health endpoint, election, and only in the process that leads: relist as a barrier beside the
watches, then the workers and the report polls.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Coroutine
from typing import Any

from tandem_operator.api import Api, ApiError
from tandem_operator.cache import Cache
from tandem_operator.config import Config
from tandem_operator.credentials import connection, token_file
from tandem_operator.election import Alone, Election, Leadership, identity
from tandem_operator.health import Health
from tandem_operator.kinds import WATCHED, Key
from tandem_operator.metrics import RECONCILE_SECONDS, RECONCILES
from tandem_operator.queue import WorkQueue
from tandem_operator.reconcile import Reconciler
from tandem_operator.relist import Relister
from tandem_operator.reports import Reports
from tandem_operator.watch import settings_of, watch

log = logging.getLogger(__name__)


async def worker(queue: WorkQueue[Key], reconciler: Reconciler) -> None:
    """Reconciles one due key after the other, until cancelled. No failure of one ends it."""
    while True:
        key = await queue.get()
        try:
            await _one(key, queue, reconciler)
        finally:
            queue.done(key)


async def _one(key: Key, queue: WorkQueue[Key], reconciler: Reconciler) -> None:
    started = time.perf_counter()
    try:
        again = await reconciler.reconcile(key)
    except ApiError as error:
        delay = queue.retry(key)
        RECONCILES.labels(result="refused").inc()
        log.warning("%s is not as planned yet: %s. The next try is in %.1f s.", key, error, delay)
        return
    except Exception:
        delay = queue.retry(key)
        RECONCILES.labels(result="failed").inc()
        log.exception("The reconcile of %s failed by a defect of the operator; next try in %.1f s.", key, delay)
        return
    finally:
        RECONCILE_SECONDS.observe(time.perf_counter() - started)
    RECONCILES.labels(result="ok").inc()
    if again.hindered:
        queue.retry(key)
        return
    queue.forget(key)
    if again.after is not None:
        queue.add(key, again.after)


def at_exit(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler once all is ended.

    kopf leaves its watch generators to the loop's end; one that is cut off in the middle of an event complains about
    its own closing, which is of no concern to anybody.
    """
    if "asyncgen" in context:
        log.debug("A watch was cut off at the exit: %r.", context.get("exception"))
        return
    loop.default_exception_handler(context)


class Operator:
    """All parts of one operator process."""

    def __init__(self, config: Config, master: bytes, api: Api, election: Leadership) -> None:
        self._config = config
        self._election = election
        self.queue: WorkQueue[Key] = WorkQueue()
        self.cache = Cache(self.queue.add)
        self.reports = Reports(self.cache.all_pods, self.queue.add, self.cache.everyone, master, config.report_port)
        self.reconciler = Reconciler(api, self.cache, self.reports, config, master)
        self.relister = Relister(api, self.cache, config.relist_seconds, self._forget)
        self.health = Health(self.relister, self.queue, self.cache, config.relist_seconds, self._ended, election)
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._failure = ""

    def _forget(self) -> None:
        self.reconciler.forget(self.cache.uids())

    def _ended(self) -> str:
        return self._failure

    def _start(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._task_done)
        self._tasks.append(task)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._failure:
            return
        self._failure = f"the task {task.get_name()} has ended: {task.exception()!r}"
        log.error("The operator ends, since %s.", self._failure, exc_info=task.exception())
        self._stop.set()

    async def _work(self) -> None:
        await self.relister.listed.wait()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._config.workers):
                group.create_task(worker(self.queue, self.reconciler))

    async def _campaign(self) -> None:
        """Ends the process once the lead is lost: what works in it is cut off at once."""
        self._failure = await self._election.run()
        log.error("The operator ends, since %s.", self._failure)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._stop.set()

    async def _end(self) -> None:
        self._stop.set()  # after a signal kopf would wait 5 s for the task of its own that waits for this
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._election.release()
        await self.health.stop()

    async def run(self) -> str:
        """Runs until the process is told to end; returns why it ended when something failed, else ""."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)  # kopf puts its own in place later
        port = await self.health.start(self._config.health_host, self._config.health_port)
        log.info("The operator has started; its health is told on port %d.", port)
        self._start("election", self._campaign())
        try:
            if await self._first_of(self._election.led.wait(), self._stop.wait()):
                await self._lead()
        finally:
            await self._end()
            loop.set_exception_handler(at_exit)
        return self._failure

    async def _lead(self) -> None:
        log.info("The operator watches %d kinds in %s.", len(WATCHED), self._config.namespace or "all namespaces")
        self._start("relist", self.relister.run())
        self._start("reports", self.reports.run())
        self._start("workers", self._work())
        # kopf looks for the kinds once, at its start: they must be there, and the API server must answer.
        if await self._first_of(self.relister.listed.wait(), self._stop.wait()):
            await self._watch()

    async def _watch(self) -> None:
        """Watches until told to end. What ends kopf is of its private types, and a restart is the cure for any."""
        watching = watch(self.cache, settings_of(), self._stop, self._end, self.relister.heard, self._config.namespace)
        (ended,) = await asyncio.gather(watching, return_exceptions=True)
        if isinstance(ended, Exception):
            self._failure = self._failure or f"the watches failed: {ended}"
            log.error("The operator ends, since %s.", self._failure)
            log.debug("What ended the watches:", exc_info=ended)

    async def _first_of(self, wanted: Coroutine[Any, Any, Any], other: Coroutine[Any, Any, Any]) -> bool:
        """Waits for either; True when `wanted` came first."""
        tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(other)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        return tasks[0].done() and not tasks[0].cancelled() and not self._stop.is_set()


async def run(config: Config, master: bytes) -> str:
    """Runs the operator with the credentials of its surroundings; returns why it failed, or ""."""
    async with contextlib.AsyncExitStack() as stack:
        election: Leadership = Alone()
        if config.election.enabled:
            # A client of its own: a renewal must never wait for a connection that other requests hold.
            own = await stack.enter_async_context(Api(connection(settings_of()), token_file()))
            election = Election(own, config.election, identity())
        reach = Api(connection(settings_of()), token_file(), config.namespace, election.may_write)
        api = await stack.enter_async_context(reach)
        return await Operator(config, master, api, election).run()
