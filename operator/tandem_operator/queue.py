"""The work queue between nudges and reconciles: keyed, de-duplicating, one worker a key, back-off a key.

A key that is nudged while it is worked on is worked on again afterwards, once, however often it was nudged. `Schedule`
decides and knows no event loop (its clock is injected); `WorkQueue` lets workers wait for it.
"""

import asyncio
import heapq
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Schedule(Generic[K]):
    """Which key is due next. All times in seconds of `clock`."""

    def __init__(self, clock: Callable[[], float], first_delay: float = 0.2, longest_delay: float = 60.0) -> None:
        self._clock = clock
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._running: dict[K, float] = {}
        self._failures: dict[K, int] = {}

    def add(self, key: K, after: float = 0.0) -> None:
        """Makes `key` due in `after` seconds, unless it is due earlier anyway."""
        due = self._clock() + after
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))

    def take(self) -> K | None:
        """The key that has been due longest and that nobody works on, now marked as worked on; None when none is."""
        now = self._clock()
        held: list[tuple[float, int, K]] = []
        taken: K | None = None
        while self._heap and self._heap[0][0] <= now:
            due, sequence, key = heapq.heappop(self._heap)
            if self._due.get(key) != due:
                continue  # made due earlier, or taken, since
            if key in self._running:
                held.append((due, sequence, key))
                continue
            del self._due[key]
            self._running[key] = now
            taken = key
            break
        for one in held:
            heapq.heappush(self._heap, one)
        return taken

    def done(self, key: K) -> None:
        """Says that nobody works on `key` any longer."""
        del self._running[key]

    def forget(self, key: K) -> None:
        """Says that `key` succeeded: its next failure waits the shortest delay again."""
        self._failures.pop(key, None)

    def retry(self, key: K) -> float:
        """Makes a failed `key` due again after its back-off, which doubles each time; returns that delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(self._longest_delay, self._first_delay * 2.0 ** min(failures, 30))
        self.add(key, delay)
        return delay

    def next_due(self) -> float | None:
        """Seconds until a key that nobody works on is due; None when there is none."""
        waiting = [due for key, due in self._due.items() if key not in self._running]
        return max(0.0, min(waiting) - self._clock()) if waiting else None

    @property
    def depth(self) -> int:
        """How many keys are due or will be."""
        return len(self._due)

    def oldest(self) -> float:
        """How long the longest waiting due key, or the longest running one, has been at it."""
        now = self._clock()
        return max(0.0, *(now - time for time in (*self._due.values(), *self._running.values())), 0.0)


class WorkQueue(Generic[K]):
    """A `Schedule` whose workers can wait: `key = await get()`, work, then `done(key)`."""

    def __init__(self, schedule: Schedule[K] | None = None) -> None:
        self.schedule: Schedule[K] = schedule if schedule is not None else Schedule(time.monotonic)
        self._changed = asyncio.Event()

    def add(self, key: K, after: float = 0.0) -> None:
        """Makes `key` due in `after` seconds."""
        self.schedule.add(key, after)
        self._changed.set()

    async def get(self) -> K:
        """Waits for a due key and marks it as worked on."""
        while True:
            key = self.schedule.take()
            if key is not None:
                return key
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self.schedule.next_due())
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """Says that the worker has finished with `key`."""
        self.schedule.done(key)
        self._changed.set()

    def forget(self, key: K) -> None:
        """Says that `key` succeeded."""
        self.schedule.forget(key)

    def retry(self, key: K) -> float:
        """Makes a failed key due again after its back-off; returns that delay in seconds."""
        delay = self.schedule.retry(key)
        self._changed.set()
        return delay
