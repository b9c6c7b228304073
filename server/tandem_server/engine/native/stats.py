"""Figures of a running engine, told about once a second while steps run and once when it falls idle."""

import time
from collections.abc import Callable

from tandem_server.engine.interface import Link
from tandem_server.engine.native.executors import Executor
from tandem_server.engine.native.scheduler import Scheduler
from tandem_server.engine.wire import Stats

PERIOD = 1.0


class StatsKeeper:
    """Counts between two reports; `clock` gives seconds."""

    def __init__(
        self, link: Link, scheduler: Scheduler, executor: Executor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._link, self._scheduler, self._executor, self._clock = link, scheduler, executor, clock
        self._restart()
        self._told_idle = False

    def after_step(self) -> None:
        """Called for each committed step."""
        self._told_idle = False
        if self._clock() - self._since >= PERIOD:
            self._tell()

    def falling_idle(self) -> None:
        """Called before the engine sleeps; tells once."""
        if not self._told_idle:
            self._tell()
            self._told_idle = True

    def waking(self) -> None:
        """Called when the sleep is over: idle time is no part of a rate."""
        self._restart()

    def _tell(self) -> None:
        seconds = max(self._clock() - self._since, 1e-9)
        computed = self._executor.device_seconds - self._computed
        scheduler = self._scheduler
        steps = scheduler.steps - self._steps
        self._link.send(
            Stats(
                steps=scheduler.steps,
                step_rate=steps / seconds if steps else 0.0,
                tokens=scheduler.tokens,
                busy=scheduler.table.busy,
                device_idle_share=min(1.0, max(0.0, 1 - computed / seconds)) if steps else 0.0,
                cache_used=1 - scheduler.blocks.free / scheduler.blocks.count,
                waiting=scheduler.waiting,
                prefix_asked=scheduler.memory.asked,
                prefix_found=scheduler.memory.found,
                prefix_evicted=scheduler.blocks.evicted,
            )
        )
        self._restart()

    def _restart(self) -> None:
        self._since = self._clock()
        self._steps = self._scheduler.steps
        self._computed = self._executor.device_seconds
