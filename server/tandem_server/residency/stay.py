"""One model's stay in the pod's memory: how it asks for room, until when it is kept, and when it is told to go.

Between `host`, whose runner it is, and `room`, which decides. What requests wish of the keep-alive comes in here.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from tandem_api.catalog import CatalogModel
from tandem_api.fields import Residency
from tandem_server.admission import Admission
from tandem_server.config import Settings
from tandem_server.engine.interface import DoesNotFit
from tandem_server.engine.wire import Loaded
from tandem_server.residency.entry import seconds_of
from tandem_server.residency.holds import Holds, Wish
from tandem_server.residency.ledger import Grant, Leave, Phase, Why
from tandem_server.residency.need import UNKNOWN, Sizes
from tandem_server.residency.room import Room
from tandem_server.residency.runner import LoadFailed
from tandem_server.residency.threads import in_thread

_log = logging.getLogger(__name__)


class Unwanted(Exception):
    """Nobody wants the model that waited for room."""


class Stay:
    """See the module; a `room.Tenant`.

    Args:
        on_leave: told why the model is to go.

    Attributes:
        sent_away: set when it is to go; `order` says why.
        because: the end of a sentence that says why it was unloaded last; empty while it is loaded.
        expires_at: when its keep-alive ends if nobody asks, in seconds of the wall clock; None: never.
        sized: its need, as it was estimated last.
        preloaded: whether it is loaded again by itself when it is lost.
    """

    def __init__(
        self,
        entry: CatalogModel,
        admission: Admission,
        room: Room,
        sizes: Sizes,
        settings: Settings,
        on_leave: Callable[[Why], None],
    ) -> None:
        self.sent_away = asyncio.Event()
        self.order: Leave | None = None
        self.because = ""
        self.expires_at: float | None = None
        self.sized = UNKNOWN
        self.preloaded = False
        self._entry, self._admission, self._room, self._sizes = entry, admission, room, sizes
        self._settings, self._on_leave = settings, on_leave
        self._slots = 0
        self._grant: asyncio.Future[Grant] | None = None
        usual = seconds_of(entry.keep_alive)
        self._holds = Holds(usual, usual)
        self.configure(entry)
        admission.on_use = self.tell

    def configure(self, entry: CatalogModel) -> None:
        """New settings."""
        self._entry = entry
        most = entry.keep_alive_max
        self._holds.configure(seconds_of(entry.keep_alive), None if most is None else seconds_of(most))
        self._room.pin(entry.name, self.pinned)
        self.tell()

    @property
    def pinned(self) -> bool:
        """Whether it stays loaded whatever others need."""
        return self._entry.residency is Residency.PINNED

    @property
    def device(self) -> int | None:
        """Index of the device that it lies on, or is being loaded to."""
        one = self._room.of(self._entry.name)
        return None if one is None or one.phase is Phase.WAITING else one.device

    @property
    def wanted(self) -> bool:
        """Whether it is to be loaded again by itself, or goes on waiting for room."""
        held = self.preloaded or self.pinned or self._holds.end() > time.monotonic()
        return held or bool(self._admission.line.waiting)

    def hold(self) -> None:
        """It is kept for the usual time though no request came."""
        self._holds.loaded(time.monotonic())

    def used(self, wish: Wish) -> float:
        """A request came, or one that wants nothing but to say this; seconds for which it then keeps the model."""
        seconds = self._holds.used(wish, time.monotonic())
        self.tell()
        return seconds

    def ended(self, wish: Wish) -> None:
        """A request ended."""
        self._holds.ended(wish.caller, time.monotonic())
        self.tell()

    def tell(self) -> None:
        """Tells the room how many requests there are, and when the keep-alive ends if no more come."""
        line, end = self._admission.line, math.inf if self.pinned else self._holds.end()
        self.expires_at = time.time() + max(0.0, end - time.monotonic()) if end < math.inf else None
        self._room.use(self._entry.name, len(line.running), len(line.waiting), end)
        one = self._room.of(self._entry.name)
        if one is not None and one.phase is Phase.WAITING and not self.wanted:
            self._settle(Unwanted())

    async def room_for(self, folder: Path, on_wait: Callable[[], None]) -> Grant:
        """Waits for its turn and for memory; `on_wait` is called when it must. Raises LoadFailed, Unwanted."""
        self.sized = await in_thread(self._sizes.of, folder, self._entry, self._settings)
        self.sent_away.clear()
        self.order = None
        self._grant = asyncio.get_running_loop().create_future()
        try:
            queued, modest = len(self._admission.line.waiting), self._settings.one_user
            self._room.ask(self._entry.name, self.sized.need, self, queued, self.pinned, modest)
            if not self._grant.done():
                on_wait()
            return await self._grant
        finally:
            self._grant = None

    def began(self, loaded: Loaded) -> None:
        """It is loaded: its memory is what was measured, and its slots take requests."""
        self.because, self._slots = "", loaded.slots
        self._sizes.learn(self.sized, loaded)
        self.hold()
        size = loaded.total_bytes or loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes
        self._room.loaded(self._entry.name, size, self._holds.end())
        self.resume()

    def ends(self) -> None:
        """Its runner died or is being ended: no more requests; the memory is held until `gone`."""
        self._slots = 0
        self._room.leaving(self._entry.name)
        self._admission.resize(0)

    def gone(self, lost: bool = False) -> None:
        """Its process is gone, or could not be ended (`lost`) and keeps its memory; or it waits no more."""
        self._room.gone(self._entry.name, lost)

    def granted(self, grant: Grant) -> None:
        """See `room.Tenant`."""
        if self._grant is not None and not self._grant.done():
            self._grant.set_result(grant)

    def refused(self, sentence: str) -> None:
        """See `room.Tenant`."""
        self._settle(LoadFailed(sentence, DoesNotFit.reason))

    def later(self) -> None:
        """See `room.Tenant`."""
        _log.info("Model %s does not fit beside the others; it is loaded when it is asked for.", self._entry.name)
        self._settle(Unwanted())

    def leave(self, order: Leave) -> None:
        """See `room.Tenant`."""
        self.order, self.because, self._slots = order, order.because, 0
        self._on_leave(order.why)
        self.sent_away.set()
        self._admission.resize(0)

    def pause(self) -> None:
        """See `room.Tenant`."""
        self._admission.resize(0)

    def resume(self) -> None:
        """See `room.Tenant`."""
        self._admission.resize(self._slots)

    def close_gate(self) -> None:
        """No more requests until it was loaded anew."""
        self._slots = 0
        self._admission.resize(0)

    def _settle(self, error: Exception) -> None:
        if self._grant is not None and not self._grant.done():
            self._grant.set_exception(error)
