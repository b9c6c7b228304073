"""Third step of a reconcile: makes the cluster as planned, writing only where it differs.

An object is created by POST and changed by server-side apply. What bears our name but not our controller reference
is never touched: it is told as a conflict. What we own and no longer want is deleted, by UID.
"""

import logging
from dataclasses import dataclass, field
from typing import Protocol

from tandem_api.names import FIELD_MANAGER, TEMPLATE_HASH_ANNOTATION
from tandem_operator.api import ApiError
from tandem_operator.cache import Cache, Entry, entry_of
from tandem_operator.compare import difference
from tandem_operator.kinds import Key, Kind, Obj, controller_of, name_of, uid_of
from tandem_operator.metrics import WRITES
from tandem_operator.plan import Desired, Plan

log = logging.getLogger(__name__)

_REFUSALS = {400, 403, 404, 413, 422}
"""Answers that say a request is wrong or not allowed: a person has to do something, so the Model tells of it."""


class Writer(Protocol):
    """What `act` needs of the API client."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj: ...
    async def create(self, kind: Kind, obj: Obj) -> Obj: ...
    async def apply(self, kind: Kind, obj: Obj, manager: str = ..., subresource: str | None = None) -> Obj: ...
    async def patch(self, kind: Kind, namespace: str, name: str, body: object, content_type: str) -> Obj: ...
    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None: ...


@dataclass(frozen=True)
class Owner:
    """In whose name objects are written, and what it owns now."""

    key: Key
    uid: str
    generation: int
    owned: tuple[tuple[Kind, Entry], ...]


@dataclass
class Outcome:
    """What `act` did (of a changed object also where), a sentence for each conflict, what the API server refused."""

    created: list[tuple[Kind, str]] = field(default_factory=list)
    changed: list[tuple[Kind, str, str]] = field(default_factory=list)
    deleted: list[tuple[Kind, str]] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    refused: str = ""


class Actor:
    """Carries out plans. Remembers what it last applied to each object, by UID, so that it never repeats itself."""

    def __init__(self, api: Writer, cache: Cache) -> None:
        self._api = api
        self._cache = cache
        self._applied: dict[str, tuple[str, int]] = {}

    async def act(self, owner: Owner, plan: Plan) -> Outcome:
        """Creates, applies and prunes; raises ApiError when the API server cannot be reached or has it changed."""
        outcome = Outcome()
        try:
            await self._carry_out(owner, plan, outcome)
        except ApiError as error:
            if error.code not in _REFUSALS:
                raise
            outcome.refused = str(error)
        finally:
            _log(owner, outcome)
        return outcome

    async def _carry_out(self, owner: Owner, plan: Plan, outcome: Outcome) -> None:
        for desired in plan.objects:
            await self._ensure(owner, desired, outcome)
        for kind, entry in owner.owned:
            if (kind, name_of(entry.obj)) not in plan.names and "deletionTimestamp" not in entry.obj["metadata"]:
                await self._prune(owner.key, kind, entry.obj, outcome)

    async def _ensure(self, owner: Owner, desired: Desired, outcome: Outcome) -> None:
        kind, name, namespace = desired.kind, name_of(desired.obj), owner.key.namespace
        entry = self._cache.get(kind, namespace, name)
        if entry is None:
            try:
                created = await self._api.create(kind, desired.obj)
            except ApiError as error:
                if error.code != 409:
                    raise
                # Not stored: an object without our label is outside what we watch, and would never be forgotten.
                entry = entry_of(await self._namesake(kind, namespace, name, error))
            else:
                self._stored(kind, created)
                outcome.created.append((kind, name))
                WRITES.labels(kind=kind.name, action="create").inc()
                return
        conflict = _conflict(kind, entry.obj, owner)
        if conflict is not None:
            outcome.conflicts.append(conflict)
            return
        where = difference(desired.obj, entry.obj)
        if where is None or self._just_applied(desired, entry):
            return
        await self._apply(owner, desired, entry, where, outcome)

    async def _namesake(self, kind: Kind, namespace: str, name: str, taken: ApiError) -> Obj:
        """The object that has the name which `taken` complains of; raises `taken` when it is gone meanwhile."""
        try:
            return await self._api.get(kind, namespace, name)
        except ApiError as error:
            if error.code == 404:
                raise taken from error
            raise

    def _just_applied(self, desired: Desired, entry: Entry) -> bool:
        """Whether this very object is what the last apply left: applying again would change nothing, for ever."""
        return self._applied.get(uid_of(entry.obj)) == (_digest(desired.obj), entry.revision)

    async def _apply(self, owner: Owner, desired: Desired, entry: Entry, where: str, outcome: Outcome) -> None:
        kind, name, uid = desired.kind, name_of(desired.obj), uid_of(entry.obj)
        if entry.created_only:
            await self._take_over_creation(kind, owner.key.namespace, name)
        # With the UID in it the apply can neither create the object nor hit a namesake made meanwhile.
        obj = {**desired.obj, "metadata": {**desired.obj["metadata"], "uid": uid}}
        live = await self._api.apply(kind, obj)
        self._stored(kind, live)
        self._applied[uid] = (_digest(desired.obj), int(live["metadata"]["resourceVersion"]))
        outcome.changed.append((kind, name, where))
        WRITES.labels(kind=kind.name, action="apply").inc()
        extra = _extra(owner, "Changed")
        log.info("Changed %s %s of %s: %s was not as planned.", kind.name, name, owner.key, where, extra=extra)

    async def _take_over_creation(self, kind: Kind, namespace: str, name: str) -> None:
        """Makes the fields that our POST set count as applied.

        Otherwise an apply that leaves one of them out would not remove it: its creation would go on owning it.
        """
        live = await self._api.get(kind, namespace, name)
        managers: list[Obj] = live["metadata"].get("managedFields") or []
        if any(_ours(one, "Apply") for one in managers) or not any(_ours(one, "Update") for one in managers):
            return
        changed = [{**one, "operation": "Apply"} if _ours(one, "Update") else one for one in managers]
        body = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": changed},
        ]
        await self._api.patch(kind, namespace, name, body, "application/json-patch+json")
        WRITES.labels(kind=kind.name, action="take-over").inc()

    async def _prune(self, key: Key, kind: Kind, obj: Obj, outcome: Outcome) -> None:
        try:
            await self._api.delete(kind, key.namespace, name_of(obj), uid_of(obj))
        except ApiError as error:
            if error.code not in (404, 409):  # gone already, or a namesake has its place
                raise
            return
        outcome.deleted.append((kind, name_of(obj)))
        WRITES.labels(kind=kind.name, action="delete").inc()

    def _stored(self, kind: Kind, obj: Obj) -> None:
        """Stores our own write at once, so that the next reconcile does not wait for the watch to tell of it."""
        self._cache.put(kind, obj)

    def forget(self, uids: set[str]) -> None:
        """Drops what is remembered of objects other than those with the UIDs that still exist."""
        self._applied = {uid: one for uid, one in self._applied.items() if uid in uids}


def _log(owner: Owner, outcome: Outcome) -> None:
    for reason, objects in (("Created", outcome.created), ("Deleted", outcome.deleted)):
        if objects:
            told = ", ".join(f"{kind.name} {name}" for kind, name in objects)
            what = reason if reason == "Created" else "Deleted what is no longer wanted:"
            log.info("%s %s of %s.", what, told, owner.key, extra=_extra(owner, reason))


def _extra(owner: Owner, reason: str) -> dict[str, object]:
    return {"object": str(owner.key), "generation": owner.generation, "reason": reason}


def _digest(obj: Obj) -> str:
    return str(obj["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION])


def _ours(manager: Obj, operation: str) -> bool:
    return (
        manager.get("manager") == FIELD_MANAGER
        and manager.get("operation") == operation
        and not manager.get("subresource")
    )


def _conflict(kind: Kind, live: Obj, owner: Owner) -> str | None:
    controller = controller_of(live)
    if controller is not None and controller.get("uid") == owner.uid:
        return None
    name = f"{kind.name} {name_of(live)}"
    if controller is None:
        return f"the {name} exists and nobody's controller reference is on it"
    if (controller.get("kind"), controller.get("name")) == (owner.key.kind, owner.key.name):
        return f"the {name} of an earlier {owner.key.kind} of this name is still being removed"
    return f"the {name} exists and belongs to the {controller.get('kind')} {controller.get('name')}"
