"""What this gateway knows of every pod's load: its own requests, and the freshest word of the pod itself.

Beside the path of a request: the proxy counts here what it sends, answers' headers and polled reports correct it,
and routing reads it. Nothing is shared between gateways; the pods' own words bring in what others send.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tandem_api.load import Load
from tandem_api.report import ModelState, Report
from tandem_gateway.objects import PodView
from tandem_gateway.routing import PodLoad, Warmth

OBSERVATION_SECONDS = 60.0
"""An older word of a pod counts no more."""
SUSPECT_SECONDS = 5.0
DRAINING_SECONDS = 60.0


@dataclass(slots=True)
class _Observation:
    load: Load
    own: int
    """This gateway's requests there at that time: they are contained in `load`."""
    at: float


@dataclass(slots=True)
class PodReport:
    """A pod's last report, and whether the pod could be reached since."""

    report: Report
    at: float
    stale: bool = False


class Loads:
    """Counts and observations by pod UID and model name.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._own: dict[tuple[str, str], int] = {}
        self._observed: dict[tuple[str, str], _Observation] = {}
        self._suspect_until: dict[str, float] = {}
        self._draining_until: dict[str, float] = {}
        self.reports: dict[str, PodReport] = {}

    def begin(self, pod_uid: str, model: str) -> None:
        """One more request of this gateway is on its way to the pod."""
        key = (pod_uid, model)
        self._own[key] = self._own.get(key, 0) + 1

    def end(self, pod_uid: str, model: str) -> None:
        """A request that `begin` counted is over, however it ended."""
        key = (pod_uid, model)
        left = self._own[key] - 1
        if left:
            self._own[key] = left
        else:
            del self._own[key]

    def in_flight(self, pod_uid: str) -> int:
        """This gateway's requests at the pod, over all models."""
        return sum(count for (uid, _), count in self._own.items() if uid == pod_uid)

    def moving(self, pod_uid: str) -> bool:
        """Whether the pod is to be asked often: it has requests of this gateway, or loads a model."""
        last = self.reports.get(pod_uid)
        loading = last is not None and any(entry.state is ModelState.LOADING for entry in last.report.models)
        return loading or self.in_flight(pod_uid) > 0

    def observe(self, pod_uid: str, model: str, load: Load) -> None:
        """What the pod itself says now of the model's load."""
        self._observed[pod_uid, model] = _Observation(load, self._own.get((pod_uid, model), 0), self._clock())

    def observe_report(self, pod_uid: str, report: Report) -> None:
        """Takes in a polled report."""
        self.reports[pod_uid] = PodReport(report, self._clock())
        for entry in report.models:
            if entry.state is ModelState.LOADED:
                self.observe(pod_uid, entry.name, Load(entry.busy, entry.queued, entry.slots))
        if report.draining:
            self.draining(pod_uid)

    def unreachable(self, pod_uid: str) -> None:
        """The pod did not answer the poll: its last report stays, marked stale."""
        if last := self.reports.get(pod_uid):
            last.stale = True

    def suspect(self, pod_uid: str) -> None:
        """The pod failed to answer a request: others come first for a few seconds."""
        self._suspect_until[pod_uid] = self._clock() + SUSPECT_SECONDS

    def draining(self, pod_uid: str) -> None:
        """The pod says that it takes no more requests."""
        self._draining_until[pod_uid] = self._clock() + DRAINING_SECONDS

    def answered(self, pod_uid: str) -> None:
        """The pod took a request: whatever was held against it is over."""
        self._suspect_until.pop(pod_uid, None)
        self._draining_until.pop(pod_uid, None)

    def of(self, pod: PodView, model: str) -> PodLoad:
        """What is known now of the model's load in the pod."""
        now, own = self._clock(), self._own.get((pod.uid, model), 0)
        pending, slots = float(own), None
        observation = self._observed.get((pod.uid, model))
        if observation is not None:
            slots = observation.load.slots or None
            if now - observation.at <= OBSERVATION_SECONDS:
                # The pod's word, corrected by what this gateway has begun and ended since.
                said = observation.load.busy + observation.load.queued
                pending = float(max(own, said + own - observation.own))
        return PodLoad(
            warmth=self._warmth(pod.uid, model, observation),
            pending=pending,
            slots=slots,
            suspect=self._suspect_until.get(pod.uid, 0.0) > now,
            draining=self._draining_until.get(pod.uid, 0.0) > now,
        )

    def _warmth(self, pod_uid: str, model: str, observation: _Observation | None) -> Warmth:
        report = self.reports.get(pod_uid)
        # Only a pod that holds a model tells its load.
        if report is None or (observation is not None and observation.at >= report.at):
            return Warmth.LOADED
        entry = report.report.model(model)
        if entry is None or entry.state is ModelState.FAILED:
            return Warmth.ABSENT
        return Warmth.LOADED if entry.state is ModelState.LOADED else Warmth.COLD

    def forget_all_but(self, pod_uids: Collection[str]) -> None:
        """Drops what was observed of pods that are gone; counts of requests that still run stay until they end."""
        for uid in {uid for uid, _ in self._observed} - set(pod_uids):
            for key in [key for key in self._observed if key[0] == uid]:
                del self._observed[key]
        for store in (self._suspect_until, self._draining_until, self.reports):
            for uid in set(store) - set(pod_uids):
                del store[uid]
