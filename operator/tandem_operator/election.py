"""Carries out what `lease` decides: reads and writes the Lease, and tells everybody else whether this process leads.

First in the life of an operator process: `app` starts nothing that watches, polls or writes before `led` is set, and
ends the process when `run` returns. `may_write` is asked by the client immediately before each write.
"""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from tandem_operator.api import ApiError
from tandem_operator.config import ElectionConfig
from tandem_operator.kinds import Kind, Obj
from tandem_operator.lease import Candidate, Lost, Read, Seen, Times, Wait, Write
from tandem_operator.metrics import LEADER, LEASE_TRANSITIONS

log = logging.getLogger(__name__)

LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease", selector=None)
_RELEASE_SECONDS = 3.0
_STUCK_SECONDS = 60.0


class LeaseApi(Protocol):
    """What the election needs of the API client."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj: ...
    async def create(self, kind: Kind, obj: Obj) -> Obj: ...
    async def update(self, kind: Kind, obj: Obj) -> Obj: ...


class Leadership(Protocol):
    """What the rest of the operator sees of an election."""

    led: asyncio.Event
    """Set once this process leads; never taken back, for a process that no longer leads ends."""

    async def run(self) -> str:
        """Strives for the lead and keeps it; returns only when it was lost: why, as part of a sentence."""
        ...

    def may_write(self) -> bool:
        """Whether this process leads at this very moment."""
        ...

    def standby(self) -> str:
        """A sentence about who leads while another does, "" while this process leads."""
        ...

    def healthy(self) -> bool:
        """Whether the election itself goes on."""
        ...

    def knows(self) -> bool:
        """Whether the Lease could be looked at since the start."""
        ...

    async def release(self) -> None:
        """Gives the lead up, so that another process need not wait. All that writes must have ended."""
        ...


def identity() -> str:
    """A name that no other process has or had: of the pod, and something random."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


