"""What a Model's status says: tables of what was observed and the conditions, columns and Events that follow."""

from dataclasses import replace
from typing import Any

import pytest

from tandem_api.report import ModelReport, ModelState
from tandem_api.status import Artifact, Condition, ModelStatus
from tandem_operator.act import Outcome
from tandem_operator.admit import hold_of
from tandem_operator.conditions import fields_of, urgent
from tandem_operator.kinds import DEPLOYMENT, MODEL, POD, Obj
from tandem_operator.observe import Observed, Seen
from tandem_operator.status import compute
from tandem_operator.transitions import happenings
from tandem_testing.operator_world import (
    ARTIFACT,
    KEY,
    UID,
    checked,
    failed,
    loaded,
    loading,
    model,
    pod,
    pods_with,
    running,
    seen,
    world,
)

NOW = "2026-01-01T12:00:00Z"


def status_of(observed: Observed, **outcome: Any) -> ModelStatus:
    return checked(compute(observed, Outcome(**outcome), hold_of(observed), NOW))


def condition(status: ModelStatus, kind: str = "Ready") -> Condition:
    found = {one.type: one for one in status.conditions}
    assert len(found) == len(status.conditions), "conditions are a map by type"
    return found[kind]


def waiting(reason: str, message: str = "") -> Obj:
    state = {"name": "server", "ready": False, "restartCount": 0, "image": "img:1"}
    return pod(
        "pod-a",
        phase="Pending",
        conditions=[{"type": "PodScheduled", "status": "True"}],
        containerStatuses=[{**state, "state": {"waiting": {"reason": reason, "message": message}}}],
    )


def crashed(**terminated: Any) -> Obj:
    state = {"name": "server", "ready": False, "restartCount": 3}
    return pod(
        "pod-a",
        phase="Running",
        podIP="10.0.0.1",
        containerStatuses=[
            {**state, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": terminated}}
        ],
    )


UNSCHEDULABLE = pod(
    phase="Pending",
    conditions=[
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        }
    ],
)
UNSCHEDULABLE["spec"] = {}

READY_TABLE: dict[str, tuple[Observed, str, str, str]] = {
    "nothing seen yet": (world(), "Unknown", "NotObserved", "no pod of it has been seen yet"),
    "scaled to zero": (world((MODEL, model(replicas=0))), "False", "ScaledToZero", "set spec.replicas to 1 or more"),
    "invalid": (world((MODEL, model(slots=0))), "False", "Invalid", "spec.slots"),
    "made": (
        pods_with(({**pod(phase="Pending"), "spec": {}}, None)),
        "False",
        "Starting",
        "waits for the scheduler",
    ),
    "unschedulable": (pods_with((UNSCHEDULABLE, None)), "False", "Unschedulable", "1 Insufficient nvidia.com/gpu."),
    "scheduled": (pods_with((pod(phase="Pending"), None)), "False", "Starting", "being started on node node-1"),
    "no image": (
        pods_with((waiting("ImagePullBackOff", 'Back-off pulling image "img:1"'), None)),
        "False",
        "ImagePullFailed",
        "cannot get its image img:1: Back-off pulling",
    ),
    "image never pulled": (
        pods_with((waiting("ErrImageNeverPull", "not present"), None)),
        "False",
        "ImagePullFailed",
        "not present.",
    ),
    "bad configuration": (
        pods_with((waiting("CreateContainerConfigError", 'secret "x" not found'), None)),
        "False",
        "ContainerNotCreated",
        'secret "x" not found',
    ),
    "crash loop": (
        pods_with((crashed(exitCode=2, message="No module named\n tandem_server"), None)),
        "False",
        "CrashLooping",
        "ended with exit code 2. It was restarted 3 times. Its last words: No module named tandem_server.",
    ),
    "killed": (pods_with((crashed(exitCode=137, signal=9), None)), "False", "CrashLooping", "ended by signal 9"),
    "out of memory": (
        pods_with((crashed(exitCode=137, reason="OOMKilled"), None)),
        "False",
        "OutOfMemory",
        "Raise spec.resources.memory",
    ),
    "server starts": (pods_with((running(ready=False), None)), "False", "Starting", "it has not reported yet"),
    "loading": (
        pods_with(
            (running(ready=False), seen(loading(phase="reading weights", fraction=0.45, total_bytes=1_200_000_000)))
        ),
        "False",
        "Loading",
        "Pod pod-a is reading weights: 45% of 1.2 GB.",
    ),
    "load failed": (
        pods_with((running(ready=False), seen(failed("needs 9.1 GB, 8.0 GB are free")))),
        "False",
        "LoadFailed",
        "needs 9.1 GB, 8.0 GB are free.",
    ),
    "about to be ready": (pods_with((running(ready=False), seen(loaded()))), "False", "Starting", "about to take"),
    "loaded": (pods_with((running(), seen(loaded()))), "True", "Loaded", "1 of 1 pods take requests."),
    "ready without a report": (
        pods_with((running(), Seen(stale=True, error="connection refused"))),
        "True",
        "Loaded",
        "its report could not be read: connection refused.",
    ),
    "stale report": (
        pods_with((running(), seen(loaded(), stale=True, error="timeout"))),
        "True",
        "Loaded",
        "Pod pod-a does not answer the operator (timeout); its last report is shown.",
    ),
    "runner lost": (
        pods_with((running(), seen(loading(phase="reading weights")))),
        "True",
        "Loading",
        "Pod pod-a is reading weights.",
    ),
    "runner lost for good": (
        pods_with((running(), seen(failed("CUDA error")))),
        "False",
        "LoadFailed",
        "CUDA error.",
    ),
    "one of two": (
        pods_with((running("pod-b"), seen(loaded())), (waiting("ErrImagePull"), None), replicas=2),
        "True",
        "Loaded",
        "1 of 2 pods take requests.",
    ),
}


