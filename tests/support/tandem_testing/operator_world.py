"""What the operator's tests share: Models, pods and reports as values, and an API server that lives in memory."""

import base64
import copy
import itertools
from typing import Any

from tandem_api.names import CREDENTIALS_LABEL
from tandem_api.report import ModelReport, ModelState, Progress, Report
from tandem_api.status import Artifact
from tandem_operator.api import ApiError
from tandem_operator.cache import Cache
from tandem_operator.config import Config, ServerConfig
from tandem_operator.kinds import MODEL, MODEL_POOL, POD, Key, Kind, Obj, uid_of
from tandem_operator.observe import Observed, Pool, Seen, observe, observe_pool
from tandem_operator.plan import Plan, plan

MASTER = b"a-master-secret-for-tests"
SERVER = ServerConfig(image="tandem.dev/server:test")
CONFIG = Config(server=SERVER, install_namespace="tandem-system")
KEY = Key("Model", "demo", "coder")
POOL_KEY = Key("ModelPool", "demo", "shared")
POOL_UID = "22222222-0000-0000-0000-000000000002"
UID = "11111111-0000-0000-0000-000000000001"


def model(name: str = KEY.name, uid: str = UID, generation: int = 1, **spec: Any) -> Obj:
    """A Model as the API server holds it."""
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "Model",
        "metadata": {
            "name": name,
            "namespace": KEY.namespace,
            "uid": uid,
            "generation": generation,
            "resourceVersion": "10",
        },
        "spec": {"source": "pvc://demo-models/coder", "device": "CPU", **spec},
    }


def model_pool(name: str = POOL_KEY.name, uid: str = POOL_UID, generation: int = 1, **spec: Any) -> Obj:
    """A ModelPool as the API server holds it."""
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "ModelPool",
        "metadata": {
            "name": name,
            "namespace": KEY.namespace,
            "uid": uid,
            "generation": generation,
            "resourceVersion": "10",
        },
        "spec": {"device": "CPU", "volumes": [{"claim": "demo-models"}], **spec},
    }


def pooled(name: str = KEY.name, uid: str = UID, generation: int = 1, **spec: Any) -> Obj:
    """A Model of the pool that `model_pool` gives."""
    made = model(name, uid, generation, pool=POOL_KEY.name, **spec)
    del made["spec"]["device"]
    return made


def pod(
    name: str = "pod-a", uid: str = "", revision: int = 20, pool_uid: str = UID, pool: Key = KEY, **status: Any
) -> Obj:
    """A pod of the Model's pool; `status` as Kubernetes has it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": KEY.namespace,
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(revision),
            "labels": {
                "app.kubernetes.io/managed-by": "tandem",
                "tandem.dev/pool": pool.name,
                "tandem.dev/pool-kind": pool.kind,
                "tandem.dev/pool-uid": pool_uid,
            },
        },
        "spec": {"nodeName": "node-1"},
        "status": status,
    }


def running(
    name: str = "pod-a",
    ready: bool = True,
    address: str = "127.0.0.1",
    pool: Key = KEY,
    **more: Any,
) -> Obj:
    """A pod whose container runs."""
    state = {"name": "server", "ready": ready, "restartCount": 0, "state": {"running": {"startedAt": _time(0)}}}
    return pod(
        name,
        pool=pool,
        pool_uid=UID if pool == KEY else POOL_UID,
        phase="Running",
        podIP=address,
        conditions=[
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": _time(7)},
        ],
        containerStatuses=[{**state, **more}],
    )


def _time(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}Z"


ARTIFACT = Artifact(architecture="LlamaForCausalLM", parameters=3_000_000, weight_bytes=6_000_000, context_limit=4096)


def loaded(**more: Any) -> ModelReport:
    """What a pod says of a model that it holds."""
    fields: dict[str, Any] = {
        "name": KEY.name,
        "state": ModelState.LOADED,
        "size_bytes": 12_345_678,
        "processor": "100% CPU",
        "context_asked": 2048,
        "context_given": 2048,
        "slots": 4,
        "artifact": ARTIFACT,
    }
    return ModelReport(**{**fields, **more})


def loading(**progress: Any) -> ModelReport:
    """What a pod says of a model that it loads."""
    return ModelReport(name=KEY.name, state=ModelState.LOADING, progress=Progress(**progress) if progress else None)


def failed(error: str, **more: Any) -> ModelReport:
    """What a pod says of a model that it could not load."""
    return ModelReport(name=KEY.name, state=ModelState.FAILED, last_error=error, **more)


def report(entry: ModelReport | None = None, revision: str = "rev", **more: Any) -> Report:
    """A pod's report."""
    return Report(pod="pod-a", version="0", catalog_revision=revision, models=[entry] if entry else [], **more)


def seen(entry: ModelReport | None = None, at: float = 0.0, stale: bool = False, error: str = "", **more: Any) -> Seen:
    """A report as the operator keeps it."""
    return Seen(report(entry, **more), at, stale, error)


