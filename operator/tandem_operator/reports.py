"""Asks serving pods for their reports; beside the watches the second source of what a reconcile observes.

Often (1 s) where something moves: requests, a load, a pod that is not ready yet, a catalog not yet read; seldom (15 s)
elsewhere. Reports are level-triggered: a lost one is made good by the next, and an unreachable pod keeps its last one.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import operator
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import aiohttp
from pydantic import ValidationError

from tandem_api.keys import pool_key
from tandem_api.names import POOL_UID_LABEL
from tandem_api.report import ModelReport, ModelState, Report
from tandem_operator.index import pool_of
from tandem_operator.kinds import MODEL, POD, Key, Obj, uid_of
from tandem_operator.metrics import REPORT_POLLS
from tandem_operator.observe import PodView, Seen

log = logging.getLogger(__name__)

BUSY_SECONDS = 1.0
IDLE_SECONDS = 15.0
AT_ONCE = 64
_GAP_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
_ROUND_SECONDS = 3.0
_LARGEST = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=2.0, sock_connect=0.5)


@dataclass(frozen=True)
class Target:
    """A pod that can be asked."""

    uid: str
    pool_uid: str
    pool: Key
    address: str
    ready: bool


def target_of(pod: Obj) -> Target | None:
    """How to ask a pod; None when it has no address yet, has ended, or is ending."""
    status = pod.get("status", {})
    pool = pool_of(POD, pod)
    if pool is None or not status.get("podIP") or status.get("phase") != "Running":
        return None
    view = PodView(pod)
    if view.terminating:
        return None
    pool_uid = pod["metadata"]["labels"].get(POOL_UID_LABEL, "")
    return Target(uid_of(pod), pool_uid, pool, str(status["podIP"]), view.ready)


def interval(target: Target, seen: Seen, expected: str | None) -> float:
    """Seconds until the pod is to be asked again; `expected` is the catalog revision that it should have read."""
    report = seen.report
    if report is None or not target.ready:
        return BUSY_SECONDS
    moving = any(model.busy or model.queued or model.state == ModelState.LOADING for model in report.models)
    behind = expected is not None and report.catalog_revision != expected
    return BUSY_SECONDS if moving or behind else IDLE_SECONDS


def moved(pool: Key, before: Seen, after: Report) -> set[Key]:
    """The keys whose reconcile would act on, or tell, what a report says anew."""
    if before.report is after and not before.stale:
        return set()
    was, now = _entries(before.report), _entries(after)
    names = {name for name in was.keys() | now.keys() if was.get(name) != now.get(name)}
    if before.stale or before.report is None or _frame(before.report) != _frame(after):
        names = was.keys() | now.keys()
    elif not names:
        return set()
    return {pool, *(Key(MODEL.name, pool.namespace, name) for name in names)}


def _entries(report: Report | None) -> dict[str, ModelReport]:
    models = report.models if report is not None else []
    return {one.name: one.model_copy(update={"step_rate": 0.0, "admitted_total": 0}) for one in models}


def _frame(report: Report) -> Report:
    """All but the models, and the devices' free memory that changes by itself."""
    return report.model_copy(update={"devices": [], "models": []})