@pytest.mark.parametrize("name", READY_TABLE)
def test_ready(name: str) -> None:
    observed, status, reason, words = READY_TABLE[name]
    ready = condition(status_of(observed))
    assert (ready.status.value, ready.reason) == (status, reason)
    assert words in ready.message
    assert ready.message.endswith(".")
    assert "\n" not in ready.message


@pytest.mark.parametrize("name", READY_TABLE)
def test_every_status_is_what_the_api_server_takes(name: str) -> None:
    status = status_of(READY_TABLE[name][0])
    again = ModelStatus.model_validate(fields_of(status))
    assert again == status
    assert {one.type for one in status.conditions} >= {"Ready", "Loaded", "Progressing"}
    assert status.observed_generation == 1
    for one in status.conditions:
        assert one.last_transition_time == NOW
        assert one.observed_generation == 1


def test_columns_of_a_loaded_model_read_like_ollama_ps() -> None:
    observed = pods_with(
        (running("pod-a"), seen(loaded(busy=3, queued=2, rejected=1))),
        (running("pod-b"), seen(loaded(context_given=1024))),
        replicas=2,
    )
    status = status_of(observed)
    assert status.size == "12 MB"
    assert status.processor == "100% CPU"
    assert status.context == 1024
    assert status.slots == "3/8"
    assert status.until == "in use"
    assert (status.queued, status.rejected) == (2, 1)
    assert (status.replicas, status.ready_replicas) == (2, 2)
    assert status.selector == f"tandem.dev/pool=coder,tandem.dev/pool-kind=Model,tandem.dev/pool-uid={UID}"
    assert status.artifact == ARTIFACT


@pytest.mark.parametrize(
    ("entries", "until"),
    [
        ([loaded()], "Forever"),
        ([loaded(busy=1)], "in use"),
        ([loaded(queued=1)], "in use"),
        ([loaded(expires_at="2026-01-01T00:00:05Z")], "2026-01-01T00:00:05Z"),
        ([loaded(expires_at="2026-01-01T00:00:05Z"), loaded()], "Forever"),
        ([loading()], None),
    ],
)
def test_until(entries: list[Any], until: str | None) -> None:
    pairs = [(running(f"pod-{number}"), seen(entry)) for number, entry in enumerate(entries)]
    assert status_of(pods_with(*pairs)).until == until