def world(*objects: tuple[Kind, Obj], reports: dict[str, Seen] | None = None, status: Obj | None = None) -> Observed:
    """The Model with this status, and what else there is, as `observe` gives it."""
    found = [one for kind, one in objects if kind == MODEL] or [model()]
    others = [(kind, obj) for kind, obj in objects if kind != MODEL]
    cache = cache_with((MODEL, {**found[0], "status": status or {}}), *others)
    observed = observe(cache, reports or {}, KEY)
    assert observed is not None
    return observed


def secret(name: str, label: str | None = "true", namespace: str = KEY.namespace, **data: str) -> Obj:
    """A Secret that a person made; `label` is the value of the label that makes it a Model's credentials."""
    labels = {} if label is None else {CREDENTIALS_LABEL: label}
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": "5", "labels": labels}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}


def cache_with(*objects: tuple[Kind, Obj]) -> Cache:
    """A cache that holds these objects and nudges nobody."""
    cache = Cache(lambda _: None)
    for kind, obj in objects:
        cache.put(kind, obj)
    return cache


def world_of_pool(*objects: tuple[Kind, Obj], reports: dict[str, Seen] | None = None, **spec: Any) -> Pool:
    """The ModelPool with this spec, and what else there is, as `observe_pool` gives it."""
    cache = cache_with((MODEL_POOL, model_pool(**spec)), *objects)
    pool = observe_pool(cache, reports or {}, POOL_KEY)
    assert pool is not None
    return pool


def plan_of(obj: Obj) -> Plan:
    """What is planned for a Model with pods of its own."""
    pool = world((MODEL, obj)).pool
    assert pool is not None
    return plan(pool, {}, CONFIG, MASTER)


def pods_with(*pairs: tuple[Obj, Seen | None], status: Obj | None = None, **spec: Any) -> Observed:
    """The Model with these pods and their reports."""
    reports = {uid_of(one): told for one, told in pairs if told is not None}
    return world((MODEL, model(**spec)), *((POD, one) for one, _ in pairs), reports=reports, status=status)


class FakeApi:
    """An API server in memory, as far as `act` and `relist` need one. `writes` counts what changed something."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, str, str], Obj] = {}
        self.writes: list[tuple[str, str, str]] = []
        self.refuse: ApiError | None = None
        self._numbers = itertools.count(100)

    def _guard(self, verb: str, kind: Kind, name: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.writes.append((verb, kind.name, name))

    def put(self, kind: Kind, obj: Obj) -> Obj:
        """Stores an object as somebody else would."""
        live = copy.deepcopy(obj)
        number = next(self._numbers)
        live["metadata"].setdefault("uid", f"uid-{number}")
        live["metadata"]["resourceVersion"] = str(number)
        self.objects[kind, live["metadata"]["namespace"], live["metadata"]["name"]] = live
        return copy.deepcopy(live)

    async def list(self, kind: Kind) -> tuple[list[Obj], str]:
        """Every object of the kind."""
        found = [copy.deepcopy(obj) for (one, _, _), obj in self.objects.items() if one == kind]
        return found, str(next(self._numbers))

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj:
        """One object."""
        if (kind, namespace, name) not in self.objects:
            raise ApiError(404, "NotFound", f"{name} not found")
        return copy.deepcopy(self.objects[kind, namespace, name])

    async def create(self, kind: Kind, obj: Obj) -> Obj:
        """POST."""
        place = (kind, obj["metadata"]["namespace"], obj["metadata"]["name"])
        if place in self.objects:
            raise ApiError(409, "AlreadyExists", f"{place[2]} already exists")
        self._guard("create", kind, place[2])
        live = copy.deepcopy(obj)
        live["metadata"]["managedFields"] = [{"manager": "tandem-operator", "operation": "Update"}]
        return self.put(kind, live)

    async def apply(self, kind: Kind, obj: Obj, manager: str = "", subresource: str | None = None) -> Obj:
        """Server-side apply of an object that has a UID."""
        live = await self.get(kind, obj["metadata"]["namespace"], obj["metadata"]["name"])
        if live["metadata"]["uid"] != obj["metadata"].get("uid"):
            raise ApiError(409, "Conflict", "uid mismatch")
        self._guard(f"apply-{subresource}" if subresource else "apply", kind, obj["metadata"]["name"])
        if subresource is not None:
            return self.put(kind, {**live, "status": obj["status"]})
        merged = {**live, **copy.deepcopy(obj)}
        merged["metadata"]["managedFields"] = [{"manager": "tandem-operator", "operation": "Apply"}]
        return self.put(kind, merged)

    async def patch(self, kind: Kind, namespace: str, name: str, body: Any, content_type: str) -> Obj:
        """A JSON patch of metadata, or a merge patch of annotations."""
        live = await self.get(kind, namespace, name)
        self._guard("patch", kind, name)
        if content_type == "application/json-patch+json":
            live["metadata"]["managedFields"] = body[1]["value"]
        else:
            annotations = live["metadata"].setdefault("annotations", {})
            annotations.update(body["metadata"]["annotations"])
        return self.put(kind, live)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """DELETE with a UID as precondition."""
        live = await self.get(kind, namespace, name)
        if live["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", "uid mismatch")
        self._guard("delete", kind, name)
        del self.objects[kind, namespace, name]
