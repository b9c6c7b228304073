"""Keeps an always current copy of one kind of object: list once, then follow the watch.

First on the path of every change that routing sees. Knows nothing of HTTP: a `Source` lists and watches, and tests
script one. After 410 Gone it lists anew; a watch that breaks or falls silent is resumed from the last version seen,
with back-off; and every few minutes it lists anew in any case, which repairs whatever a watch may have lost.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tandem_gateway.objects import JsonObject

logger = logging.getLogger(__name__)

View = TypeVar("View")


class SourceError(Exception):
    """Listing or watching failed; the message says why in a sentence."""


class Expired(SourceError):
    """The version to go on from is too old for the API server (410 Gone): list anew."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects as of `version`."""

    items: list[JsonObject]
    version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """ADDED, MODIFIED, DELETED or BOOKMARK, with the object."""

    kind: str
    item: JsonObject


class Source(Protocol):
    """Where objects come from; both methods raise SourceError, and Expired where the version is too old."""

    async def list(self) -> Listing:
        """All objects now."""
        ...

    def watch(self, version: str) -> AsyncGenerator[WatchEvent, None]:
        """What changed after `version`; ends when the server closes the watch."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient the informer is, in seconds."""

    relist: float = 300.0
    """Between repairing lists, give or take a fifth."""
    list_timeout: float = 30.0
    silence: float = 150.0
    """A watch without any event for so long is taken for dead: the API server sends a bookmark every minute."""
    first_backoff: float = 0.2
    last_backoff: float = 10.0


class Informer(Generic[View]):
    """A copy of all objects of one kind, by UID, as views.

    Args:
        kind: what the objects are called in log lines, such as Models.
        source: lists and watches them.
        project: makes the view of an object; None leaves it out.
        changed: called after every change.
        pace: how patient to be.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        kind: str,
        source: Source,
        project: Callable[[JsonObject], View | None],
        changed: Callable[[], None],
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self.items: dict[str, View] = {}
        self.last_error: str | None = None
        self._source = source
        self._project = project
        self._changed = changed
        self._pace = pace
        self._clock = clock
        self._version: str | None = None
        self._relist_at = 0.0
        self._contact_at = clock()
        self._step_at = clock()

    @property
    def age(self) -> float:
        """Seconds since the API server last told anything: how old the copy may be."""
        return self._clock() - self._contact_at

    @property
    def stuck(self) -> bool:
        """Whether the informer itself hangs: neither an answer nor a failed attempt within twice its patience."""
        return self._clock() - self._step_at > 2 * (self._pace.silence + self._pace.list_timeout)

    async def run(self) -> None:
        """Follows the objects until cancelled."""
        backoff = self._pace.first_backoff
        while True:
            heard = self._contact_at
            try:
                if self._version is None or self._clock() >= self._relist_at:
                    await self._list()
                await self._watch()
                self.last_error = None
            except Expired:
                logger.info("The watch of %s is too old to go on (410 Gone); listing anew.", self.kind)
                self._version = None
            except (SourceError, TimeoutError) as error:
                self.last_error = str(error) or "the API server did not answer in time"
                logger.warning("%s cannot be followed: %s. Trying again.", self.kind, self.last_error)
            self._step_at = self._clock()
            # Contact since the last round means that the API server is well: begin again with a short pause.
            backoff = (
                self._pace.first_backoff if self._contact_at != heard else min(2 * backoff, self._pace.last_backoff)
            )
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, protects nothing

    async def _list(self) -> None:
        async with asyncio.timeout(self._pace.list_timeout):
            listing = await self._source.list()
        self.items = dict(self._views(listing.items))
        self._version = listing.version
        self._relist_at = self._clock() + self._pace.relist * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        self._heard()
        if not self.synced.is_set():
            logger.info("Following %s: there are %d now.", self.kind, len(self.items))
            self.synced.set()
        self._changed()

    async def _watch(self) -> None:
        assert self._version is not None
        events = self._source.watch(self._version)
        try:
            while (patience := min(self._pace.silence, self._relist_at - self._clock())) > 0:
                try:
                    async with asyncio.timeout(patience):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if self._clock() < self._relist_at:
                        raise SourceError(f"the watch was silent for {self._pace.silence:.0f} s") from None
                    return
                self._apply(event)
        finally:
            await events.aclose()

    def _apply(self, event: WatchEvent) -> None:
        metadata = event.item.get("metadata")
        if not isinstance(metadata, Mapping):
            raise Expired("the watch sent an object without metadata")
        self._heard()
        version, uid = metadata.get("resourceVersion"), metadata.get("uid")
        if isinstance(version, str) and version:
            self._version = version
        if event.kind == "BOOKMARK" or not isinstance(uid, str):
            return
        view = None if event.kind == "DELETED" else self._project(event.item)
        if view is None:
            self.items.pop(uid, None)
        else:
            self.items[uid] = view
        self._changed()

    def _views(self, items: Iterable[JsonObject]) -> Iterable[tuple[str, View]]:
        for item in items:
            view = self._project(item)
            metadata: Any = item.get("metadata")
            if view is not None:
                yield metadata["uid"], view

    def _heard(self) -> None:
        self._contact_at = self._step_at = self._clock()