def test_the_artifact_outlives_the_pods_and_the_rest_does_not() -> None:
    before = fields_of(status_of(pods_with((running(), seen(loaded())))))
    status = status_of(world((MODEL, model(replicas=0)), status=before))
    assert status.artifact == ARTIFACT
    assert (status.size, status.processor, status.context, status.slots, status.until) == (None,) * 5
    assert (status.replicas, status.ready_replicas) == (0, 0)


def deployment(**status: int) -> Obj:
    owner = {"apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "name": KEY.name, "uid": UID, "controller": True}
    metadata = {"name": "tandem-m-coder", "namespace": "demo", "uid": "d", "resourceVersion": "30", "generation": 2}
    return {"metadata": {**metadata, "ownerReferences": [owner]}, "spec": {"replicas": 1}, "status": status}


def with_deployment(live: Obj, *pods: Obj, **spec: Any) -> Observed:
    reports = {one["metadata"]["uid"]: seen(loaded()) for one in pods}
    return world((MODEL, model(**spec)), (DEPLOYMENT, live), *((POD, one) for one in pods), reports=reports)


PROGRESS_TABLE: dict[str, tuple[Observed, str, str]] = {
    "done": (
        with_deployment(deployment(observedGeneration=2, replicas=1, updatedReplicas=1), running()),
        "False",
        "Complete",
    ),
    "not yet seen by its controller": (
        with_deployment(deployment(observedGeneration=1, replicas=1, updatedReplicas=1), running()),
        "True",
        "RollingOut",
    ),
    "old pods left": (
        with_deployment(
            deployment(observedGeneration=2, replicas=2, updatedReplicas=1), running("pod-a"), running("pod-b")
        ),
        "True",
        "RollingOut",
    ),
    "too few": (
        with_deployment(deployment(observedGeneration=2, replicas=1, updatedReplicas=1), running(), replicas=2),
        "True",
        "RollingOut",
    ),
    "stuck beside a pod that serves": (
        pods_with((running("pod-b"), seen(loaded())), (waiting("ErrImagePull"), None)),
        "False",
        "ImagePullFailed",
    ),
    "starting": (pods_with((running(ready=False), None)), "True", "Starting"),
}


@pytest.mark.parametrize("name", PROGRESS_TABLE)
def test_progressing(name: str) -> None:
    observed, status, reason = PROGRESS_TABLE[name]
    found = condition(status_of(observed), "Progressing")
    assert (found.status.value, found.reason) == (status, reason)


def test_pods_that_the_cluster_forbids() -> None:
    live = deployment(observedGeneration=2)
    failure = {"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity: hostPath"}
    live["status"]["conditions"] = [failure]
    for kind in ("Ready", "Progressing"):
        found = condition(status_of(with_deployment(live)), kind)
        assert (found.status.value, found.reason) == ("False", "PodsForbidden")
        assert "violates PodSecurity: hostPath" in found.message


def test_conflicts_and_refusals_are_told_and_do_not_hide_that_pods_serve() -> None:
    serving = pods_with((running(), seen(loaded())))
    told = status_of(serving, conflicts=["the Service tandem-m-coder exists and belongs to the Job x"])
    assert condition(told).status.value == "True"
    assert condition(told, "NameConflict").status.value == "True"
    assert "Service tandem-m-coder" in condition(told, "NameConflict").message
    alone = status_of(world(), conflicts=["the Deployment tandem-m-coder exists"])
    assert condition(alone).reason == "NameConflict"
    refused = status_of(world(), refused="exceeded quota: pods")
    assert condition(refused).reason == condition(refused, "Progressing").reason == "Refused"
    assert "exceeded quota: pods." in condition(refused).message
    assert condition(status_of(serving, refused="no")).status.value == "True"


@pytest.mark.parametrize(
    ("entry", "reason", "words"),
    [
        (loaded(context_asked=8192, context_given=2048), "MemoryShort", "2048 tokens of context instead of 8192"),
        (
            loaded(
                context_asked=8192,
                context_given=2048,
                context_reason="4 slots of 8192 tokens need 90 MiB and 7 MiB is free",
            ),
            "MemoryShort",
            "instead of 8192, since 4 slots of 8192 tokens need 90 MiB and 7 MiB is free. Give the pod more memory",
        ),
        (loaded(context_asked=8192, context_given=4096), "ModelLimit", "made for no more than 4096"),
        (loaded(context_asked=None, context_given=1024), "MemoryShort", "1024 tokens of context instead of 4096"),
        (loaded(context_asked=None, context_given=4096), None, ""),
        (loaded(), None, ""),
    ],
)
def test_a_reduced_context_is_told_with_numbers(entry: Any, reason: str | None, words: str) -> None:
    status = status_of(pods_with((running(), seen(entry))))
    found = [one for one in status.conditions if one.type == "ContextReduced"]
    assert [one.reason for one in found] == ([reason] if reason else [])
    assert words in (found[0].message if found else "")


def test_the_time_of_a_condition_moves_only_when_its_status_flips() -> None:
    early = "2025-01-01T00:00:00Z"
    before = fields_of(compute(pods_with((running(ready=False), None)), Outcome(), None, early))
    still = status_of(pods_with((running(ready=False), seen(loading())), status=before))
    assert condition(still).reason == "Loading"
    assert condition(still).last_transition_time == early
    flipped = status_of(pods_with((running(), seen(loaded())), status=before))
    assert condition(flipped).last_transition_time == NOW


def test_equal_observations_give_equal_statuses_at_any_time() -> None:
    observed = pods_with((running(), seen(loaded())))
    before = fields_of(status_of(observed))
    later = compute(
        pods_with((running(), seen(loaded(step_rate=7.0))), status=before), Outcome(), None, "2027-01-01T00:00:00Z"
    )
    assert fields_of(later) == before


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (loaded(), False),
        (loaded(busy=4, queued=9, rejected=3), False),
        (loaded(context_given=1024), True),
        (failed("x"), True),
    ],
)
def test_only_gauges_and_words_may_wait(entry: Any, expected: bool) -> None:
    before = status_of(pods_with((running(), seen(loaded()))))
    after = compute(pods_with((running(), seen(entry)), status=fields_of(before)), Outcome(), None, NOW)
    assert urgent(before, after) is expected


