"""Posts Events about Models and ModelPools, after the status was written. `kubectl describe model` shows them.

Events are a courtesy: one that cannot be posted is logged and never holds up or fails a reconcile.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from tandem_api.names import API_VERSION, FIELD_MANAGER
from tandem_operator.api import ApiError
from tandem_operator.kinds import EVENT, Key, Kind, Obj
from tandem_operator.observe import PodView
from tandem_operator.transitions import Happening

log = logging.getLogger(__name__)

_LONGEST_NOTE = 1000
"""The API server takes 1024 bytes."""


class Creator(Protocol):
    """What posting needs of the API client."""

    async def create(self, kind: Kind, obj: Obj) -> Obj: ...


def event_of(key: Key, uid: str, happening: Happening, now: datetime, unique: str) -> Obj:
    """The Event object of a happening."""
    note = happening.note.encode()[:_LONGEST_NOTE].decode(errors="ignore")
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{key.name}.{unique}", "namespace": key.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"tandem.dev/{FIELD_MANAGER}",
        "reportingInstance": os.environ.get("HOSTNAME") or FIELD_MANAGER,
        "action": happening.action,
        "reason": happening.reason,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "uid": uid,
        },
        "note": note,
        "type": "Warning" if happening.warning else "Normal",
    }


class Recorder:
    """Posts happenings; remembers how often runners were restarted, to tell of each death once."""

    def __init__(self, api: Creator, unique: Callable[[], str] = lambda: f"{time.time_ns():x}") -> None:
        self._api = api
        self._unique = unique
        self._restarts: dict[tuple[str, str], int] = {}

    def deaths(self, key: Key, pods: Iterable[PodView]) -> list[Happening]:
        """Runners of the Model `key` that died since the last call. What was so before the start is not told again."""
        found = []
        for pod in pods:
            entry = pod.model(key.name)
            if entry is None:
                continue
            place = (pod.uid, key.name)
            known = self._restarts.get(place)
            self._restarts[place] = entry.restarts
            if known is not None and entry.restarts > known:
                cause = entry.last_error or "no cause was reported"
                note = f"The runner in pod {pod.name} died and is started again (restart {entry.restarts}): {cause}"
                found.append(Happening("RunnerDied", "Restart", note, warning=True))
        return found

    def forget(self, pods: set[str]) -> None:
        """Drops what is remembered of pods other than those with the UIDs that still exist."""
        self._restarts = {place: count for place, count in self._restarts.items() if place[0] in pods}

    async def post(self, key: Key, uid: str, found: Sequence[Happening]) -> None:
        """Posts each of the happenings, in order."""
        for happening in found:
            event = event_of(key, uid, happening, datetime.now(UTC), self._unique())
            try:
                await self._api.create(EVENT, event)
            except ApiError as error:
                log.warning("The Event %s of %s could not be posted: %s.", happening.reason, key, error)
