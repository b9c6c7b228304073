"""Which pods may serve a request, best first, and whether one of them is to load a further copy: pure functions.

On the path of every request, between the Model that `routing` found and `replay`, which sends. Nothing is asked and
nothing is agreed upon: gateways with the same reports choose the same pods, since `placement` gives all the same order.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from tandem_api import placement
from tandem_api.report import RoomReport
from tandem_gateway.objects import PodView

CROWDED_SECONDS = 5.0
"""So long must every holder's queue have been longer than its slots before a further copy is loaded."""


class Warmth(IntEnum):
    """Whether a pod holds a model."""

    LOADED = 0
    """It does. Of a Model's own pods it is assumed of one that has told nothing yet, since they load it at once."""
    LOADING = 1
    """It loads the model, or requests wait there for its load."""
    COLD = 2
    """It would have to load the model first."""
    ABSENT = 3
    """The pod did not know of the model when it last told, or could not load it."""


@dataclass(frozen=True, slots=True)
class PodLoad:
    """What is known of one model in one pod."""

    pending: float = 0.0
    """Requests that run or wait there."""
    slots: int | None = None
    suspect: bool = False
    """It lately failed to answer."""
    draining: bool = False
    """It said itself that it takes no more requests."""
    warmth: Warmth = Warmth.LOADED
    own: int = 0
    """Requests of this gateway there; contained in `pending`."""
    crowded_seconds: float = 0.0
    """For how long more requests have waited there than it has slots."""
    room: RoomReport | None = None
    """What a further model would find in the pod; None: not known."""


@dataclass(frozen=True, slots=True)
class Want:
    """What of a Model and a request decides where the model is loaded."""

    uid: str = ""
    """Of the Model."""
    size: int = 0
    """Bytes that a copy takes at most; 0: not known."""
    most: int | None = None
    """In how many pods it may be loaded; None: in all."""
    computing: bool = True
    """False: the request only asks about the model, which makes no pod load it."""


@dataclass(frozen=True, slots=True)
class Further:
    """A further copy that is to be loaded, and why."""

    pod: PodView
    holders: tuple[PodView, ...]
    seconds: float
    """For so long the queues of all holders have been longer than their slots."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The pods that may be asked, best first. With `further`, whose pod is the first, that one loads a further copy."""

    pods: list[PodView]
    further: Further | None = None


class _Tier(IntEnum):
    """What a pod that can answer is good for; the smaller is asked first."""

    FURTHER = 0
    """Loads a further copy while all other holders are crowded, and has not yet its share of those who wait."""
    LOADED = 1
    SPARE = 2
    """Holds one copy more than the Model says: its keep-alive is to end."""
    LOADING = 3
    FITS = 4
    """Has room without ending a model that has requests, as far as is known."""
    FULL = 5
    """Has not: the request would wait there for others."""
    ABSENT = 6


def fits(load: PodLoad, size: int) -> bool:
    """Whether the pod can load so many bytes without ending a model that has requests; a pod that tells no room can."""
    return load.room is None or (load.room.reach_bytes >= size and load.room.reach_seats >= 1)


def fits_beside(load: PodLoad, size: int) -> bool:
    """Whether the pod is known to have room for so many bytes beside all that it holds.

    What it holds is all within its keep-alive: pods unload the rest by themselves.
    """
    return load.room is not None and load.room.free_bytes >= size and load.room.free_seats >= 1


def usable(pods: Iterable[PodView]) -> list[PodView]:
    """The pods that can be asked at all.

    Only when no pod is ready are others named, as a last resort: a terminating pod still serves while it lingers, and
    one that was ready before may only have missed a probe. A pod that never was ready is no candidate.
    """
    group = [pod for pod in pods if pod.ip]
    ready = [pod for pod in group if pod.ready and not pod.terminating]
    return ready or [pod for pod in group if pod.running and (pod.terminating or pod.was_ready)]


