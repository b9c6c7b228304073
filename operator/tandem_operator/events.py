"""Posts Events about Models, after the status was written. `kubectl describe model` shows them.

Events are a courtesy: one that cannot be posted is logged and never holds up or fails a reconcile.
"""

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from tandem_api.names import API_VERSION, FIELD_MANAGER
from tandem_operator.api import ApiError
from tandem_operator.kinds import EVENT, MODEL, Kind, Obj
from tandem_operator.observe import Observed
from tandem_operator.transitions import Happening

log = logging.getLogger(__name__)

_LONGEST_NOTE = 1000
"""The API server takes 1024 bytes."""


class Creator(Protocol):
    """What posting needs of the API client."""

    async def create(self, kind: Kind, obj: Obj) -> Obj: ...


def event_of(observed: Observed, happening: Happening, now: datetime, unique: str) -> Obj:
    """The Event object of a happening."""
    note = happening.note.encode()[:_LONGEST_NOTE].decode(errors="ignore")
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{observed.key.name}.{unique}", "namespace": observed.key.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"tandem.dev/{FIELD_MANAGER}",
        "reportingInstance": os.environ.get("HOSTNAME") or FIELD_MANAGER,
        "action": happening.action,
        "reason": happening.reason,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": MODEL.name,
            "namespace": observed.key.namespace,
            "name": observed.key.name,
            "uid": observed.uid,
        },
        "note": note,
        "type": "Warning" if happening.warning else "Normal",
    }


class Recorder:
    """Posts happenings; remembers how often runners were restarted, to tell of each death once."""

    def __init__(self, api: Creator, unique: Callable[[], str] = lambda: f"{time.time_ns():x}") -> None:
        self._api = api
        self._unique = unique
        self._restarts: dict[str, int] = {}

    def deaths(self, observed: Observed) -> list[Happening]:
        """Runners that died since the last call. What was so before the operator started is not told again."""
        found = []
        for pod in observed.pods:
            entry = pod.model(observed.key.name)
            if entry is None:
                continue
            known = self._restarts.get(pod.uid)
            self._restarts[pod.uid] = entry.restarts
            if known is not None and entry.restarts > known:
                cause = entry.last_error or "no cause was reported"
                note = f"The runner in pod {pod.name} died and is started again (restart {entry.restarts}): {cause}"
                found.append(Happening("RunnerDied", "Restart", note, warning=True))
        return found

    def forget(self, pods: set[str]) -> None:
        """Drops what is remembered of pods other than those with the UIDs that still exist."""
        self._restarts = {uid: count for uid, count in self._restarts.items() if uid in pods}

    async def post(self, observed: Observed, found: list[Happening]) -> None:
        """Posts each of the happenings, in order."""
        for happening in found:
            event = event_of(observed, happening, datetime.now(UTC), self._unique())
            try:
                await self._api.create(EVENT, event)
            except ApiError as error:
                log.warning("The Event %s of Model %s could not be posted: %s.", happening.reason, observed.key, error)
