"""What a ModelPool and the Models in it say: holds, memory, aliases, and pods that serve less than was asked for."""

from typing import Any

import pytest

from tandem_api.report import DeviceReport, ModelReport, ModelState
from tandem_api.status import Condition, ModelPoolStatus, ModelStatus
from tandem_operator.act import Outcome
from tandem_operator.admit import hold_of, hold_of_member, hold_of_pool
from tandem_operator.conditions import fields_of
from tandem_operator.kinds import DEPLOYMENT, MODEL, MODEL_POOL, POD, Obj, uid_of
from tandem_operator.observe import Seen, observe
from tandem_operator.pool_status import compute_pool
from tandem_operator.scale_down import costs
from tandem_operator.status import compute
from tandem_testing.operator_world import (
    CONFIG,
    KEY,
    POOL_KEY,
    UID,
    cache_with,
    checked,
    failed,
    loaded,
    loading,
    model,
    model_pool,
    pod,
    pods_with,
    pooled,
    running,
    seen,
    world,
    world_of_pool,
)

NOW = "2026-01-01T12:00:00Z"
UNLOADED = ModelReport(name=KEY.name, state=ModelState.UNLOADED)
BIG = DeviceReport(
    name="NVIDIA H200", kind="GPU", total_bytes=140_000_000_000, free_bytes=1, reserved_bytes=7_000_000_000
)


def condition(status: ModelStatus | ModelPoolStatus, kind: str = "Ready") -> Condition:
    return {one.type: one for one in status.conditions}[kind]


def kinds(status: ModelStatus | ModelPoolStatus) -> set[str]:
    return {one.type for one in status.conditions}


def member_status(*pairs: tuple[Obj, Seen | None], pool: Obj | None = None, **spec: Any) -> ModelStatus:
    """The status of a Model in a shared pool with these pods and their reports."""
    objects = [(MODEL_POOL, pool or model_pool()), (MODEL, pooled(**spec)), *((POD, one) for one, _ in pairs)]
    reports = {uid_of(one): told for one, told in pairs if told is not None}
    observed = observe(cache_with(*objects), reports, KEY)
    assert observed is not None
    return checked(compute(observed, Outcome(), hold_of(observed), NOW))


def pool_status(
    *pairs: tuple[Obj, Seen | None], models: tuple[Obj, ...] = (), outcome: Outcome | None = None, **spec: Any
) -> ModelPoolStatus:
    reports = {uid_of(one): told for one, told in pairs if told is not None}
    objects = [*((MODEL, one) for one in models), *((POD, one) for one, _ in pairs)]
    pool = world_of_pool(*objects, reports=reports, **spec)
    held = {one.key: hold for one in pool.members if (hold := hold_of_member(one, pool)) is not None}
    return checked(compute_pool(pool, outcome or Outcome(), hold_of_pool(pool, CONFIG), held, NOW))


def shared_pod(name: str = "pod-a", ready: bool = True) -> Obj:
    return running(name, ready, pool=POOL_KEY)


def test_a_model_that_no_pod_holds_is_ready_when_the_pool_is() -> None:
    status = member_status((shared_pod(), seen(UNLOADED)))
    ready = condition(status)
    assert (ready.status, ready.reason) == ("True", "Unloaded")
    assert ready.message == (
        "1 of 1 pods of ModelPool shared take requests. Pod pod-a loads the model with the next request."
    )
    assert (condition(status, "Loaded").status, condition(status, "Loaded").reason) == ("False", "Unloaded")
    assert condition(status, "Progressing").reason == "Complete"
    assert (status.until, status.slots, status.queued) == (None, None, 0)


def test_a_model_that_one_of_two_pods_holds() -> None:
    pairs = ((shared_pod("a"), seen(UNLOADED)), (shared_pod("b"), seen(loaded(busy=1))))
    status = member_status(*pairs, pool=model_pool(replicas=2))
    assert condition(status).reason == "Loaded"
    assert condition(status, "Loaded").message.startswith("1 of 2 pods of ModelPool shared hold the model: 12 MB")
    assert (status.slots, status.until, status.size) == ("1/4", "in use", "12 MB")


def test_a_pod_that_has_not_read_the_catalog_serves_the_model_not_yet() -> None:
    status = member_status((shared_pod(), seen(None)))
    assert (condition(status).status, condition(status).reason) == ("False", "CatalogNotRead")
    assert condition(status, "Progressing").status == "True"


def test_a_model_of_a_pool_that_is_held_says_whose_fault_it_is() -> None:
    trouble = {"type": "Ready", "status": "False", "reason": "OverlayRefused", "message": "spec.hostNetwork."}
    pool = {**model_pool(), "status": {"conditions": [{**trouble, "lastTransitionTime": NOW}]}}
    ready = condition(member_status(pool=pool))
    assert (ready.status, ready.reason) == ("False", "PoolNotReady")
    assert "ModelPool shared has no pods (OverlayRefused): spec.hostNetwork." in ready.message


