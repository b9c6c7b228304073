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
_SECOND_SECONDS = 3.0
"""The second relist comes soon: what was deleted between the first and the start of the watches, nobody tells."""
DEAF_STRIKES = 2


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
        self._heard: set[Kind] = set()
        self._strikes: dict[Kind, int] = {}
        self.listed = asyncio.Event()

    @property
    def age(self) -> float:
        """Seconds since the last complete relist, or since the start."""
        return self._clock() - self._last

    def heard(self, kind: Kind) -> None:
        """Says that the watch of a kind has just told something."""
        self._heard.add(kind)

    @property
    def deaf(self) -> list[str]:
        """Kinds whose watch told nothing while two relists in a row had to correct what was known of them."""
        return [kind.name for kind, strikes in self._strikes.items() if strikes >= DEAF_STRIKES]

    async def run(self) -> None:
        """Relists now and then again and again, until cancelled."""
        self._last = self._clock()  # a standby may have waited for days
        pause = min(self._seconds, _SECOND_SECONDS)
        while True:
            try:
                await self.relist()
            except ApiError as error:
                RELISTS.labels(result="failed").inc()
                log.warning("The cluster cannot be listed: %s. The next try is in %g s.", error, _RETRY_SECONDS)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                RELISTS.labels(result="ok").inc()
                await asyncio.sleep(pause)
                pause = self._seconds

    async def relist(self) -> None:
        """Lists every kind once and corrects the cache."""
        first = not self.listed.is_set()
        for kind in WATCHED:
            objs, revision = await self._api.list(kind)
            repaired = self._cache.replace(kind, objs, int(revision))
            if repaired and not first:
                REPAIRS.labels(kind=kind.name).inc(repaired)
                log.info("The relist corrected what was known of %d objects of kind %s.", repaired, kind.name)
            # A list may be a moment ahead of a watch that works; a watch that is silent twice over does not.
            silent = repaired and not first and kind not in self._heard
            self._strikes[kind] = self._strikes.get(kind, 0) + 1 if silent else 0
            self._heard.discard(kind)
        self._last = self._clock()
        self._after()
        if first:
            log.info("Listed the cluster: %d Models and ModelPools exist.", len(self._cache.keys()))
            self.listed.set()
