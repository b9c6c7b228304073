"""First step of a reconcile: gathers all that is known of a Model or of a pool into one immutable value. No I/O.

Everything after this step is decided from these values alone, which is what makes the decisions testable by table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from tandem_api.base import Contract
from tandem_api.catalog import Catalog
from tandem_api.model import ModelSpec
from tandem_api.names import CATALOG_FILE, owned_name
from tandem_api.pool import ModelPoolSpec
from tandem_api.report import ModelReport, Report
from tandem_api.status import ModelPoolStatus, ModelStatus
from tandem_operator.cache import Cache, Entry
from tandem_operator.index import usable
from tandem_operator.kinds import CONFIG_MAP, MODEL, MODEL_POOL, SECRET, Key, Kind, Obj, name_of, namespace_of, uid_of
from tandem_operator.pool_of_one import pool_of_one

C = TypeVar("C", bound=Contract)


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
        return name_of(self.obj)

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
class Member:
    """One Model. `spec` is None when it is invalid, and `invalid` says in which way."""

    key: Key
    uid: str
    generation: int
    created: str
    deleting: bool
    spec: ModelSpec | None
    invalid: str
    status: ModelStatus


@dataclass(frozen=True)
class Pool:
    """One pool: a ModelPool with the Models that name it, or a Model with pods of its own.

    `owned` and `pods` are of this very pool (by UID). `secrets` holds the Secrets that its Models may name, by name.
    """

    key: Key
    uid: str
    generation: int
    deleting: bool
    spec: ModelPoolSpec | None
    invalid: str
    status: ModelPoolStatus
    members: tuple[Member, ...] = ()
    secrets: Mapping[str, Obj] = field(default_factory=dict)
    owned: tuple[tuple[Kind, Entry], ...] = ()
    pods: tuple[PodView, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether it is a ModelPool."""
        return self.key.kind == MODEL_POOL.name

    @property
    def name(self) -> str:
        """The name of its objects."""
        return owned_name(self.key.kind, self.key.name)

    @property
    def wanted(self) -> int:
        """How many pods there should be."""
        return 1 if self.spec is None or self.spec.replicas is None else self.spec.replicas

    def owned_object(self, kind: Kind) -> Obj | None:
        """The owned object of a kind that bears the pool's name, or None."""
        return next((entry.obj for one, entry in self.owned if one == kind and name_of(entry.obj) == self.name), None)

    @property
    def catalog(self) -> Catalog | None:
        """The catalog as it stands in the cluster; None when there is none, or none that can be read."""
        obj = self.owned_object(CONFIG_MAP)
        text = (obj.get("data") or {}).get(CATALOG_FILE) if obj is not None else None
        try:
            return Catalog.read(text) if isinstance(text, str) else None
        except ValidationError:
            return None


@dataclass(frozen=True)
class Observed:
    """All that is known of one Model. `pool` is None when it names a ModelPool that does not exist."""

    member: Member
    pool: Pool | None
    own: tuple[tuple[Kind, Entry], ...] = ()
    """What it owns itself: its pool of one, or what is left of it after it joined a ModelPool."""
    pools: tuple[str, ...] = ()
    """Names of the ModelPools in its namespace."""
    namesakes: tuple[Member, ...] = ()
    """Other Models of its namespace with which it has a name or an alias in common."""

    @property
    def key(self) -> Key:
        """The Model."""
        return self.member.key

    @property
    def pods(self) -> tuple[PodView, ...]:
        """The pods that serve it, maybe others too."""
        return self.pool.pods if self.pool is not None else ()


def parsed(contract: type[C], raw: object) -> tuple[C | None, str]:
    """A spec, or None and what is wrong with it in terms of its fields."""
    try:
        return contract.model_validate(raw), ""
    except ValidationError as error:
        wrong: dict[str, list[str]] = {}
        for one in error.errors():
            # Of a union pydantic names each branch too, such as constrained-int; a person knows only the field.
            fields = [str(part) for part in one["loc"] if str(part).isalnum()]
            wrong.setdefault(".".join(["spec", *fields]), []).append(one["msg"])
        return None, "; ".join(f"{path}: {', or: '.join(messages)}" for path, messages in wrong.items()) + "."


