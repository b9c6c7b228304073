"""The operator's own store of what is in the cluster, fed by watch events and by relists.

Between the watch and the queue: every change is stored here, and the Model that it concerns is nudged. Reconciles
read only from here. Watch events and relists arrive in any order, so resourceVersions decide which of two is newer
(the API server compares them as integers), and what was deleted is remembered for a while.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tandem_api.names import FIELD_MANAGER, GROUP, POOL_KIND_LABEL, POOL_LABEL, POOL_UID_LABEL
from tandem_operator.kinds import MODEL, OWNED, POD, WATCHED, Kind, Obj, controller_of, name_of, namespace_of, uid_of

TOMBSTONE_SECONDS = 600.0


class ModelKey(NamedTuple):
    """Names one Model; the key of the work queue."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Entry:
    """One stored object, without its `managedFields`.

    `created_only` tells that our fields still belong to the POST that created it and not yet to an apply.
    """

    obj: Obj
    revision: int
    created_only: bool


def entry_of(obj: Obj) -> Entry:
    """Trims an object as the API server sent it."""
    metadata = dict(obj["metadata"])
    managers: list[Obj] = metadata.pop("managedFields", None) or []
    ours = {
        one.get("operation") for one in managers if one.get("manager") == FIELD_MANAGER and not one.get("subresource")
    }
    return Entry({**obj, "metadata": metadata}, int(metadata.get("resourceVersion") or 0), ours == {"Update"})


def model_of(kind: Kind, obj: Obj) -> ModelKey | None:
    """The Model that an object concerns: itself, its controller, or (for a pod) the one its labels name."""
    if kind == MODEL:
        return ModelKey(namespace_of(obj), name_of(obj))
    if kind == POD:
        labels = obj["metadata"].get("labels") or {}
        if labels.get(POOL_KIND_LABEL) != MODEL.name or POOL_LABEL not in labels:
            return None
        return ModelKey(namespace_of(obj), labels[POOL_LABEL])
    owner = controller_of(obj)
    if owner is None or owner.get("kind") != MODEL.name or not str(owner.get("apiVersion", "")).startswith(f"{GROUP}/"):
        return None
    return ModelKey(namespace_of(obj), str(owner["name"]))


class Cache:
    """Stores objects by kind, namespace and name; calls `nudge` with the Model that each real change concerns."""

    def __init__(self, nudge: Callable[[ModelKey], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._nudge = nudge
        self._clock = clock
        self._entries: dict[Kind, dict[tuple[str, str], Entry]] = {kind: {} for kind in WATCHED}
        self._by_model: dict[ModelKey, set[tuple[Kind, str]]] = {}
        self._tombstones: dict[str, tuple[int, float]] = {}

    def put(self, kind: Kind, obj: Obj) -> bool:
        """Stores an object unless something as new is known; True when it changed what is known."""
        entry = entry_of(obj)
        place = (namespace_of(obj), name_of(obj))
        known = self._entries[kind].get(place)
        if known is not None and known.revision >= entry.revision:
            return False
        if entry.revision <= self._tombstones.get(uid_of(obj), (-1, 0.0))[0]:
            return False
        if known is not None:
            self._unindex(kind, known.obj)
        self._entries[kind][place] = entry
        key = model_of(kind, obj)
        if key is not None:
            self._by_model.setdefault(key, set()).add((kind, place[1]))
            self._nudge(key)
        return True

    def drop(self, kind: Kind, obj: Obj) -> bool:
        """Forgets an object that was deleted (or no longer matches the watch); True when it was known."""
        revision = int(obj["metadata"].get("resourceVersion") or 0)
        self._tombstones[uid_of(obj)] = (revision, self._clock() + TOMBSTONE_SECONDS)
        place = (namespace_of(obj), name_of(obj))
        known = self._entries[kind].get(place)
        # A namesake that was created since has another UID and stays.
        if known is None or known.revision > revision or uid_of(known.obj) != uid_of(obj):
            return False
        del self._entries[kind][place]
        self._unindex(kind, known.obj)
        key = model_of(kind, known.obj)
        if key is not None:
            self._nudge(key)
        return True

    def replace(self, kind: Kind, objs: Iterable[Obj], revision: int) -> int:
        """Brings a kind to what a list of `revision` said; returns how many objects were not as it said."""
        repaired = 0
        listed: set[tuple[str, str]] = set()
        for obj in objs:
            listed.add((namespace_of(obj), name_of(obj)))
            repaired += self.put(kind, {"apiVersion": kind.api_version, "kind": kind.name, **obj})
        for place, entry in list(self._entries[kind].items()):
            if place not in listed and entry.revision <= revision:
                repaired += self.drop(kind, entry.obj)
        now = self._clock()
        self._tombstones = {uid: one for uid, one in self._tombstones.items() if one[1] > now}
        return repaired

    def _unindex(self, kind: Kind, obj: Obj) -> None:
        key = model_of(kind, obj)
        if key is None:
            return
        members = self._by_model.get(key, set())
        members.discard((kind, name_of(obj)))
        if not members:
            self._by_model.pop(key, None)

    def get(self, kind: Kind, namespace: str, name: str) -> Entry | None:
        """One stored object, or None."""
        return self._entries[kind].get((namespace, name))

    def models(self) -> list[ModelKey]:
        """The keys of all Models that exist."""
        return [ModelKey(*place) for place in self._entries[MODEL]]

    def owned(self, key: ModelKey, uid: str) -> list[tuple[Kind, Entry]]:
        """The objects whose controller is the Model `key` with this UID, by kind and name."""
        found = []
        for kind, name in sorted(self._by_model.get(key, ()), key=lambda one: (one[0].name, one[1])):
            entry = self._entries[kind].get((key.namespace, name))
            if entry is None or kind not in OWNED:
                continue
            owner = controller_of(entry.obj)
            if owner is not None and owner.get("uid") == uid:
                found.append((kind, entry))
        return found

    def pods(self, key: ModelKey, uid: str) -> list[Obj]:
        """The pods of the pool with this UID, by name."""
        names = sorted(name for kind, name in self._by_model.get(key, ()) if kind == POD)
        entries = [self._entries[POD].get((key.namespace, name)) for name in names]
        return [
            entry.obj
            for entry in entries
            if entry is not None and entry.obj["metadata"]["labels"].get(POOL_UID_LABEL) == uid
        ]

    def all_pods(self) -> list[Obj]:
        """Every pod of every pool."""
        return [entry.obj for entry in self._entries[POD].values()]

    def uids(self) -> set[str]:
        """The UIDs of all objects that exist."""
        return {uid_of(entry.obj) for entries in self._entries.values() for entry in entries.values()}