class Reports:
    """Keeps `seen` (by pod UID) fresh while `run` runs; nudges those of whom a pod says something new."""

    def __init__(
        self,
        pods: Callable[[], Iterable[Obj]],
        nudge: Callable[[Key], None],
        everyone: Callable[[Key], Iterable[Key]],
        master: bytes,
        port: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pods = pods
        self._nudge = nudge
        self._everyone = everyone
        self._master = master
        self._port = port
        self._clock = clock
        self.seen: dict[str, Seen] = {}
        self._expected: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._asking: set[str] = set()
        self._woken = asyncio.Event()
        self._pods_before: list[Obj] | None = None
        self._targets: dict[str, Target] = {}
        self._digests: dict[str, bytes] = {}
        """Of the text of the last report: an idle pod says the same again and again."""
        self._ready: dict[str, bool] = {}
        """Whether a pod was ready when it was last asked."""

    def expect(self, uid: str, revision: str) -> None:
        """Says which catalog revision a pod should have read; while its report says another it is asked often.

        Called by each reconcile, and so after each change of a pod: it also makes `run` look at the pods at once.
        """
        self._woken.set()
        if self._expected.get(uid) != revision:
            self._expected[uid] = revision
            self._due[uid] = 0.0

    async def run(self) -> None:
        """Asks pods as they become due, until cancelled."""
        connector = aiohttp.TCPConnector(limit=AT_ONCE, keepalive_timeout=2 * IDLE_SECONDS)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                for target in self.due():
                    self._asking.add(target.uid)
                    group.create_task(self._ask(session, target))
                await self._pause()

    async def _pause(self) -> None:
        """Waits until a pod is due or a reconcile has just looked at some; a process at rest should hardly wake up."""
        await asyncio.sleep(_GAP_SECONDS)  # what comes together is asked together
        if len(self._asking) >= AT_ONCE:
            return
        soonest = min((self._due.get(uid, 0.0) for uid in self._targets.keys() - self._asking), default=math.inf)
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_LONGEST_PAUSE_SECONDS, max(0.0, soonest - self._clock()))):
                await self._woken.wait()

    def due(self) -> list[Target]:
        """The pods to ask now, at most 64 at once; forgets those that are gone."""
        pods = list(self._pods())
        # Pods seldom change, and one that does is another object in the cache.
        before = self._pods_before
        if before is None or len(pods) != len(before) or not all(map(operator.is_, pods, before)):
            self._take_over(pods)
        now, due = self._clock(), self._due
        ready = [one for uid, one in self._targets.items() if due.get(uid, 0.0) <= now and uid not in self._asking]
        ready.sort(key=lambda one: due.get(one.uid, 0.0))
        return ready[: AT_ONCE - len(self._asking)]

    def _take_over(self, pods: list[Obj]) -> None:
        """Works out anew which pods can be asked."""
        self._pods_before = pods
        self._targets = {target.uid: target for target in map(target_of, pods) if target is not None}
        for memory in (self.seen, self._digests, self._expected, self._due, self._ready):
            for uid in memory.keys() - self._targets.keys():
                del memory[uid]
        for uid, target in self._targets.items():
            if self._ready.get(uid, target.ready) != target.ready:
                self._due[uid] = 0.0  # what it said before it turned ready (or unready) is out of date

    async def _ask(self, session: aiohttp.ClientSession, target: Target) -> None:
        try:
            report = await self._fetch(session, target)
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError, ValueError) as error:
            self.failed(target, _cause(error))
        else:
            self.answered(target, report)
        finally:
            self._asking.discard(target.uid)

    async def _fetch(self, session: aiohttp.ClientSession, target: Target) -> Report:
        host = f"[{target.address}]" if ":" in target.address else target.address
        headers = {"Authorization": f"Bearer {pool_key(self._master, target.pool_uid)}"}
        url = f"http://{host}:{self._port}/internal/report"
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"its report answered HTTP {response.status}")
            content = await response.content.read(_LARGEST + 1)
            while len(content) <= _LARGEST and not response.content.at_eof():
                content += await response.content.read(_LARGEST + 1 - len(content))
            if len(content) > _LARGEST:
                raise ValueError(f"its report is longer than {_LARGEST} bytes")
            return self._parsed(target.uid, content)

    def _parsed(self, uid: str, content: bytes) -> Report:
        """The report; the very object of before when the pod says the same."""
        before, digest = self.seen.get(uid, Seen()).report, hashlib.sha256(content).digest()
        if before is not None and self._digests.get(uid) == digest:
            return before
        report = Report.model_validate_json(content)
        self._digests[uid] = digest
        return report

    def answered(self, target: Target, report: Report) -> None:
        """Takes in a report."""
        REPORT_POLLS.labels(result="ok").inc()
        before = self.seen.get(target.uid, Seen())
        seen = Seen(report, self._clock())
        self.seen[target.uid] = seen
        self._again(target, seen)
        first = before == Seen()
        for key in self._everyone(target.pool) if first else moved(target.pool, before, report):
            self._nudge(key)

    def failed(self, target: Target, cause: str) -> None:
        """Marks what a pod last said as stale."""
        REPORT_POLLS.labels(result="failed").inc()
        before = self.seen.get(target.uid, Seen())
        self.seen[target.uid] = replace(before, stale=True, error=cause)
        self._again(target, self.seen[target.uid])
        if not before.stale:
            if before.report is not None:
                log.warning("A pod of %s at %s does not answer: %s.", target.pool, target.address, cause)
            for key in self._everyone(target.pool):
                self._nudge(key)

    def _again(self, target: Target, seen: Seen) -> None:
        self._ready[target.uid] = target.ready
        delay = interval(target, seen, self._expected.get(target.uid))
        if self._targets.get(target.uid, target).ready != target.ready:
            delay = 0.0  # it has turned ready (or unready) while it was asked
        due = self._clock() + delay * random.uniform(0.9, 1.1)  # noqa: S311 (jitter, no secret)
        # Idle pods are asked many at a time: a process that wakes up for each of them uses three times the CPU.
        self._due[target.uid] = due if delay < IDLE_SECONDS else math.ceil(due / _ROUND_SECONDS) * _ROUND_SECONDS


def _cause(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"its report is not as agreed: {error.errors()[0]['msg']}"
    return str(error) or type(error).__name__
