"""The operator's own store of what is in the cluster, fed by watch events and by relists.

Between the watch and the queue: every change is stored here, and whomever it concerns is nudged. Reconciles
read only from here. Watch events and relists arrive in any order, so resourceVersions decide which of two is newer
(the API server compares them as integers), and what was deleted is remembered for a while.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tandem_api.names import FIELD_MANAGER, POOL_UID_LABEL
from tandem_operator.index import Index
from tandem_operator.kinds import (
    CUSTOM,
    MODEL,
    OWNED,
    POD,
    WATCHED,
    Key,
    Kind,
    Obj,
    controller_of,
    name_of,
    namespace_of,
    uid_of,
)

TOMBSTONE_SECONDS = 600.0


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


def _identity(model: Obj) -> tuple[object, ...]:
    """What changes when a Model means something else to others; its status does not."""
    metadata = model["metadata"]
    return metadata.get("uid"), metadata.get("generation"), "deletionTimestamp" in metadata


class Cache:
    """Stores objects by kind, namespace and name; calls `nudge` with each key that a real change concerns."""

    def __init__(self, nudge: Callable[[Key], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._nudge = nudge
        self._clock = clock
        self._entries: dict[Kind, dict[tuple[str, str], Entry]] = {kind: {} for kind in WATCHED}
        self._index = Index()
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
        before = known.obj if known is not None else None
        if before is not None:
            self._index.remove(kind, before)
        self._entries[kind][place] = entry
        self._index.add(kind, entry.obj)
        self._tell(kind, before, entry.obj)
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
        self._index.remove(kind, known.obj)
        self._tell(kind, known.obj, None)
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

    def _tell(self, kind: Kind, before: Obj | None, after: Obj | None) -> None:
        both = [obj for obj in (before, after) if obj is not None]
        keys = {key for obj in both for key in self._index.concerned(kind, obj)}
        if kind == MODEL and (before is None or after is None or _identity(before) != _identity(after)):
            keys |= {key for obj in both for key in self._index.beside(obj)}
        for key in keys:
            self._nudge(key)

    def get(self, kind: Kind, namespace: str, name: str) -> Entry | None:
        """One stored object, or None."""
        return self._entries[kind].get((namespace, name))

    def keys(self) -> list[Key]:
        """The keys of all Models and ModelPools that exist."""
        return [Key(kind.name, *place) for kind in CUSTOM for place in self._entries[kind]]

    def names(self, kind: Kind, namespace: str) -> list[str]:
        """Names of all objects of a kind in a namespace."""
        return sorted(name for place, name in self._entries[kind] if place == namespace)

    def everyone(self, pool: Key) -> set[Key]:
        """A pool, and the Models that a ModelPool serves."""
        return self._index.everyone(pool)

    def members(self, pool: Key) -> list[Entry]:
        """The Models that name the ModelPool `pool`, by name."""
        return self._models(pool.namespace, self._index.members(pool))

    def claimants(self, namespace: str, word: str) -> list[Entry]:
        """The Models of a namespace that have `word` as name or alias, by name."""
        return self._models(namespace, self._index.claimants(namespace, word))

    def _models(self, namespace: str, names: Iterable[str]) -> list[Entry]:
        return [entry for name in names if (entry := self.get(MODEL, namespace, name)) is not None]

    def owned(self, key: Key, uid: str) -> list[tuple[Kind, Entry]]:
        """The objects whose controller is the pool `key` with this UID, by kind and name."""
        found = []
        for kind, name in self._index.objects(key):
            entry = self.get(kind, key.namespace, name)
            owner = controller_of(entry.obj) if entry is not None and kind in OWNED else None
            if entry is not None and owner is not None and owner.get("uid") == uid:
                found.append((kind, entry))
        return found

    def pods(self, key: Key, uid: str) -> list[Obj]:
        """The pods of the pool with this UID, by name."""
        names = [name for kind, name in self._index.objects(key) if kind == POD]
        objs = [entry.obj for name in names if (entry := self.get(POD, key.namespace, name)) is not None]
        return [obj for obj in objs if obj["metadata"]["labels"].get(POOL_UID_LABEL) == uid]

    def all_pods(self) -> list[Obj]:
        """Every pod of every pool."""
        return [entry.obj for entry in self._entries[POD].values()]

    def uids(self) -> set[str]:
        """The UIDs of all objects that exist."""
        return {uid_of(entry.obj) for entries in self._entries.values() for entry in entries.values()}
