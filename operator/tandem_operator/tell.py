"""Writes statuses and says what happened: the last, effectful step of a reconcile.

Only what changed is written, gauges at most once in `gauge_seconds` a key; then each new thing is told once, by an
Event and by one line of the log.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem_api.names import API_VERSION, STATUS_FIELD_MANAGER
from tandem_api.status import CommonStatus, ConditionStatus
from tandem_operator.act import Writer
from tandem_operator.api import ApiError
from tandem_operator.cache import Cache
from tandem_operator.conditions import fields_of, urgent
from tandem_operator.kinds import CUSTOM, Key
from tandem_operator.metrics import STATUS_WRITES
from tandem_operator.transitions import Happening

log = logging.getLogger(__name__)

_KINDS = {kind.name: kind for kind in CUSTOM}


@dataclass(frozen=True)
class Subject:
    """Of whom something is told, and what the API server holds as its status."""

    key: Key
    uid: str
    generation: int
    status: CommonStatus


class Poster(Protocol):
    """What posts Events."""

    async def post(self, key: Key, uid: str, found: Sequence[Happening]) -> None: ...


class Teller:
    """Remembers when each status was written last."""

    def __init__(self, api: Writer, cache: Cache, gauge_seconds: float, clock: Callable[[], float]) -> None:
        self._api = api
        self._cache = cache
        self._gauge_seconds = gauge_seconds
        self._clock = clock
        self._written: dict[Key, float] = {}

    def forget_key(self, key: Key) -> None:
        """Drops what is remembered of something that is gone."""
        self._written.pop(key, None)

    async def write(self, subject: Subject, after: CommonStatus) -> float | None:
        """Writes the status when it changed; returns in how many seconds a change that may wait is due."""
        if fields_of(subject.status) == fields_of(after):
            return None
        since = self._clock() - self._written.get(subject.key, float("-inf"))
        if not urgent(subject.status, after) and since < self._gauge_seconds:
            return self._gauge_seconds - since
        kind = _KINDS[subject.key.kind]
        body = {
            "apiVersion": API_VERSION,
            "kind": kind.name,
            "metadata": {"name": subject.key.name, "namespace": subject.key.namespace, "uid": subject.uid},
            "status": fields_of(after),
        }
        try:
            live = await self._api.apply(kind, body, manager=STATUS_FIELD_MANAGER, subresource="status")
        except ApiError as error:
            if error.code in (404, 409):  # it was deleted meanwhile
                return None
            raise
        STATUS_WRITES.labels(kind=kind.name).inc()
        self._written[subject.key] = self._clock()
        self._cache.put(kind, live)
        return None

    async def tell(self, subject: Subject, after: CommonStatus, found: Sequence[Happening], poster: Poster) -> None:
        """Logs and posts what happened since `subject.status` was written."""
        _log(subject, found, after)
        await poster.post(subject.key, subject.uid, found)


def _log(subject: Subject, found: Sequence[Happening], after: CommonStatus) -> None:
    """One sentence a decision: Events, a new reason of Ready, the end of progress; nothing twice."""
    lines = [(one.warning, one.reason, one.note) for one in found if one.reason != "Created"]
    before = {one.type: one for one in subject.status.conditions}
    for one in after.conditions:
        was = before.get(one.type)
        ready = one.type == "Ready" and (was is None or (was.status, was.reason) != (one.status, one.reason))
        ended = one.type == "Progressing" and one.status == ConditionStatus.FALSE and was and was.status != one.status
        if ready or ended:
            lines.append((False, one.reason, one.message))
    told: list[str] = []
    for warning, reason, message in lines:
        if any(message in one or one in message for one in told):
            continue
        told.append(message)
        extra = {"object": str(subject.key), "generation": subject.generation, "reason": reason}
        log.log(logging.WARNING if warning else logging.INFO, "%s: %s", subject.key, message, extra=extra)
