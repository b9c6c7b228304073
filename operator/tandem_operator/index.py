"""Which Models and ModelPools an object concerns; the cache asks here whom to nudge.

Pods and owned objects concern their pool, and through a shared pool every Model in it. A Model concerns the pool it
names and the Models that claim one of its names. A Secret concerns the Models that refer to it.
"""

from collections.abc import Iterable
from typing import Any

from tandem_api.names import CREDENTIALS_LABEL, CREDENTIALS_USABLE, GROUP, POOL_KIND_LABEL, POOL_LABEL
from tandem_operator.kinds import (
    MODEL,
    MODEL_POOL,
    POD,
    SECRET,
    Key,
    Kind,
    Obj,
    controller_of,
    name_of,
    namespace_of,
    spec_of,
)

_POOL_KINDS = (MODEL.name, MODEL_POOL.name)


def pool_of(kind: Kind, obj: Obj) -> Key | None:
    """The pool that an owned object (by its controller) or a pod (by its labels) belongs to."""
    namespace = namespace_of(obj)
    if kind == POD:
        labels = obj["metadata"].get("labels") or {}
        if labels.get(POOL_KIND_LABEL) not in _POOL_KINDS or POOL_LABEL not in labels:
            return None
        return Key(labels[POOL_KIND_LABEL], namespace, labels[POOL_LABEL])
    owner = controller_of(obj)
    if owner is None or owner.get("kind") not in _POOL_KINDS:
        return None
    if not str(owner.get("apiVersion", "")).startswith(f"{GROUP}/"):
        return None
    return Key(str(owner["kind"]), namespace, str(owner["name"]))


def shared_pool_of(model: Obj) -> Key | None:
    """The ModelPool that a Model names."""
    name = spec_of(model).get("pool")
    return Key(MODEL_POOL.name, namespace_of(model), name) if isinstance(name, str) and name else None


def _names(model: Obj) -> set[str]:
    aliases = spec_of(model).get("aliases")
    return {name_of(model), *(one for one in (aliases if isinstance(aliases, list) else ()) if isinstance(one, str))}


def secret_of(model: Obj) -> str | None:
    """The Secret that a Model refers to."""
    reference = spec_of(model).get("secretRef")
    name = reference.get("name") if isinstance(reference, dict) else None
    return name if isinstance(name, str) else None


def usable(secret: Obj) -> bool:
    """Whether Models may name this Secret."""
    return (secret["metadata"].get("labels") or {}).get(CREDENTIALS_LABEL) == CREDENTIALS_USABLE


class _Groups:
    """Sets under keys; empty ones are forgotten."""

    def __init__(self) -> None:
        self._sets: dict[Any, set[Any]] = {}

    def add(self, key: Any, value: Any) -> None:
        self._sets.setdefault(key, set()).add(value)

    def discard(self, key: Any, value: Any) -> None:
        members = self._sets.get(key, set())
        members.discard(value)
        if not members:
            self._sets.pop(key, None)

    def of(self, key: Any) -> Iterable[Any]:
        return self._sets.get(key, ())


class Index:
    """Look-ups over everything in the cache; told of each object that comes and goes."""

    def __init__(self) -> None:
        self._objects = _Groups()
        self._members = _Groups()
        self._names = _Groups()
        self._secrets = _Groups()

    def add(self, kind: Kind, obj: Obj) -> None:
        """Takes an object in."""
        self._apply(kind, obj, _Groups.add)

    def remove(self, kind: Kind, obj: Obj) -> None:
        """Takes an object out; `obj` as it was taken in."""
        self._apply(kind, obj, _Groups.discard)

    def _apply(self, kind: Kind, obj: Obj, change: Any) -> None:
        namespace, name = namespace_of(obj), name_of(obj)
        if kind == MODEL:
            pool, secret = shared_pool_of(obj), secret_of(obj)
            for word in _names(obj):
                change(self._names, (namespace, word), name)
            if pool is not None:
                change(self._members, pool, name)
            if secret is not None:
                change(self._secrets, (namespace, secret), (name, pool))
        elif kind != MODEL_POOL and (owner := pool_of(kind, obj)) is not None:
            change(self._objects, owner, (kind, name))

    def objects(self, pool: Key) -> list[tuple[Kind, str]]:
        """Kind and name of all that belongs to a pool, by kind and name."""
        return sorted(self._objects.of(pool), key=lambda one: (one[0].name, one[1]))

    def members(self, pool: Key) -> list[str]:
        """Names of the Models that name the ModelPool `pool`."""
        return sorted(self._members.of(pool))

    def claimants(self, namespace: str, word: str) -> list[str]:
        """Names of the Models that have `word` as name or alias."""
        return sorted(self._names.of((namespace, word)))

    def concerned(self, kind: Kind, obj: Obj) -> set[Key]:
        """Whose reconcile reads this object, whatever of it changed."""
        namespace, name = namespace_of(obj), name_of(obj)
        if kind == MODEL:
            return {Key(MODEL.name, namespace, name)}
        if kind == MODEL_POOL:
            return self.everyone(Key(MODEL_POOL.name, namespace, name))
        if kind == SECRET and usable(obj):
            references = self._secrets.of((namespace, name))
            pools = {pool for _, pool in references if pool is not None}
            return pools | {Key(MODEL.name, namespace, one) for one, _ in references}
        pool = pool_of(kind, obj)
        return self.everyone(pool) if pool is not None else set()

    def beside(self, model: Obj) -> set[Key]:
        """Whom a Model's own spec concerns besides itself: its pool, and those with one of its names."""
        namespace, pool = namespace_of(model), shared_pool_of(model)
        found = {Key(MODEL.name, namespace, one) for word in _names(model) for one in self.claimants(namespace, word)}
        return found | ({pool} if pool is not None else set())

    def everyone(self, pool: Key) -> set[Key]:
        """A pool, and the Models that a ModelPool serves."""
        members = {Key(MODEL.name, pool.namespace, one) for one in self.members(pool)}
        return {pool, *members} if pool.kind == MODEL_POOL.name else {pool}