def test_a_held_model_that_is_served_is_ready_and_degraded() -> None:
    status = member_status((shared_pod(), seen(loaded())), engine="VLLM")
    assert condition(status).status == "True"
    told = condition(status, "Degraded")
    assert (told.status, told.reason) == ("True", "Unsupported")
    assert "serve as they did before the last change, which is not carried out." in told.message
    progressing = condition(status, "Progressing")
    assert (progressing.status, progressing.reason) == ("False", "Unsupported")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"engine": "VLLM"}, "Unsupported"),
        ({"slots": 0}, "Invalid"),
        ({"secretRef": {"name": "x"}}, "SecretNotFound"),
    ],
)
def test_a_held_model_without_pods_is_not_ready(spec: Obj, reason: str) -> None:
    observed = world((MODEL, model(**spec)))
    status = compute(observed, Outcome(), hold_of(observed), NOW)
    assert (condition(status).status, condition(status).reason) == ("False", reason)
    assert "Degraded" not in kinds(status)
    assert ModelStatus.model_validate(fields_of(status)) == status


def test_a_model_whose_pool_is_missing_has_no_pods_and_no_selector() -> None:
    observed = observe(cache_with((MODEL, pooled())), {}, KEY)
    assert observed is not None
    status = compute(observed, Outcome(), hold_of(observed), NOW)
    assert (condition(status).reason, condition(status, "Loaded").reason) == ("PoolNotFound", "NoPods")
    assert (status.selector, status.replicas, status.ready_replicas) == (None, 0, 0)


def test_what_does_not_fit_says_so_with_the_numbers() -> None:
    entry = failed("the weights need 16,000 MiB, 8,000 MiB is free", error_reason="DoesNotFit")
    observed = pods_with((running(ready=False), seen(entry)))
    status = compute(observed, Outcome(), None, NOW)
    assert (condition(status).reason, condition(status, "Progressing").reason) == ("DoesNotFit", "DoesNotFit")
    told = condition(status, "Fits")
    assert (told.status, told.reason) == ("False", "DoesNotFit")
    assert told.message == "The weights need 16,000 MiB, 8,000 MiB is free."


def test_a_retry_after_a_failed_load_does_not_flap() -> None:
    words = "4 slots need too much"
    first = compute(
        pods_with((running(ready=False), seen(failed(words, error_reason="DoesNotFit")))), Outcome(), None, NOW
    )
    again = loading(phase="reading weights", fraction=0.5).model_copy(
        update={"last_error": words, "error_reason": "DoesNotFit"}
    )
    retried = compute(pods_with((running(ready=False), seen(again)), status=fields_of(first)), Outcome(), None, NOW)
    assert condition(retried) == condition(first)
    assert condition(retried, "Loaded") == condition(first, "Loaded")
    lost = again.model_copy(update={"artifact": loaded().artifact})
    assert condition(compute(pods_with((running(), seen(lost))), Outcome(), None, NOW)).reason == "Loading"


def test_what_fits_says_of_how_much() -> None:
    status = compute(pods_with((running(), seen(loaded(), devices=[BIG]))), Outcome(), None, NOW)
    assert condition(status, "Fits").message == "One copy takes 12 MB of the 140 GB of NVIDIA H200."


def test_pods_that_are_stuck_beside_serving_ones_degrade() -> None:
    stuck = pod("pod-z", phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "no GPU"}])
    del stuck["spec"]["nodeName"]
    status = compute(pods_with((running(), seen(loaded())), (stuck, None), replicas=2), Outcome(), None, NOW)
    told = condition(status, "Degraded")
    assert (told.reason, told.message[:29]) == ("Unschedulable", "1 of 2 pods take requests. Po")
    whole = compute(pods_with((running(), seen(loaded()))), Outcome(), None, NOW)
    assert "Degraded" not in kinds(whole)


