"""Whole reconciles against an API server in memory: what is written, how often, and what is said."""

import time

import pytest

from tandem_operator.api import ApiError
from tandem_operator.app import worker
from tandem_operator.cache import Cache
from tandem_operator.kinds import EVENT, MODEL, POD, SERVICE, Obj
from tandem_operator.queue import Schedule, WorkQueue
from tandem_operator.reconcile import Again, Reconciler
from tandem_operator.reports import Reports, Target
from tandem_testing.operator_world import (
    CONFIG,
    KEY,
    MASTER,
    UID,
    FakeApi,
    failed,
    loaded,
    model,
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
