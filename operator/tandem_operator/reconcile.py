"""One reconcile of one key: observe -> admit -> plan -> act -> status. Level-triggered, idempotent; no kopf.

A ModelPool, and a Model with pods of its own, are planned and acted for by the same code; a Model of a shared pool only
tells its status. Called by the workers of the queue; raises ApiError when the API server cannot be reached or has the
object changed meanwhile, and the worker tries again later.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tandem_api.names import CATALOG_REVISION_ANNOTATION
from tandem_operator.act import Actor, Outcome, Owner, Writer
from tandem_operator.admit import Hold, hold_of, hold_of_member, hold_of_pool
from tandem_operator.api import ApiError
from tandem_operator.cache import Cache
from tandem_operator.config import Config
from tandem_operator.events import Recorder
from tandem_operator.kinds import MODEL_POOL, POD, Key
from tandem_operator.metrics import WRITES
from tandem_operator.observe import Observed, PodView, Pool, Seen, observe, observe_pool
from tandem_operator.plan import Plan, plan
from tandem_operator.pool_status import compute_pool
from tandem_operator.refresh import Refresher
from tandem_operator.reports import Reports, target_of
from tandem_operator.scale_down import costs
from tandem_operator.status import compute
from tandem_operator.tell import Subject, Teller
from tandem_operator.transitions import happenings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Again:
    """When to reconcile the key next without a nudge: in `after` seconds, or after its back-off when `hindered`."""

    after: float | None = None
    hindered: bool = False


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _soonest(*waits: float | None) -> float | None:
    return min((wait for wait in waits if wait is not None), default=None)


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
        self._actor = Actor(api, cache)
        self._recorder = Recorder(api)
        self._refresher = Refresher(clock)
        self._teller = Teller(api, cache, config.gauge_seconds, clock)

    async def reconcile(self, key: Key) -> Again:
        """Brings the objects and the status of one Model or ModelPool to what they should be."""
        return await (self._pool(key) if key.kind == MODEL_POOL.name else self._model(key))

    async def _pool(self, key: Key) -> Again:
        pool = observe_pool(self._cache, self._reports.seen, key)
        if pool is None or pool.deleting:
            # Owner references make the garbage collector remove everything; there is no finalizer to release.
            self._teller.forget_key(key)
            return Again()
        held = {one.key: hold for one in pool.members if (hold := hold_of_member(one, pool)) is not None}
        hold = hold_of_pool(pool, self._config)
        outcome, look_again = await self._carry_out(pool, hold, held)
        # What was just written is part of what the status tells.
        pool = observe_pool(self._cache, self._reports.seen, key) or pool
        after = pool.status if _unheard(pool.pods) else compute_pool(pool, outcome, hold, held, _now())
        subject = Subject(key, pool.uid, pool.generation, pool.status)
        due = await self._teller.write(subject, after)
        found = happenings(pool.status, after, outcome, pool.wanted, ())
        await self._teller.tell(subject, after, found, self._recorder)
        return Again(_soonest(look_again, due), hindered=bool(outcome.conflicts or outcome.refused))

    async def _model(self, key: Key) -> Again:
        observed = observe(self._cache, self._reports.seen, key)
        if observed is None or observed.member.deleting:
            self._teller.forget_key(key)
            return Again()
        hold = hold_of(observed)
        outcome, look_again = Outcome(), None
        if observed.pool is not None and not observed.pool.shared:
            holds = {key: hold} if hold is not None else {}
            outcome, look_again = await self._carry_out(observed.pool, hold, holds)
        elif observed.pool is not None and observed.own and hold is None:
            outcome = await self._leave_own_pool(observed)
        observed = observe(self._cache, self._reports.seen, key) or observed
        member, pods = observed.member, observed.pods
        after = member.status if _unheard(pods) else compute(observed, outcome, hold, _now())
        subject = Subject(key, member.uid, member.generation, member.status)
        due = await self._teller.write(subject, after)
        own = observed.pool if observed.pool is not None and not observed.pool.shared else None
        # Pods of a shared pool may have started long before somebody asked for this model.
        started = own.pods if own is not None else ()
        happened = happenings(member.status, after, outcome, own.wanted if own is not None else 0, started)
        found = self._recorder.deaths(key, pods) + happened
        await self._teller.tell(subject, after, found, self._recorder)
        return Again(_soonest(look_again, due), hindered=bool(outcome.conflicts or outcome.refused))

    async def _carry_out(self, pool: Pool, hold: Hold | None, held: Mapping[Key, Hold]) -> tuple[Outcome, float | None]:
        """Makes what a pool needs, unless it is held as a whole; returns what was done and when to look again."""
        if hold is not None:
            return Outcome(), None
        planned = plan(pool, held, self._config, self._master)
        await self._choose_victims(pool)
        outcome = await self._actor.act(Owner(pool.key, pool.uid, pool.generation, pool.owned), planned)
        revision = planned.catalog.revision if planned.catalog is not None else ""
        return outcome, await self._refresh(pool, revision)

    async def _leave_own_pool(self, observed: Observed) -> Outcome:
        """Removes the pods of its own that a Model had before it joined a shared pool; they drain."""
        member = observed.member
        return await self._actor.act(Owner(member.key, member.uid, member.generation, observed.own), Plan())

    async def _choose_victims(self, pool: Pool) -> None:
        """Before pods become fewer, tells Kubernetes which are the least busy."""
        for pod, annotations in costs(pool):
            await self._annotate(pool, pod, annotations, "cost")

    async def _refresh(self, pool: Pool, revision: str) -> float | None:
        for pod in pool.pods:
            self._reports.expect(pod.uid, revision)
        touches, again = self._refresher.due(pool.pods, revision)
        for touch in touches:
            if await self._annotate(pool, touch.pod, {CATALOG_REVISION_ANNOTATION: touch.value}, "touch"):
                log.info("Touched pod %s of %s, so that it reads catalog %s.", touch.pod.name, pool.key, touch.value)
        return again

    async def _annotate(self, pool: Pool, pod: PodView, annotations: dict[str, str], why: str) -> bool:
        body = {"metadata": {"uid": pod.uid, "annotations": annotations}}
        try:
            await self._api.patch(POD, pool.key.namespace, pod.name, body, "application/merge-patch+json")
        except ApiError as error:
            if error.code not in (404, 409):  # the pod is gone, or another has its name
                raise
            return False
        WRITES.labels(kind=POD.name, action=why).inc()
        return True

    def forget(self, uids: set[str]) -> None:
        """Drops memories of objects other than those with the UIDs that still exist."""
        self._actor.forget(uids)
        self._recorder.forget(uids)
        self._refresher.forget(uids)


def _unheard(pods: tuple[PodView, ...]) -> bool:
    """Whether a pod was never asked since the operator started.

    It may well hold the model: to write that nobody knows, only to take it back a moment later, helps no one. Its first
    answer, or the lack of one, nudges everyone whom it concerns.
    """
    return any(pod.seen == Seen() and target_of(pod.obj) is not None for pod in pods)