def test_progress_may_wait() -> None:
    before = status_of(pods_with((running(ready=False), seen(loading(fraction=0.1)))))
    after = status_of(pods_with((running(ready=False), seen(loading(fraction=0.2))), status=fields_of(before)))
    assert before != after
    assert not urgent(before, after)


def since(moment: str, status: ModelStatus) -> ModelStatus:
    """The status as if its conditions had flipped at another time."""
    conditions = [one.model_copy(update={"last_transition_time": moment}) for one in status.conditions]
    return status.model_copy(update={"conditions": conditions})


def events(before: ModelStatus | None, observed: Observed, outcome: Outcome | None = None) -> list[tuple[str, str]]:
    raw: Obj = fields_of(before) if before is not None else {}
    again = replace(observed, member=replace(observed.member, status=ModelStatus.model_validate(raw)))
    after = compute(again, outcome or Outcome(), hold_of(again), NOW)
    assert again.pool is not None
    found = happenings(again.member.status, after, outcome or Outcome(), again.pool.wanted, again.pods)
    return [(one.reason, one.note) for one in found]


def test_events_of_a_life() -> None:
    made = events(None, world(), Outcome(created=[(DEPLOYMENT, "tandem-m-coder")]))
    assert made == [("Created", "Created Deployment tandem-m-coder with 1 pod.")]
    starting = status_of(pods_with((running(ready=False), None)))
    load = pods_with((running(ready=False), seen(loading(phase="reading weights"))))
    assert events(starting, load) == [
        ("Loading", "0 of 1 pods hold the model. Pod pod-a is reading weights."),
    ]
    ready = pods_with((running(), seen(loaded())))
    assert events(since("2026-01-01T00:00:00Z", status_of(load)), ready) == [
        (
            "Loaded",
            "Loaded in 7 s after the start of the pod. "
            "1 of 1 pods hold the model: 12 MB on 100% CPU, 4 slots of 2048 tokens each.",
        )
    ]
    assert events(status_of(ready), ready) == []
    lost = pods_with((running(), seen(loading())))
    assert [reason for reason, _ in events(status_of(ready), lost)] == ["Loading"]
    ((reason, note),) = events(status_of(lost), ready)
    assert (reason, note[:8]) == ("Loaded", "Loaded. ")