def _status(contract: type[C], raw: object) -> C:
    try:
        return contract.model_validate(raw or {})
    except ValidationError:
        return contract()  # written by another version: it is computed anew in full anyway


def _member(obj: Obj) -> Member:
    metadata = obj["metadata"]
    spec, invalid = parsed(ModelSpec, obj.get("spec") or {})
    return Member(
        key=Key(MODEL.name, namespace_of(obj), name_of(obj)),
        uid=uid_of(obj),
        generation=int(metadata.get("generation", 0)),
        created=str(metadata.get("creationTimestamp", "")),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
        invalid=invalid,
        status=_status(ModelStatus, obj.get("status")),
    )


def _pods(cache: Cache, seen: Mapping[str, Seen], key: Key, uid: str) -> tuple[PodView, ...]:
    return tuple(PodView(pod, seen.get(uid_of(pod), Seen())) for pod in cache.pods(key, uid))


def _secrets(cache: Cache, members: tuple[Member, ...]) -> dict[str, Obj]:
    found = {}
    for member in members:
        reference = member.spec.secret_ref if member.spec is not None else None
        entry = cache.get(SECRET, member.key.namespace, reference.name) if reference is not None else None
        if entry is not None and usable(entry.obj):
            found[name_of(entry.obj)] = entry.obj
    return found


def observe_pool(cache: Cache, seen: Mapping[str, Seen], key: Key, only: Member | None = None) -> Pool | None:
    """What is known of the ModelPool `key`; `seen` holds reports by pod UID. None when it does not exist.

    With `only`, as that Model sees it: the other members are left out, for there may be hundreds.
    """
    entry = cache.get(MODEL_POOL, key.namespace, key.name)
    if entry is None:
        return None
    metadata, uid = entry.obj["metadata"], uid_of(entry.obj)
    spec, invalid = parsed(ModelPoolSpec, entry.obj.get("spec") or {})
    members = (only,) if only is not None else tuple(_member(one.obj) for one in cache.members(key))
    return Pool(
        key=key,
        uid=uid,
        generation=int(metadata.get("generation", 0)),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
        invalid=invalid,
        status=_status(ModelPoolStatus, entry.obj.get("status")),
        members=tuple(member for member in members if not member.deleting),
        secrets=_secrets(cache, members),
        owned=tuple(cache.owned(key, uid)),
        pods=_pods(cache, seen, key, uid),
    )


def _pool_of(cache: Cache, seen: Mapping[str, Seen], member: Member) -> Pool | None:
    if member.spec is not None and member.spec.pool is not None:
        return observe_pool(cache, seen, Key(MODEL_POOL.name, member.key.namespace, member.spec.pool), member)
    return Pool(
        key=member.key,
        uid=member.uid,
        generation=member.generation,
        deleting=member.deleting,
        spec=pool_of_one(member.spec) if member.spec is not None else None,
        invalid=member.invalid,
        status=ModelPoolStatus(),
        members=(member,),
        secrets=_secrets(cache, (member,)),
        owned=tuple(cache.owned(member.key, member.uid)),
        pods=_pods(cache, seen, member.key, member.uid),
    )


def observe(cache: Cache, seen: Mapping[str, Seen], key: Key) -> Observed | None:
    """What is known of the Model `key`; `seen` holds reports by pod UID. None when the Model does not exist."""
    entry = cache.get(MODEL, key.namespace, key.name)
    if entry is None:
        return None
    member = _member(entry.obj)
    words = [key.name, *(member.spec.aliases if member.spec is not None else ())]
    rivals = {name_of(one.obj): one.obj for word in words for one in cache.claimants(key.namespace, word)}
    rivals.pop(key.name, None)
    return Observed(
        member=member,
        pool=_pool_of(cache, seen, member),
        own=tuple(cache.owned(key, member.uid)),
        pools=tuple(cache.names(MODEL_POOL, key.namespace)),
        namesakes=tuple(_member(obj) for _, obj in sorted(rivals.items())),
    )
