"""Whole reconciles against an API server in memory: what is written, how often, and what is said."""

import time
from dataclasses import replace

import pytest

from tandem_api.report import ModelReport, ModelState
from tandem_operator.api import ApiError
from tandem_operator.app import worker
from tandem_operator.cache import Cache
from tandem_operator.kinds import EVENT, MODEL, MODEL_POOL, OWNED, POD, SERVICE, Kind, Obj
from tandem_operator.queue import Schedule, WorkQueue
from tandem_operator.reconcile import Again, Reconciler
from tandem_operator.reports import Reports, Target
from tandem_testing.operator_world import (
    CONFIG,
    KEY,
    MASTER,
    POOL_KEY,
    POOL_UID,
    UID,
    FakeApi,
    failed,
    loaded,
    model,
    model_pool,
    pooled,
    report,
    running,
)

TARGET = Target("uid-pod-a", UID, KEY, "127.0.0.1", True)


class Bench:
    """One operator's reconciler, its clock, and an API server that outlives it."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.now = 1000.0
        self.start()

    def start(self) -> None:
        self.cache = Cache(lambda _: None)
        for (kind, _, _), obj in self.api.objects.items():
            if kind != EVENT:
                self.cache.put(kind, obj)
        self.reports = Reports(self.cache.all_pods, lambda _: None, lambda pool: [pool], MASTER, 8081, lambda: self.now)
        self.reconciler = Reconciler(self.api, self.cache, self.reports, CONFIG, MASTER, lambda: self.now)

    def put(self, kind: object, obj: Obj) -> None:
        self.cache.put(kind, self.api.put(kind, obj))  # type: ignore[arg-type]

    async def run(self) -> Again:
        self.api.writes.clear()
        return await self.reconciler.reconcile(KEY)

    def count(self, verb: str, kind: str) -> int:
        return [(one, name) for one, name, _ in self.api.writes].count((verb, kind))

    @property
    def status(self) -> Obj:
        status: Obj = self.api.objects[MODEL, KEY.namespace, KEY.name]["status"]
        return status

    @property
    def notes(self) -> list[str]:
        return [obj["note"] for (kind, _, _), obj in self.api.objects.items() if kind == EVENT]


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.put(MODEL, model())
    return made


async def test_a_model_that_is_gone_or_going_is_left_to_the_garbage_collector(bench: Bench) -> None:
    bench.put(MODEL, {**model(), "metadata": {**model()["metadata"], "deletionTimestamp": "now"}})
    assert await bench.run() == Again()
    bench.cache.drop(MODEL, bench.api.objects[MODEL, KEY.namespace, KEY.name])
    assert await bench.run() == Again()
    assert bench.api.writes == []


async def test_from_nothing_to_serving_and_then_silence(bench: Bench) -> None:
    await bench.run()
    assert bench.count("apply-status", "Model") == 1
    bench.put(POD, running())
    bench.reports.answered(TARGET, report(loaded()))
    await bench.run()
    assert [one["status"] for one in bench.status["conditions"] if one["type"] == "Ready"] == ["True"]
    revision = bench.reports._expected["uid-pod-a"]
    bench.reports.answered(TARGET, report(loaded(), revision=revision))
    await bench.run()
    for _ in range(3):
        bench.now += 60
        assert await bench.run() == Again()
        assert bench.api.writes == []
    assert bench.notes[0] == "Created Deployment tandem-m-coder with 1 pod."
    assert bench.notes[1].startswith("Loaded")
    bench.start()
    bench.reports.answered(TARGET, report(loaded(), revision=revision))
    await bench.run()
    assert bench.api.writes == [], "a restarted operator has nothing to write"


async def test_a_restarted_operator_says_nothing_of_pods_before_it_has_asked_them(bench: Bench) -> None:
    bench.put(POD, running())
    bench.reports.answered(TARGET, report(loaded(busy=1)))
    await bench.run()
    revision = bench.reports._expected["uid-pod-a"]
    bench.reports.answered(TARGET, report(loaded(busy=1), revision=revision))
    await bench.run()
    bench.start()
    assert await bench.run() == Again()
    assert bench.api.writes == []
    bench.reports.failed(TARGET, "connection refused")
    await bench.run()
    assert bench.status["slots"] == "1/4", "columns stay as they were"
    assert [one["reason"] for one in bench.status["conditions"] if one["type"] == "Loaded"] == ["NotReported"]


async def test_gauges_are_written_at_most_once_in_ten_seconds_and_conditions_at_once(bench: Bench) -> None:
    bench.put(POD, running())
    revision = ""
    writes = 0
    for second in range(100):
        bench.reports.answered(TARGET, report(loaded(busy=second % 4, queued=second), revision=revision))
        again = await bench.run()
        revision = bench.reports._expected["uid-pod-a"]
        writes += bench.count("apply-status", "Model")
        if not bench.count("apply-status", "Model"):
            assert again.after is not None
            assert again.after <= 10.0
        bench.now += 1.0
    assert 10 <= writes <= 11
    bench.now += 0.1
    bench.reports.answered(TARGET, report(failed("gone"), revision=revision))
    await bench.run()
    assert bench.count("apply-status", "Model") == 1
    assert "could not load the model: gone." in str(bench.status["conditions"])


async def test_a_changed_catalog_is_hurried_into_the_pods(bench: Bench) -> None:
    bench.put(POD, running())
    bench.reports.answered(TARGET, report(loaded(), revision="of the past"))
    again = await bench.run()
    assert bench.count("patch", "Pod") == 1
    assert again.after == 1.0
    revision = bench.reports._expected["uid-pod-a"]
    touched = bench.api.objects[POD, KEY.namespace, "pod-a"]
    assert touched["metadata"]["annotations"]["tandem.dev/catalog-revision"] == revision
    bench.reports.answered(TARGET, report(loaded(), revision=revision))
    await bench.run()
    assert bench.api.writes == []


async def test_an_invalid_model_keeps_its_objects_and_says_why(bench: Bench) -> None:
    await bench.run()
    bench.put(MODEL, model(generation=2, slots=0))
    assert await bench.run() == Again()
    assert {verb for verb, _, _ in bench.api.writes} == {"apply-status", "create"}
    (ready,) = [one for one in bench.status["conditions"] if one["type"] == "Ready"]
    assert (ready["reason"], ready["observedGeneration"]) == ("Invalid", 2)
    assert "spec.slots" in ready["message"]


async def test_a_dead_runner_is_an_event_with_its_cause(bench: Bench) -> None:
    bench.put(POD, running())
    bench.reports.answered(TARGET, report(loaded(restarts=2)))
    await bench.run()
    assert not [note for note in bench.notes if "died" in note], "deaths of before are not told"
    bench.reports.answered(TARGET, report(loaded(restarts=3, last_error="the runner was killed by signal 9")))
    await bench.run()
    (told,) = [note for note in bench.notes if "died" in note]
    assert told.endswith("(restart 3): the runner was killed by signal 9")
    await bench.run()
    assert len([note for note in bench.notes if "died" in note]) == 1


async def test_a_name_that_is_taken_is_told_and_tried_again(bench: Bench) -> None:
    bench.api.put(MODEL, model())
    bench.api.put(SERVICE, {"metadata": {"name": "tandem-m-coder", "namespace": KEY.namespace}})
    assert (await bench.run()).hindered
    assert "NameConflict" in {one["type"] for one in bench.status["conditions"]}
    await bench.run()
    assert bench.count("apply-status", "Model") == 0
    del bench.api.objects[SERVICE, KEY.namespace, "tandem-m-coder"]
    assert not (await bench.run()).hindered
    assert "NameConflict" not in {one["type"] for one in bench.status["conditions"]}


async def test_a_refused_event_is_no_failure(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    real = bench.api.create

    async def create(kind: object, obj: Obj) -> Obj:
        if kind == EVENT:
            raise ApiError(403, "Forbidden", "no events here")
        return await real(kind, obj)  # type: ignore[arg-type]

    bench.api.create = create  # type: ignore[method-assign, assignment]
    await bench.run()
    assert "could not be posted: no events here" in caplog.text


class Shared(Bench):
    """A ModelPool with one Model, and their reconciles until both are silent."""

    def __init__(self) -> None:
        super().__init__()
        self.put(MODEL_POOL, model_pool())
        self.put(MODEL, pooled())

    async def settle(self) -> list[tuple[str, str, str]]:
        """All writes of rounds over both keys, until a round writes nothing."""
        self.api.writes.clear()
        for _ in range(6):
            before = len(self.api.writes)
            await self.reconciler.reconcile(POOL_KEY)
            await self.reconciler.reconcile(KEY)
            if len(self.api.writes) == before:
                return [one for one in self.api.writes if one[1] != "Event"]
        raise AssertionError(f"it never falls silent: {self.api.writes[-6:]}")

    def reason(self, kind: Kind, name: str) -> str:
        conditions = self.api.objects[kind, KEY.namespace, name]["status"]["conditions"]
        return next(str(one["reason"]) for one in conditions if one["type"] == "Ready")


SHARED_TARGET = Target("uid-pod-a", POOL_UID, POOL_KEY, "127.0.0.1", True)


async def test_a_shared_pool_from_nothing_to_serving_and_then_silence() -> None:
    bench = Shared()
    writes = await bench.settle()
    assert [kind for verb, kind, _ in writes if verb == "create"] == [kind.name for kind in OWNED]
    assert {name for verb, _, name in writes if verb == "create"} == {"tandem-p-shared"}
    assert [kind for verb, kind, _ in writes if verb == "apply-status"] == ["ModelPool", "Model"]
    bench.put(POD, running(pool=POOL_KEY))
    bench.reports.answered(SHARED_TARGET, report(ModelReport(name=KEY.name, state=ModelState.UNLOADED)))
    await bench.settle()
    assert (bench.reason(MODEL_POOL, "shared"), bench.reason(MODEL, "coder")) == ("Serving", "Unloaded")
    bench.reports.answered(SHARED_TARGET, report(loaded(), revision=bench.reports._expected["uid-pod-a"]))
    assert {(verb, kind) for verb, kind, _ in await bench.settle()} == {
        ("apply-status", "ModelPool"), ("apply-status", "Model"),
    }  # fmt: skip
    assert await bench.settle() == []


async def test_a_model_joins_a_shared_pool_and_its_own_pods_go() -> None:
    bench = Bench()
    bench.put(MODEL, model())
    await bench.run()
    bench.put(MODEL, pooled(generation=2))
    await bench.run()
    assert bench.reconciler is not None
    assert "delete" not in {verb for verb, _, _ in bench.api.writes}, "the pool is not there: nothing is changed"
    bench.put(MODEL_POOL, model_pool())
    await bench.run()
    assert [kind for verb, kind, _ in bench.api.writes if verb == "delete"] == sorted(kind.name for kind in OWNED)
    assert [note for note in bench.notes if note.startswith("Deleted Deployment tandem-m-coder")]


async def test_a_member_that_leaves_leaves_the_catalog() -> None:
    bench = Shared()
    await bench.settle()
    bench.cache.drop(MODEL, bench.api.objects.pop((MODEL, KEY.namespace, KEY.name)))
    writes = await bench.settle()
    assert {(verb, kind) for verb, kind, _ in writes} == {
        ("patch", "ConfigMap"), ("apply", "ConfigMap"), ("apply-status", "ModelPool"),
    }  # fmt: skip


async def test_pods_are_told_apart_before_there_are_fewer(bench: Bench) -> None:
    bench.put(MODEL, model(replicas=2))
    await bench.run()
    for name, busy in (("pod-a", 3), ("pod-b", 0)):
        bench.put(POD, running(name))
        bench.reports.answered(replace(TARGET, uid=f"uid-{name}"), report(loaded(busy=busy)))
    await bench.run()
    bench.put(MODEL, model(replicas=1, generation=2))
    await bench.run()
    verbs = [(verb, kind) for verb, kind, _ in bench.api.writes if kind in ("Pod", "Deployment")]
    assert verbs[0] == ("patch", "Pod"), "the cost is there before the Deployment changes"
    assert ("apply", "Deployment") in verbs
    costs = {
        name: bench.api.objects[POD, KEY.namespace, name]["metadata"].get("annotations", {})
        for name in ("pod-a", "pod-b")
    }
    assert costs["pod-a"]["controller.kubernetes.io/pod-deletion-cost"] == "3"
    assert "controller.kubernetes.io/pod-deletion-cost" not in costs["pod-b"]


class Broken:
    """A reconciler that fails a few times."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.calls = 0

    async def reconcile(self, key: object) -> Again:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        raise KeyboardInterrupt


async def test_no_failure_of_a_reconcile_ends_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    queue: WorkQueue[object] = WorkQueue(Schedule(time.monotonic, first_delay=0.001))
    broken = Broken([ApiError(0, "", "no answer"), ValueError("a defect"), ApiError(503, "", "busy")])
    queue.add(KEY)
    with pytest.raises(KeyboardInterrupt):
        await worker(queue, broken)  # type: ignore[arg-type]
    assert broken.calls == 4
    assert "is not as planned yet: no answer" in caplog.text
    assert "by a defect of the operator" in caplog.text