def choose(
    pods: Iterable[PodView],
    load_of: Callable[[PodView], PodLoad],
    tie: Callable[[PodView], float],
    want: Want = Want(),
) -> Choice:
    """The pods that may serve a request, best first.

    Those that answered lately come before all others. Among them: those that hold the model, the least loaded for its
    slots first; one that loads it; then, in the order of `placement`, those that could load it, first of all those
    where no model that has requests is in the way. One of the last comes before all when a further copy is due. Pods
    that would have to load one copy more than the Model allows are left out.

    Args:
        pods: pods of one pool.
        load_of: what is known of the model in a pod.
        tie: decides between equals; the smaller goes first.
        want: what is to be loaded.
    """
    group = usable(pods)
    by_uid = {pod.uid: pod for pod in group}
    order = [by_uid[uid] for uid in placement.order(want.uid, by_uid)]
    places = {pod.uid: place for place, pod in enumerate(order)}
    loads = {pod.uid: load_of(pod) for pod in group}
    holders = [pod for pod in order if loads[pod.uid].warmth <= Warmth.LOADING and not loads[pod.uid].draining]
    crowded = want.computing and _crowded(holders, loads)
    further = _further(order, holders, loads, want) if crowded else None
    # A copy in a pod that does not answer serves nobody: where there is no other, one may be loaded elsewhere.
    sound = [pod for pod in holders if not loads[pod.uid].suspect]
    sound.sort(key=lambda pod: loads[pod.uid].warmth)
    spare = {pod.uid for pod in sound[want.most :]} if want.most is not None else set()
    closed = want.most is not None and len(sound) >= want.most

    def tier(pod: PodView) -> _Tier:
        load = loads[pod.uid]
        match load.warmth:
            case Warmth.LOADED:
                return _Tier.SPARE if pod.uid in spare else _Tier.LOADED
            case Warmth.LOADING:
                share = load.own <= (load.slots or 1)
                return _Tier.FURTHER if crowded and share and pod.uid not in spare else _Tier.LOADING
            case Warmth.COLD:
                if further is not None and pod is further.pod:
                    return _Tier.FURTHER
                return _Tier.FITS if fits(load, want.size) else _Tier.FULL
            case Warmth.ABSENT:
                return _Tier.ABSENT

    def rank(pod: PodView) -> tuple[bool, bool, bool, int, int, float, float]:
        load = loads[pod.uid]
        place = places[pod.uid] if load.warmth >= Warmth.COLD else 0
        busy = load.pending / max(load.slots or 1, 1)
        return (load.draining, load.suspect, pod.terminating, tier(pod), place, busy, tie(pod))

    open_to = [pod for pod in group if not (closed and loads[pod.uid].warmth >= Warmth.COLD)]
    return Choice(sorted(open_to, key=rank), further)


def _crowded(holders: list[PodView], loads: dict[str, PodLoad]) -> bool:
    """Whether the model is loaded, and everywhere with a queue that has long been longer than the slots."""
    loaded = [loads[pod.uid] for pod in holders if loads[pod.uid].warmth is Warmth.LOADED]
    return bool(loaded) and all(load.crowded_seconds >= CROWDED_SECONDS for load in loaded)


def _further(order: list[PodView], holders: list[PodView], loads: dict[str, PodLoad], want: Want) -> Further | None:
    """The copy that crowded holders call for; None where there may be none, where none fits, or while one is loading.

    One at a time: how much the one that is loading will relieve shows only when it serves.
    """
    loading = any(loads[pod.uid].warmth is Warmth.LOADING for pod in holders)
    if loading or (want.most is not None and len(holders) >= want.most):
        return None
    for pod in order:
        load = loads[pod.uid]
        sound = pod.ready and not pod.terminating and not load.suspect and not load.draining
        if sound and load.warmth is Warmth.COLD and fits_beside(load, want.size):
            return Further(pod, tuple(holders), min(loads[held.uid].crowded_seconds for held in holders))
    return None