def seen_of(lease: Obj, seconds: float) -> Seen:
    """A Lease object as `lease` judges it; `seconds` where it does not say how long it is valid."""
    spec: dict[str, Any] = lease.get("spec") or {}
    return Seen(
        version=str(lease["metadata"]["resourceVersion"]),
        holder=str(spec.get("holderIdentity") or ""),
        seconds=float(spec.get("leaseDurationSeconds") or seconds),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=str(spec.get("acquireTime") or ""),
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Alone:
    """No election: this process is the only one, as whoever configured it promises."""

    def __init__(self) -> None:
        self.led = asyncio.Event()
        self.led.set()
        LEADER.set(1)

    async def run(self) -> str:
        """Waits for ever."""
        await asyncio.Event().wait()
        return ""

    def may_write(self) -> bool:
        """Always."""
        return True

    def standby(self) -> str:
        """Nobody else leads."""
        return ""

    def healthy(self) -> bool:
        """Always."""
        return True

    def knows(self) -> bool:
        """There is nothing to know."""
        return True

    async def release(self) -> None:
        """There is nothing to give up."""


class Election:
    """One process's part in the election for one Lease."""

    def __init__(
        self,
        api: LeaseApi,
        config: ElectionConfig,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._candidate = Candidate(name, Times(config.lease_seconds, config.renew_seconds, config.retry_seconds))
        self._step_at = clock()
        self._asked = False
        self._told_holder = ""
        self._told_failure = ""
        self.led = asyncio.Event()

    @property
    def _place(self) -> str:
        return f"{self._config.namespace}/{self._config.name}"

    def may_write(self) -> bool:
        """Whether this process leads at this very moment."""
        return self._candidate.leads(self._clock())

    def standby(self) -> str:
        """A sentence about who leads while another does, "" while this process leads."""
        if self.led.is_set():
            return ""
        seen = self._candidate.seen
        if not self._candidate.looked:
            return f"standby: the Lease {self._place} could not be read yet"
        return f"standby: {(seen and seen.holder) or 'nobody yet'} holds the Lease {self._place}"

    def healthy(self) -> bool:
        """Whether the election itself goes on; every request in it has a deadline."""
        return self._clock() - self._step_at < self._config.renew_seconds + _STUCK_SECONDS

    def knows(self) -> bool:
        """Whether the Lease could be looked at since the start."""
        return self._candidate.looked

    async def run(self) -> str:
        """Strives for the lead and keeps it; returns only when it was lost: why, as part of a sentence."""
        LEADER.set(0)
        while True:
            self._step_at = self._clock()
            action = self._candidate.next(self._step_at)
            match action:
                case Lost(why):
                    LEADER.set(0)
                    self._asked = False  # there is nothing left to give up, and the end must not wait for an answer
                    return why
                case Wait(seconds):
                    await self._sleep(seconds)
                case Read() | Write():
                    await self._ask(action)
                    self._tell()

    async def _ask(self, action: Read | Write) -> None:
        sent = self._clock()
        self._asked = self._asked or isinstance(action, Write)
        try:
            async with asyncio.timeout(self._candidate.patience(sent)):
                lease = await (self._write(action) if isinstance(action, Write) else self._read())
        except ApiError as error:
            if isinstance(action, Write) and error.code in (404, 409):
                self._candidate.conflict(self._clock())
            else:
                self._failed(str(error))
        except TimeoutError:
            self._failed("the API server did not answer in time")
        else:
            self._told_failure = ""
            seen = None if lease is None else seen_of(lease, self._config.lease_seconds)
            if isinstance(action, Write) and seen is not None:
                self._candidate.wrote(seen, sent, self._clock())
            else:
                self._candidate.read(seen, self._clock())

    def _failed(self, cause: str) -> None:
        self._candidate.failed(cause, self._clock())
        if cause != self._told_failure:
            self._told_failure = cause
            what = "renewed" if self.led.is_set() else "acquired"
            log.warning(
                "The Lease %s cannot be %s: %s. It is tried again every %g s.",
                self._place, what, cause, self._config.retry_seconds,
            )  # fmt: skip

    async def _read(self) -> Obj | None:
        try:
            return await self._api.get(LEASE, self._config.namespace, self._config.name)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def _write(self, write: Write) -> Obj:
        now = _now()
        metadata = {"name": self._config.name, "namespace": self._config.namespace}
        # The times are for people: no process decides anything by them.
        spec = {
            "holderIdentity": write.holder,
            "leaseDurationSeconds": self._config.lease_seconds,
            "acquireTime": write.acquired or now,
            "renewTime": now,
            "leaseTransitions": write.transitions,
        }
        body = {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec}
        if not write.version:
            return await self._api.create(LEASE, body)
        return await self._api.update(LEASE, {**body, "metadata": {**metadata, "resourceVersion": write.version}})

    def _tell(self) -> None:
        seen = self._candidate.seen
        if seen is None:
            return
        LEASE_TRANSITIONS.set(seen.transitions)
        if self.may_write() and not self.led.is_set():
            log.info("This process, %s, leads: it holds the Lease %s.", self._candidate.identity, self._place)
            LEADER.set(1)
            self.led.set()
        elif not self.led.is_set() and seen.holder != self._told_holder:
            self._told_holder = seen.holder
            if seen.holder:
                log.info("Standing by: %s holds the Lease %s and leads.", seen.holder, self._place)

    async def release(self) -> None:
        """Gives the lead up, so that another process need not wait. All that writes must have ended."""
        self._candidate.resign()
        LEADER.set(0)
        if not self._asked:
            return
        self._asked = False
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                released = await self._released()
        except (ApiError, TimeoutError) as error:
            cause = str(error) or "the API server did not answer in time"
            log.warning("The Lease %s could not be released: %s. It expires by itself.", self._place, cause)
        else:
            if released:
                log.info("The Lease %s is released.", self._place)

    async def _released(self) -> bool:
        """Writes that nobody holds the Lease. It is read first: a renewal may just have been cut off."""
        for last in (False, True):
            lease = await self._read()
            if lease is None or (seen := seen_of(lease, 0.0)).holder != self._candidate.identity:
                return False
            try:
                await self._write(Write(seen.version, "", seen.transitions, seen.acquired))
            except ApiError as error:
                if error.code != 409 or last:
                    raise
            else:
                break
        return True