def test_a_report_that_comes_late_is_no_event() -> None:
    ready = pods_with((running(), seen(loaded())))
    silent = pods_with((running(), Seen(stale=True, error="timeout")), status=fields_of(status_of(ready)))
    told = status_of(silent)
    assert condition(told, "Loaded").reason == "NotReported"
    assert events(told, ready) == []
    never = status_of(pods_with((running(), Seen(stale=True, error="timeout"))))
    assert [reason for reason, _ in events(never, ready)] == ["Loaded"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [(name, row[2]) for name, row in READY_TABLE.items() if row[2] in ("CrashLooping", "LoadFailed")],
)
def test_a_failure_is_told_once(name: str, reason: str) -> None:
    observed = READY_TABLE[name][0]
    first = events(None, observed)
    assert [one for one, _ in first] == [reason]
    assert events(status_of(observed), observed) == []


def test_a_reduced_context_is_an_event() -> None:
    full = status_of(pods_with((running(), seen(loaded()))))
    reduced = pods_with((running(), seen(loaded(context_asked=8192, context_given=2048))))
    assert [reason for reason, _ in events(full, reduced)] == ["ContextReduced"]
    assert events(status_of(reduced), reduced) == []


def gone(why: str = "its keep-alive ended") -> ModelReport:
    return ModelReport(name=KEY.name, state=ModelState.UNLOADED, unloaded_because=why)


def test_an_unload_is_an_event_that_says_why() -> None:
    full = status_of(pods_with((running(), seen(loaded()))))
    idle = pods_with((running(), seen(gone("model big needed its room"))), status=fields_of(full))
    ((reason, note),) = events(full, idle)
    assert reason == "Unloaded"
    assert "loads the model with the next request. It was unloaded since model big needed its room." in note
    assert condition(status_of(idle)).reason == "Unloaded"
    assert events(status_of(idle), idle) == []


def test_an_unload_between_two_reports_is_an_event_too() -> None:
    never = status_of(pods_with((running(), seen(gone("")))))
    assert [reason for reason, _ in events(never, pods_with((running(), seen(gone()))))] == ["Unloaded"]


def test_a_reduced_context_stands_until_a_load_says_otherwise() -> None:
    reduced = status_of(pods_with((running(), seen(loaded(context_asked=8192, context_given=2048)))))
    idle = status_of(pods_with((running(), seen(gone())), status=fields_of(reduced)))
    assert condition(idle, "ContextReduced").message == condition(reduced, "ContextReduced").message
    grown = pods_with((running(), seen(loaded(context_asked=8192, context_given=8192))), status=fields_of(idle))
    assert all(one.type != "ContextReduced" for one in status_of(grown).conditions)
    told = dict(events(idle, grown))
    assert told["ContextRestored"] == "Each slot has 8192 tokens of context, as was asked for."


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("spec.replicas", "Scaled Deployment x to 3 pods."),
        ("spec.template.spec.containers[server].image", "its pods are replaced one by one"),
        ("metadata.labels", "Changed Deployment x (metadata.labels)."),
    ],
)
def test_a_change_says_what_it_means(where: str, words: str) -> None:
    outcome = Outcome(changed=[(DEPLOYMENT, "x", where)])
    ((reason, note),) = events(None, world((MODEL, model(replicas=3))), outcome)
    assert reason == "Changed"
    assert words in note


def test_an_unknown_artifact_of_another_version_is_no_obstacle() -> None:
    observed = world(
        (MODEL, model()), status={"artifact": {"architecture": "X", "future": 1}, "conditions": "nonsense"}
    )
    assert observed.member.status == ModelStatus()
    kept = world((MODEL, model()), status={"artifact": {"architecture": "X", "future": 1}})
    assert kept.member.status.artifact == Artifact(architecture="X")
