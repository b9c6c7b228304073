"""Lists every kind anew: once before the first reconcile, then every minute to repair what the watches missed.

The barrier at the start keeps a half-filled cache from causing a stampede of needless applies. The repair is needed
because kopf, after a watch has expired, lists again but never says what was deleted in the gap.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from tandem_operator.api import ApiError
from tandem_operator.cache import Cache
from tandem_operator.kinds import WATCHED, Kind, Obj
from tandem_operator.metrics import RELISTS, REPAIRS

log = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0


class Lister(Protocol):
    """What a relist needs of the API client."""

    async def list(self, kind: Kind) -> tuple[list[Obj], str]: ...


class Relister:
    """Relists for ever while `run` runs. `listed` is set once every kind was listed."""

    def __init__(
        self,
        api: Lister,
        cache: Cache,
        seconds: float,
        after: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._cache = cache
        self._seconds = seconds
        self._after = after
        self._clock = clock
        self._last = clock()
        self.listed = asyncio.Event()

    @property
    def age(self) -> float:
        """Seconds since the last complete relist, or since the start."""
        return self._clock() - self._last

    async def run(self) -> None:
        """Relists now and then again and again, until cancelled."""
        self._last = self._clock()  # a standby may have waited for days
        while True:
            try:
                await self.relist()
            except ApiError as error:
                RELISTS.labels(result="failed").inc()
                log.warning("The cluster cannot be listed: %s. The next try is in %g s.", error, _RETRY_SECONDS)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                RELISTS.labels(result="ok").inc()
                await asyncio.sleep(self._seconds)

    async def relist(self) -> None:
        """Lists every kind once and corrects the cache."""
        first = not self.listed.is_set()
        for kind in WATCHED:
            objs, revision = await self._api.list(kind)
            repaired = self._cache.replace(kind, objs, int(revision))
            if repaired and not first:
                REPAIRS.labels(kind=kind.name).inc(repaired)
                log.info("The relist corrected what was known of %d objects of kind %s.", repaired, kind.name)
        self._last = self._clock()
        self._after()
        if first:
            log.info("Listed the cluster: %d Models exist.", len(self._cache.models()))
            self.listed.set()