def test_an_alias_that_another_model_has_is_told() -> None:
    def status(created: str, *others: Obj, **spec: Any) -> ModelStatus:
        mine = model(**spec)
        mine["metadata"]["creationTimestamp"] = created
        observed = observe(cache_with((MODEL, mine), *((MODEL, one) for one in others)), {}, KEY)
        assert observed is not None
        return checked(compute(observed, Outcome(), None, NOW))

    other = model("other", "uid-2", aliases=["fast"])
    other["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
    younger = status("2026-01-03T00:00:00Z", other, aliases=["fast", "mine"])
    assert "fast is an alias of the older Model other too" in condition(younger, "AliasConflict").message
    assert "mine" not in condition(younger, "AliasConflict").message.replace("Model other", "")
    assert "AliasConflict" not in kinds(status("2026-01-01T00:00:00Z", other, aliases=["fast"]))
    named = status("2026-01-01T00:00:00Z", other, aliases=["other"])
    assert "other is the name of another Model" in condition(named, "AliasConflict").message


def test_a_pool_that_serves() -> None:
    models = (pooled("coder", "uid-1"), pooled("two", "uid-2"))
    status = pool_status(
        (shared_pod("a"), seen(loaded(queued=2, rejected=1), devices=[BIG])),
        (shared_pod("b"), seen(loaded(), devices=[BIG.model_copy(update={"reserved_bytes": 9_000_000_000})])),
        models=models,
        replicas=2,
    )
    assert (condition(status).status, condition(status).reason) == ("True", "Serving")
    assert condition(status).message == "2 of 2 pods take requests."
    assert (status.models, status.loaded, status.memory) == (2, 1, "9.0 GB / 140 GB")
    assert [(pod.name, pod.models, pod.devices[0].reserved, pod.devices[0].free) for pod in status.pods] == [
        ("a", ["coder"], "7.0 GB", "133 GB"),
        ("b", ["coder"], "9.0 GB", "131 GB"),
    ]
    assert (status.queued, status.rejected, status.replicas, status.ready_replicas) == (2, 1, 2, 2)
    assert "tandem.dev/pool-kind=ModelPool" in (status.selector or "")
    assert ModelPoolStatus.model_validate(fields_of(status)) == status


def test_a_pool_counts_the_models_that_it_cannot_carry_out() -> None:
    models = (pooled("a", "uid-1", engine="VLLM"), pooled("b", "uid-2"), pooled("c", "uid-3", source="pvc://x/y"))
    told = condition(pool_status((shared_pod(), seen(None)), models=models), "ModelsHeld")
    assert told.message == (
        "2 of 3 Models are not carried out: a (Unsupported), c (VolumeNotInPool). Their own conditions say why."
    )
    many = tuple(pooled(f"m-{number}", f"uid-{number}", engine="VLLM") for number in range(9))
    assert "m-4 (Unsupported) and 4 more." in condition(pool_status(models=many), "ModelsHeld").message


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (pool_status(), "NotObserved"),
        (pool_status(replicas=0), "ScaledToZero"),
        (pool_status(gpusPerPod=0), "Invalid"),
        (pool_status(scaling={"mode": "Auto"}), "Unsupported"),
        (pool_status(podTemplate={"spec": {"hostPID": True}}), "OverlayRefused"),
        (pool_status(outcome=Outcome(conflicts=["the Service tandem-p-shared exists"])), "NameConflict"),
        (pool_status(outcome=Outcome(refused="quota")), "Refused"),
        (pool_status((shared_pod(ready=False), None)), "Starting"),
        (pool_status((shared_pod(ready=False), seen(loading(phase="reading weights")))), "Loading"),
        (pool_status((shared_pod(ready=False), seen(failed("too big")))), "LoadFailed"),
    ],
)
def test_a_pool_that_does_not_serve(status: ModelPoolStatus, reason: str) -> None:
    assert (condition(status).reason, condition(status).status != "True") == (reason, True)
    assert condition(status).message.endswith(".")


def shrinking(replicas: int, *pairs: tuple[Obj, Seen]) -> list[tuple[str, str]]:
    owner = {"apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "name": KEY.name, "controller": True}
    metadata = {"name": "tandem-m-coder", "namespace": "demo", "uid": "d", "resourceVersion": "30"}
    live = {"metadata": {**metadata, "ownerReferences": [{**owner, "uid": UID}]}, "spec": {"replicas": 3}}
    reports = {uid_of(one): told for one, told in pairs}
    observed = world(
        (MODEL, model(replicas=replicas)), (DEPLOYMENT, live), *((POD, one) for one, _ in pairs), reports=reports
    )
    assert observed.pool is not None
    return [(one.name, next(iter(annotations.values()))) for one, annotations in costs(observed.pool)]


def test_before_pods_become_fewer_the_busy_ones_are_named() -> None:
    pairs = (
        (running("a"), seen(loaded(busy=2, queued=1))),
        (running("b"), seen(loaded())),
        (running("c"), seen(loaded(busy=1))),
    )
    assert shrinking(2, *pairs) == [("a", "3"), ("c", "1")]
    assert shrinking(3, *pairs) == shrinking(4, *pairs) == []
    assert shrinking(0, *pairs) == [], "all of them go"
    told = running("a")
    told["metadata"]["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": "3"}
    assert shrinking(2, (told, pairs[0][1]), *pairs[1:]) == [("c", "1")], "nothing is written twice"
