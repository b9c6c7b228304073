"""One reconcile of one Model: observe -> plan -> act -> status. Level-triggered, idempotent; knows nothing of kopf.

Called by the workers of the queue with a key; raises ApiError when the API server refuses or is out of reach, and the
worker tries again later.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tandem_api.names import API_VERSION, CATALOG_REVISION_ANNOTATION, STATUS_FIELD_MANAGER
from tandem_api.status import ConditionStatus, ModelStatus
from tandem_operator.act import Actor, Outcome, Writer
from tandem_operator.api import ApiError
from tandem_operator.cache import Cache, ModelKey
from tandem_operator.config import Config
from tandem_operator.events import Recorder
from tandem_operator.kinds import MODEL, POD
from tandem_operator.metrics import STATUS_WRITES, WRITES
from tandem_operator.observe import Observed, Seen, observe
from tandem_operator.plan import plan
from tandem_operator.refresh import Refresher
from tandem_operator.reports import Reports, target_of
from tandem_operator.status import compute, fields_of, urgent
from tandem_operator.transitions import Happening, happenings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Again:
    """When to reconcile the key next without a nudge: in `after` seconds, or after its back-off when `hindered`."""

    after: float | None = None
    hindered: bool = False


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reconciler:
    """Carries out reconciles; holds what must be remembered between them."""

    def __init__(
        self,
        api: Writer,
        cache: Cache,
        reports: Reports,
        config: Config,
        master: bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._cache = cache
        self._reports = reports
        self._config = config
        self._master = master
        self._clock = clock
        self._actor = Actor(api, cache)
        self._recorder = Recorder(api)
        self._refresher = Refresher(clock)
        self._status_written: dict[ModelKey, float] = {}

    async def reconcile(self, key: ModelKey) -> Again:
        """Brings one Model's objects and status to what they should be."""
        observed = observe(self._cache, self._reports.seen, key)
        if observed is None or observed.deleting:
            # Owner references make the garbage collector remove everything; there is no finalizer to release.
            self._status_written.pop(key, None)
            return Again()
        outcome, look_again = Outcome(), None
        if observed.spec is not None:
            planned = plan(observed, self._config.server, self._master)
            outcome = await self._actor.act(observed, planned)
            look_again = await self._refresh(observed, planned.catalog.revision)
        # What was just written is part of what the status tells.
        fresh = observe(self._cache, self._reports.seen, key) or observed
        due = await self._tell(fresh, outcome)
        waits = [wait for wait in (look_again, due) if wait is not None]
        return Again(min(waits) if waits else None, hindered=bool(outcome.conflicts or outcome.refused))

    async def _refresh(self, observed: Observed, revision: str) -> float | None:
        for pod in observed.pods:
            self._reports.expect(pod.uid, revision)
        touches, again = self._refresher.due(observed.pods, revision)
        for touch in touches:
            body = {"metadata": {"uid": touch.pod.uid, "annotations": {CATALOG_REVISION_ANNOTATION: touch.value}}}
            name = touch.pod.name
            try:
                await self._api.patch(POD, observed.key.namespace, name, body, "application/merge-patch+json")
            except ApiError as error:
                if error.code not in (404, 409):  # the pod is gone, or another has its name
                    raise
                continue
            WRITES.labels(kind=POD.name, action="touch").inc()
            log.info("Touched pod %s of Model %s, so that it reads catalog %s.", name, observed.key, touch.value)
        return again

    async def _tell(self, observed: Observed, outcome: Outcome) -> float | None:
        """Writes the status when it changed; returns in how many seconds a change that may wait is due."""
        before = observed.status
        # A pod that was never asked since the start may well hold the model: to write that nobody knows, only to take
        # it back a moment later, helps no one. Its first answer, or the lack of one, nudges the Model again.
        unheard = any(pod.seen == Seen() and target_of(pod.obj) is not None for pod in observed.pods)
        after = before if unheard else compute(observed, outcome, _now())
        found = self._recorder.deaths(observed) + happenings(observed, outcome, after)
        wait: float | None = None
        if fields_of(before) != fields_of(after):
            since = self._clock() - self._status_written.get(observed.key, float("-inf"))
            if urgent(before, after) or since >= self._config.gauge_seconds:
                await self._write(observed, after)
            else:
                wait = self._config.gauge_seconds - since
        _log(observed, found, after)
        await self._recorder.post(observed, found)
        return wait

    async def _write(self, observed: Observed, status: ModelStatus) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": MODEL.name,
            "metadata": {"name": observed.key.name, "namespace": observed.key.namespace, "uid": observed.uid},
            "status": fields_of(status),
        }
        try:
            live = await self._api.apply(MODEL, body, manager=STATUS_FIELD_MANAGER, subresource="status")
        except ApiError as error:
            if error.code in (404, 409):  # the Model was deleted meanwhile
                return
            raise
        STATUS_WRITES.inc()
        self._status_written[observed.key] = self._clock()
        self._cache.put(MODEL, live)

    def forget(self, uids: set[str]) -> None:
        """Drops memories of objects other than those with the UIDs that still exist."""
        self._actor.forget(uids)
        self._recorder.forget(uids)
        self._refresher.forget(uids)


def _log(observed: Observed, found: list[Happening], after: ModelStatus) -> None:
    """One sentence a decision: Events, a new reason of Ready, the end of progress; nothing twice."""
    lines = [(one.warning, one.reason, one.note) for one in found if one.reason != "Created"]
    before = {one.type: one for one in observed.status.conditions}
    for one in after.conditions:
        was = before.get(one.type)
        ready = one.type == "Ready" and (was is None or (was.status, was.reason) != (one.status, one.reason))
        ended = one.type == "Progressing" and one.status == ConditionStatus.FALSE and was and was.status != one.status
        if ready or ended:
            lines.append((False, one.reason, one.message))
    told = ""
    for warning, reason, message in lines:
        if message in told:
            continue
        told += message
        extra = {"object": str(observed.key), "generation": observed.generation, "reason": reason}
        log.log(logging.WARNING if warning else logging.INFO, "Model %s: %s", observed.key, message, extra=extra)
