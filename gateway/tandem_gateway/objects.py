"""What routing needs of a Model and of a Pod, taken from the API server's objects.

Between the informer, which holds these views, and the routing table, which is built from them. Read leniently: a
field that is missing or of another type counts as absent, so that one odd object never stops a watch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tandem_api.names import POOL_KIND_LABEL, POOL_LABEL, POOL_UID_LABEL
from tandem_api.status import Artifact

DEFAULT_SLOTS = 4
"""Slots of a pod that has told nothing yet, for a Model that says Auto."""

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReadyCondition:
    """The Ready condition of a Model's status."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """One Model as routing and the listings see it."""

    namespace: str
    name: str
    uid: str
    aliases: tuple[str, ...] = ()
    created: str = ""
    """RFC 3339, as the API server writes it: sorts by time."""
    slots: int = DEFAULT_SLOTS
    ready: ReadyCondition | None = None
    context: int | None = None
    artifact: Artifact | None = None
    shared_pool: str = ""
    """Name of the ModelPool whose pods serve it; empty: it has pods of its own."""
    copies_max: int | None = None
    """In how many pods of the pool it may be loaded; None: in all."""

    @property
    def pool(self) -> str:
        """Says whose pods serve it; equal to `PodView.pool` of those."""
        return f"ModelPool/{self.shared_pool}" if self.shared_pool else f"Model/{self.uid}"


@dataclass(frozen=True, slots=True)
class PodView:
    """One serving pod as routing sees it."""

    namespace: str
    name: str
    uid: str
    pool_uid: str
    ip: str
    """Empty until the pod has an address."""
    ready: bool = False
    terminating: bool = False
    running: bool = True
    """Its containers may still answer: the phase is Running."""
    was_ready: bool = False
    """This gateway has seen it ready."""
    shared_pool: str = ""
    """Name of the ModelPool that it belongs to; empty: it is a Model's own."""

    @property
    def pool(self) -> str:
        """Says whose it is. A Model's by UID, lest one made anew be served by pods of its namesake."""
        return f"ModelPool/{self.shared_pool}" if self.shared_pool else f"Model/{self.pool_uid}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def model_view(item: JsonObject) -> ModelView | None:
    """The view of a Model; None for an object without name or UID."""
    metadata, spec, status = _mapping(item, "metadata"), _mapping(item, "spec"), _mapping(item, "status")
    name, uid = _text(metadata, "name"), _text(metadata, "uid")
    if not name or not uid:
        return None
    aliases = spec.get("aliases")
    slots, context, copies = spec.get("slots"), status.get("context"), _mapping(spec, "copies").get("max")
    return ModelView(
        namespace=_text(metadata, "namespace"),
        name=name,
        uid=uid,
        aliases=tuple(alias for alias in aliases if isinstance(alias, str)) if isinstance(aliases, list) else (),
        created=_text(metadata, "creationTimestamp"),
        slots=slots if isinstance(slots, int) and slots > 0 else DEFAULT_SLOTS,
        ready=_ready_condition(status),
        context=context if isinstance(context, int) else None,
        artifact=_artifact(status.get("artifact")),
        shared_pool=_text(spec, "pool"),
        copies_max=copies if isinstance(copies, int) and copies > 0 else None,
    )


def pod_view(item: JsonObject) -> PodView | None:
    """The view of a serving pod; None for a pod that belongs to no pool."""
    metadata, status = _mapping(item, "metadata"), _mapping(item, "status")
    labels = _mapping(metadata, "labels")
    pool_uid = _text(labels, POOL_UID_LABEL)
    name, uid = _text(metadata, "name"), _text(metadata, "uid")
    if not pool_uid or not name or not uid:
        return None
    ready = _ready_condition(status)
    is_ready = ready is not None and ready.status == "True"
    return PodView(
        namespace=_text(metadata, "namespace"),
        name=name,
        uid=uid,
        pool_uid=pool_uid,
        ip=_text(status, "podIP"),
        ready=is_ready,
        terminating="deletionTimestamp" in metadata,
        running=_text(status, "phase") == "Running",
        was_ready=is_ready,
        shared_pool=_text(labels, POOL_LABEL) if _text(labels, POOL_KIND_LABEL) == "ModelPool" else "",
    )


def _ready_condition(status: JsonObject) -> ReadyCondition | None:
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, Mapping) and condition.get("type") == "Ready":
            return ReadyCondition(_text(condition, "status"), _text(condition, "reason"), _text(condition, "message"))
    return None


def _artifact(value: object) -> Artifact | None:
    if not isinstance(value, Mapping):
        return None
    try:
        return Artifact.model_validate(value)
    except ValidationError:
        return None


def _mapping(item: JsonObject, key: str) -> JsonObject:
    value = item.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(item: JsonObject, key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else ""
