"""What this gateway knows of every pod's load: its own requests, and the freshest word of the pod itself.

Beside the path of a request: the proxy counts here what it sends, answers' headers and polled reports correct it,
and placing reads it. Nothing is shared between gateways; the pods' own words bring in what others send.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from tandem_api.load import Load
from tandem_api.report import ModelReport, ModelState, Report
from tandem_gateway.objects import PodView
from tandem_gateway.placing import PodLoad, Warmth
from tandem_gateway.queues import Key, LongQueues

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
    slots: int
    """What the pod last said of its slots when it could run the model: `load` says 0 while it cannot."""


@dataclass(slots=True)
class PodReport:
    """A pod's last report, and whether the pod could be reached since."""

    report: Report
    at: float
    stale: bool = False
    models: dict[str, ModelReport] = field(init=False)
    """The report's entries by name."""

    def __post_init__(self) -> None:
        self.models = {entry.name: entry for entry in self.report.models}


class Loads:
    """Counts and observations by pod UID and model name.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._own: dict[Key, int] = {}
        self._observed: dict[Key, _Observation] = {}
        self._long = LongQueues(clock)
        self._suspect_until: dict[str, float] = {}
        self._draining_until: dict[str, float] = {}
        self.reports: dict[str, PodReport] = {}

    def begin(self, pod_uid: str, model: str) -> None:
        """One more request of this gateway is on its way to the pod."""
        key = (pod_uid, model)
        self._own[key] = self._own.get(key, 0) + 1
        self._note(key)

    def end(self, pod_uid: str, model: str) -> None:
        """A request that `begin` counted is over, however it ended."""
        key = (pod_uid, model)
        left = self._own[key] - 1
        if left:
            self._own[key] = left
        else:
            del self._own[key]
        self._note(key)

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
        key = (pod_uid, model)
        before = self._observed.get(key)
        slots = load.slots or (before.slots if before is not None else 0)
        self._observed[key] = _Observation(load, self._own.get(key, 0), self._clock(), slots)
        self._note(key, heard=True)

    def observe_report(self, pod_uid: str, report: Report) -> None:
        """Takes in a polled report."""
        self.reports[pod_uid] = PodReport(report, self._clock())
        for entry in report.models:
            loaded = entry.state is ModelState.LOADED
            if loaded or entry.busy or entry.queued:
                self.observe(pod_uid, entry.name, Load(entry.busy, entry.queued, entry.slots if loaded else 0))
            elif self._observed.pop((pod_uid, entry.name), None) is not None:
                self._note((pod_uid, entry.name))
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
        """What is known now of the model in the pod."""
        now, key = self._clock(), (pod.uid, model)
        # An old word may have lost its weight since the last change.
        self._note(key)
        observation, held = self._observed.get(key), self.reports.get(pod.uid)
        return PodLoad(
            pending=self._pending(key),
            slots=(observation.slots or None) if observation is not None else None,
            suspect=self._suspect_until.get(pod.uid, 0.0) > now,
            draining=self._draining_until.get(pod.uid, 0.0) > now,
            warmth=self._warmth(pod, model),
            own=self._own.get(key, 0),
            crowded_seconds=self._long.seconds(key),
            room=held.report.room if held is not None and not held.stale else None,
        )

    def size(self, pods: Iterable[PodView], model: str) -> int:
        """Bytes that a copy of the model takes, by the pod that says the most; 0: none knows."""
        held = [self.reports[pod.uid].models.get(model) for pod in pods if pod.uid in self.reports]
        return max((max(entry.need_bytes, entry.size_bytes) for entry in held if entry is not None), default=0)

    def _pending(self, key: Key) -> float:
        own, observation = self._own.get(key, 0), self._observed.get(key)
        if observation is None or self._clock() - observation.at > OBSERVATION_SECONDS:
            return float(own)
        # The pod's word, corrected by what this gateway has begun and ended since.
        said = observation.load.busy + observation.load.queued
        return float(max(own, said + own - observation.own))

    def _note(self, key: Key, *, heard: bool = False) -> None:
        """Tells whether more requests wait than there are slots; of a pod that told no slots that is not known."""
        observation = self._observed.get(key)
        slots = observation.slots if observation is not None else 0
        self._long.note(key, slots > 0 and self._pending(key) > 2 * slots, heard=heard)

    def _warmth(self, pod: PodView, model: str) -> Warmth:
        observation, held = self._observed.get((pod.uid, model)), self.reports.get(pod.uid)
        newer = observation is not None and (held is None or observation.at >= held.at)
        # Only a pod that holds a model tells slots of it with its answers.
        if newer and observation is not None and observation.load.slots:
            return Warmth.LOADED
        assumed = Warmth.COLD if pod.shared_pool else Warmth.LOADED
        found = assumed if held is None else _told(held.models.get(model))
        # Whoever asked a pod that does not hold it waits there for its load, before any report tells.
        return Warmth.LOADING if found is Warmth.COLD and self._own.get((pod.uid, model)) else found

    def forget_all_but(self, pod_uids: Collection[str]) -> None:
        """Drops what was observed of pods that are gone; counts of requests that still run stay until they end."""
        for uid in {uid for uid, _ in self._observed} - set(pod_uids):
            for key in [key for key in self._observed if key[0] == uid]:
                del self._observed[key]
        self._long.forget_all_but(pod_uids)
        for store in (self._suspect_until, self._draining_until, self.reports):
            for uid in set(store) - set(pod_uids):
                del store[uid]


def _told(entry: ModelReport | None) -> Warmth:
    """By a report alone."""
    if entry is None or entry.state is ModelState.FAILED:
        return Warmth.ABSENT
    if entry.state is ModelState.LOADED:
        return Warmth.LOADED
    return Warmth.LOADING if entry.state is ModelState.LOADING or entry.busy or entry.queued else Warmth.COLD
