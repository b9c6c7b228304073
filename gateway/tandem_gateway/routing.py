"""Which Model a request means, and which pods may serve it, in order: pure functions over views and loads.

On the path of every request, between reading the model's name from its body and sending it on. Later choices
(who may use which namespace, which pod holds the prefix) join here as further arguments and sort keys.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tandem_api import placement
from tandem_gateway.objects import ModelView, PodView

LATEST = ":latest"


class Warmth(IntEnum):
    """Whether a pod holds a model; the smaller is asked first."""

    LOADED = 0
    """It does, or it has told nothing yet: a ready pod of a Model's own holds it."""
    COLD = 1
    """It would have to load the model first."""
    ABSENT = 2
    """The pod did not know of the model when it last told, or could not load it."""


@dataclass(frozen=True, slots=True)
class PodLoad:
    """What is known of one model's load in one pod."""

    pending: float = 0.0
    """Requests that run or wait there."""
    slots: int | None = None
    suspect: bool = False
    """It lately failed to answer."""
    draining: bool = False
    """It said itself that it takes no more requests."""
    warmth: Warmth = Warmth.LOADED


@dataclass(frozen=True, slots=True)
class Table:
    """Models and pods, indexed for look-up; made anew after every change."""

    names: Mapping[tuple[str, str], ModelView] = field(default_factory=dict)
    """By namespace and name."""
    aliases: Mapping[tuple[str, str], ModelView] = field(default_factory=dict)
    """By namespace and alias; of two Models with one alias the older has it, and a name beats every alias."""
    pods: Mapping[tuple[str, str], tuple[PodView, ...]] = field(default_factory=dict)
    """By namespace and pool; only pods that have an address."""

    def models(self) -> list[ModelView]:
        """All Models, by namespace and name."""
        return [self.names[key] for key in sorted(self.names)]

    def pods_of(self, model: ModelView) -> tuple[PodView, ...]:
        """The pods of the model's pool."""
        return self.pods.get((model.namespace, model.pool), ())


def build(models: Iterable[ModelView], pods: Iterable[PodView]) -> Table:
    """The table of these Models and pods."""
    by_age = sorted(models, key=lambda model: (model.created, model.uid))
    names = {(model.namespace, model.name): model for model in by_age}
    aliases: dict[tuple[str, str], ModelView] = {}
    for model in by_age:
        for alias in model.aliases:
            if (model.namespace, alias) not in names:
                aliases.setdefault((model.namespace, alias), model)
    grouped: dict[tuple[str, str], list[PodView]] = {}
    for pod in pods:
        if pod.ip:
            grouped.setdefault((pod.namespace, pod.pool), []).append(pod)
    return Table(names, aliases, {key: tuple(sorted(group, key=lambda pod: pod.uid)) for key, group in grouped.items()})


def resolve(table: Table, name: str, default_namespace: str) -> ModelView | None:
    """The Model that a request means by `name`.

    `namespace/name` is tried first; anything else is a name or alias in `default_namespace`. Never in a third.
    """
    namespace, slash, rest = name.partition("/")
    if slash and (model := _within(table, namespace, rest)):
        return model
    return _within(table, default_namespace, name)


def _within(table: Table, namespace: str, name: str) -> ModelView | None:
    for candidate in dict.fromkeys((name, name.removesuffix(LATEST))):
        for index in (table.names, table.aliases):
            if model := index.get((namespace, candidate)):
                return model
    return None


def public_name(model: ModelView, default_namespace: str) -> str:
    """What requests call the Model: its bare name in the default namespace, `namespace/name` elsewhere."""
    return model.name if model.namespace == default_namespace else f"{model.namespace}/{model.name}"


def candidates(
    pods: Iterable[PodView],
    load_of: Callable[[PodView], PodLoad],
    tie: Callable[[PodView], float],
    model_uid: str = "",
) -> list[PodView]:
    """The pods that may serve a request, best first.

    Ready pods come before all others, among them those that answered lately, then those that hold the model, then the
    least loaded for its slots; of those that would have to load it, the first by `placement`, so that every gateway
    chooses the same.
    Only when no pod is ready are others named at all, as a last resort: a terminating pod still serves while it
    lingers, and one that was ready before may only have missed a probe. A pod that never was ready is no candidate.

    Args:
        pods: pods of one pool.
        load_of: what is known of a pod's load.
        tie: decides between equals; the smaller goes first.
        model_uid: of the model.
    """
    ready = [pod for pod in pods if pod.ip and pod.ready and not pod.terminating]
    usable = ready or [pod for pod in pods if pod.ip and pod.running and (pod.terminating or pod.was_ready)]

    places = {uid: place for place, uid in enumerate(placement.order(model_uid, [pod.uid for pod in usable]))}

    def rank(pod: PodView) -> tuple[bool, bool, bool, int, int, float, float]:
        load = load_of(pod)
        place = places[pod.uid] if load.warmth >= Warmth.COLD else 0
        busy = load.pending / max(load.slots or 1, 1)
        return (load.draining, load.suspect, pod.terminating, int(load.warmth), place, busy, tie(pod))

    return sorted(usable, key=rank)
