"""First step of a reconcile: gathers all that is known of one Model into one immutable value. No I/O.

Everything after this step is decided from `Observed` alone, which is what makes the decisions testable by table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from tandem_api.catalog import Catalog
from tandem_api.model import ModelSpec
from tandem_api.report import ModelReport, Report
from tandem_api.status import ModelStatus
from tandem_operator.cache import Cache, Entry, ModelKey
from tandem_operator.kinds import MODEL, Kind, Obj, uid_of


@dataclass(frozen=True)
class Seen:
    """The last report of a pod and when it came (seconds of the monotonic clock).

    `stale` when the pod could not be asked since; `error` says why.
    """

    report: Report | None = None
    at: float = 0.0
    stale: bool = False
    error: str = ""


@dataclass(frozen=True)
class PodView:
    """One pod of the pool with what it last said of itself."""

    obj: Obj
    seen: Seen = Seen()

    @property
    def uid(self) -> str:
        """The pod's UID."""
        return uid_of(self.obj)

    @property
    def name(self) -> str:
        """The pod's name."""
        return str(self.obj["metadata"]["name"])

    @property
    def terminating(self) -> bool:
        """Whether the pod has been told to end."""
        return "deletionTimestamp" in self.obj["metadata"]

    @property
    def ready(self) -> bool:
        """Whether Kubernetes sends it requests."""
        return not self.terminating and self.condition("Ready").get("status") == "True"

    def condition(self, kind: str) -> Obj:
        """A condition of the pod's status; empty when absent."""
        conditions: list[Obj] = self.obj.get("status", {}).get("conditions") or []
        return next((one for one in conditions if one.get("type") == kind), {})

    def model(self, name: str) -> ModelReport | None:
        """What the pod says of the model `name`."""
        return self.seen.report.model(name) if self.seen.report is not None else None


@dataclass(frozen=True)
class Observed:
    """All that is known of one Model. `spec` is None when it is invalid, and `invalid` says in which way."""

    key: ModelKey
    uid: str
    generation: int
    deleting: bool
    spec: ModelSpec | None
    invalid: str
    status: ModelStatus
    owned: tuple[tuple[Kind, Entry], ...] = ()
    pods: tuple[PodView, ...] = ()

    def owned_object(self, kind: Kind) -> Obj | None:
        """The owned object of a kind, or None."""
        return next((entry.obj for one, entry in self.owned if one == kind), None)


@dataclass(frozen=True)
class Desired:
    """One object that should exist."""

    kind: Kind
    obj: Obj


@dataclass(frozen=True)
class Plan:
    """What should exist for a Model. `catalog` is what the pods should have read."""

    objects: tuple[Desired, ...]
    catalog: Catalog


def _parse_spec(raw: object) -> tuple[ModelSpec | None, str]:
    try:
        return ModelSpec.model_validate(raw), ""
    except ValidationError as error:
        wrong: dict[str, list[str]] = {}
        for one in error.errors():
            # Of a union pydantic names each branch too, such as constrained-int; a person knows only the field.
            fields = [str(part) for part in one["loc"] if str(part).isalnum()]
            wrong.setdefault(".".join(["spec", *fields]), []).append(one["msg"])
        return None, "; ".join(f"{path}: {', or: '.join(messages)}" for path, messages in wrong.items()) + "."


def _parse_status(raw: object) -> ModelStatus:
    try:
        return ModelStatus.model_validate(raw or {})
    except ValidationError:
        return ModelStatus()  # written by another version: it is computed anew in full anyway


def observe(cache: Cache, seen: Mapping[str, Seen], key: ModelKey) -> Observed | None:
    """What is known of the Model `key`; `seen` holds reports by pod UID. None when the Model does not exist."""
    entry = cache.get(MODEL, key.namespace, key.name)
    if entry is None:
        return None
    metadata = entry.obj["metadata"]
    uid = str(metadata["uid"])
    spec, invalid = _parse_spec(entry.obj.get("spec") or {})
    return Observed(
        key=key,
        uid=uid,
        generation=int(metadata.get("generation", 0)),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
        invalid=invalid,
        status=_parse_status(entry.obj.get("status")),
        owned=tuple(cache.owned(key, uid)),
        pods=tuple(PodView(pod, seen.get(uid_of(pod), Seen())) for pod in cache.pods(key, uid)),
    )
