"""Which Model a request means, and which pods its pool has: pure functions over views.

On the path of every request, between reading the model's name from its body and `placing`, which puts the pods in
order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tandem_gateway.objects import ModelView, PodView

LATEST = ":latest"


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
