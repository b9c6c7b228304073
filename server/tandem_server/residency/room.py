"""Room for the models of one pod: carries out the rules of residency over time.

Between `host`s, which load and unload, and `rules`, which decide. Everything that happens is told here at once, in the
thread of the event loop, and answered by calls to the tenants; so an arrival and an expiry at the same instant are
decided once, in the order in which they came.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from tandem_server.residency.ledger import (
    NEVER,
    Decision,
    Grant,
    Later,
    Leave,
    Ledger,
    Need,
    Phase,
    Refuse,
    Resident,
    Resume,
    Yield,
)
from tandem_server.residency.rules import Times, decide

_log = logging.getLogger(__name__)
USUAL = Times()


class Tenant(Protocol):
    """A model that is told what was decided about it. None of these may wait."""

    def granted(self, grant: Grant) -> None:
        """Load now, within the grant."""

    def refused(self, sentence: str) -> None:
        """It can never be loaded here as things are."""

    def later(self) -> None:
        """It finds no room, and nobody asks for it: it may ask again when somebody does."""

    def leave(self, order: Leave) -> None:
        """Take no more requests and end the runner; nobody uses it. Tell `gone` when its process is."""

    def pause(self) -> None:
        """Take no more requests; those that run go on."""

    def resume(self) -> None:
        """Take requests again."""


class Timer(Protocol):
    """What `later` gives."""

    def cancel(self) -> None:
        """It does not ring any more."""


class Room:
    """Of one pod.

    Args:
        capacity: bytes of each device that runners may hold together.
        most: models that may be loaded at once.
        later: calls a function after so many seconds, as an event loop does.
    """

    def __init__(
        self,
        capacity: list[int],
        most: int,
        later: Callable[[float, Callable[[], None]], Timer],
        times: Times = USUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = Ledger(capacity, most)
        self._times, self._clock, self._later = times, clock, later
        self._tenants: dict[str, Tenant] = {}
        self._timer: Timer | None = None
        self._looking = self._again = False

    def ask(
        self, name: str, need: Need, tenant: Tenant, queued: int, pinned: bool = False, modest: bool = False
    ) -> None:
        """The model wants to load; it will be granted or refused, maybe at once."""
        assert name not in self.ledger.residents, f"{name} asks twice"
        self._tenants[name] = tenant
        self.ledger.residents[name] = Resident(name, need, self._clock(), pinned, modest, queued=queued)
        self._look()

    def of(self, name: str) -> Resident | None:
        """What is known of a model that waits or holds memory."""
        return self.ledger.residents.get(name)

    def loaded(self, name: str, size: int, expires: float) -> None:
        """It is loaded and holds `size` bytes."""
        one = self.ledger.residents[name]
        one.phase, one.bytes = Phase.LOADED, size
        one.loaded_at = one.quiet_since = self._clock()
        one.expires = expires
        self._look()

    def use(self, name: str, running: int, queued: int, expires: float) -> None:
        """How many requests it has now, and when its keep-alive ends if no more come."""
        one = self.ledger.residents.get(name)
        if one is None:
            return
        # On the path of every request: one that comes to or leaves others frees nothing and takes nothing.
        stays_busy = one.phase is Phase.LOADED and one.running > 0 and running > 0
        if one.running and not running:
            one.quiet_since = self._clock()
        one.running, one.queued, one.expires = running, queued, expires
        if not stays_busy:
            self._look()

    def pin(self, name: str, pinned: bool) -> None:
        """Its settings say so now."""
        one = self.ledger.residents.get(name)
        if one is not None and one.pinned != pinned:
            one.pinned = pinned
            self._look()

    def leaving(self, name: str) -> None:
        """Its runner is being ended for a reason of its own, or died."""
        one = self.ledger.residents.get(name)
        if one is not None:
            one.phase = Phase.LEAVING
            self._look()

    def gone(self, name: str, lost: bool = False) -> None:
        """It waits no more, or its process is gone; when `lost` it could not be ended and keeps its memory."""
        one = self.ledger.residents.pop(name, None)
        self._tenants.pop(name, None)
        if one is not None and lost:
            self.ledger.lost[one.device] += one.bytes
        self._look()

    def close(self) -> None:
        """Decides nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._looking = True

    def _look(self) -> None:
        if self._looking:  # a tenant told something while it was told something
            self._again = True
            return
        self._looking, self._again = True, True
        try:
            while self._again:
                self._again = False
                decisions, wake = decide(self.ledger, self._times, self._clock())
                for decision in decisions:
                    self._carry_out(decision)
        finally:
            self._looking = False
        self._ring_at(wake)

    def _ring_at(self, wake: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wake < NEVER:
            self._timer = self._later(max(0.0, wake - self._clock()), self._look)

    def _carry_out(self, decision: Decision) -> None:
        tenant = self._tenants.get(decision.name)
        if tenant is None:
            return
        if isinstance(decision, Grant):
            tenant.granted(decision)
        elif isinstance(decision, Refuse):
            del self._tenants[decision.name]
            tenant.refused(decision.sentence)
        elif isinstance(decision, Later):
            del self._tenants[decision.name]
            tenant.later()
        elif isinstance(decision, Leave):
            _log.info("Model %s is unloaded since %s.", decision.name, decision.because)
            tenant.leave(decision)
        elif isinstance(decision, Yield):
            _log.info(
                "Model %s takes no further requests until model %s, which waits for its room, was loaded.",
                decision.name,
                decision.room_for,
            )
            tenant.pause()
        elif isinstance(decision, Resume):
            tenant.resume()
