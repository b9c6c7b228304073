"""What is held and why: tables of Models and pools, each with the reason and the words that a person reads."""

from typing import Any

import pytest

from tandem_api.fields import Device
from tandem_operator.admit import hold_of, hold_of_member, hold_of_pool
from tandem_operator.config import PodTemplateAllows
from tandem_operator.kinds import MODEL, MODEL_POOL, SECRET, Obj
from tandem_operator.observe import observe
from tandem_operator.pool_of_one import pool_of_one
from tandem_testing.operator_world import (
    CONFIG,
    KEY,
    cache_with,
    model,
    model_pool,
    pooled,
    secret,
    world,
    world_of_pool,
)


def test_a_plain_model_is_not_held() -> None:
    assert hold_of(world()) is None


UNSUPPORTED: dict[str, Obj] = {
    "spec.source:": {"source": "s3://bucket/x"},
    "spec.engine:": {"engine": "VLLM"},
    "spec.quantization:": {"quantization": "FP8"},
    "spec.adapters:": {"adapters": [{"name": "a", "source": "hf://a/b"}]},
    "spec.engineArgs:": {"engineArgs": [{"name": "seed", "value": "1"}]},
    "spec.scaling.mode:": {"scaling": {"mode": "Auto"}},
    "spec.topology.nodes:": {"topology": {"nodes": 2}},
}


@pytest.mark.parametrize("words", UNSUPPORTED)
def test_what_this_version_cannot_do_is_answered(words: str) -> None:
    hold = hold_of(world((MODEL, model(**UNSUPPORTED[words]))))
    assert hold is not None
    assert hold.reason == "Unsupported"
    assert words in hold.message
    assert hold.message.endswith(".")


SUPPORTED: list[Obj] = [
    {"engine": "Native"}, {"keepAlive": "5m", "keepAliveMax": -1}, {"residency": "Pinned"}, {"topology": {"nodes": 1}},
    {"quantization": "Int8"}, {"quantization": "Int4"},
    {"scaling": {"mode": "External"}, "replicas": 3}, {"kvCache": {"policy": "Guaranteed", "dtype": "FP8"}},
    {"kvCache": {"policy": "Shared"}},
]  # fmt: skip


@pytest.mark.parametrize("spec", SUPPORTED, ids=str)
def test_what_it_can_do_is_not_held(spec: Obj) -> None:
    assert hold_of(world((MODEL, model(**spec)))) is None


def test_several_unsupported_fields_are_told_at_once() -> None:
    hold = hold_of(world((MODEL, model(engine="VLLM", quantization="FP8"))))
    assert hold is not None
    assert "spec.engine: " in hold.message
    assert "spec.quantization: " in hold.message


def test_pools_are_held_for_what_cannot_be_done() -> None:
    hold = hold_of_pool(world_of_pool(scaling={"mode": "Auto"}), CONFIG)
    assert hold is not None
    assert hold.reason == "Unsupported"
    assert "spec.scaling.mode: " in hold.message


def test_a_pool_may_bound_models_and_keep_alive() -> None:
    assert hold_of_pool(world_of_pool(maxLoadedModels=3, keepAlive="5m"), CONFIG) is None


def test_a_pools_model_may_bound_its_copies() -> None:
    pool = world_of_pool((MODEL, pooled(copies={"min": 1, "max": 2})))
    assert hold_of_member(pool.members[0], pool) is None


def in_pool(*others: tuple[Any, Obj], pool: Obj | None = None, **spec: Any) -> Any:
    cache = cache_with((MODEL_POOL, pool or model_pool()), (MODEL, pooled(**spec)), *others)
    observed = observe(cache, {}, KEY)
    assert observed is not None
    return hold_of(observed)


def test_a_pool_that_is_not_there_is_named_with_those_that_are() -> None:
    observed = observe(cache_with((MODEL, pooled())), {}, KEY)
    assert observed is not None
    hold = hold_of(observed)
    assert hold is not None
    assert hold.reason == "PoolNotFound"
    assert hold.message.startswith("There is no ModelPool shared in namespace demo; there is none at all.")
    observed = observe(cache_with((MODEL, pooled()), (MODEL_POOL, model_pool("big"))), {}, KEY)
    assert observed is not None
    told = hold_of(observed)
    assert told is not None
    assert "there are big." in told.message


def test_a_pool_of_another_namespace_is_no_pool() -> None:
    elsewhere = model_pool()
    elsewhere["metadata"]["namespace"] = "other"
    observed = observe(cache_with((MODEL, pooled()), (MODEL_POOL, elsewhere)), {}, KEY)
    assert observed is not None
    hold = hold_of(observed)
    assert hold is not None
    assert hold.reason == "PoolNotFound"


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        ("pvc://demo-models/x", None, ""),
        ("pvc://demo-models", None, ""),
        ("pvc://payroll/x", "VolumeNotInPool", "do not mount the claim payroll: it lists demo-models."),
        ("file:///data/models/x", None, ""),
        ("file:///data/models", None, ""),
        ("file:///data/models-of-others/x", "FileRootNotInPool", "it lists /data/models."),
        ("file:///etc", "FileRootNotInPool", "Add it to its spec.fileRoots."),
        ("hf://org/name", None, ""),
    ],
)
def test_sources_must_lie_where_the_pool_allows(source: str, reason: str | None, words: str) -> None:
    hold = in_pool(pool=model_pool(fileRoots=["/data/models"]), source=source)
    assert (hold.reason if hold else None) == reason
    assert words in (hold.message if hold else "")


def test_only_a_labelled_secret_of_the_namespace_counts() -> None:
    def reason(*objects: Obj) -> str | None:
        found = [(SECRET, one) for one in objects]
        hold = hold_of(world((MODEL, model(secretRef={"name": "token"})), *found))
        return hold.reason if hold else None

    assert reason() == "SecretNotFound"
    assert reason(secret("token")) is None
    assert reason(secret("token", label="own")) == "SecretNotFound"
    assert reason(secret("token", label=None)) == "SecretNotFound"
    assert reason(secret("other")) == "SecretNotFound"
    assert reason(secret("token", namespace="other")) == "SecretNotFound"


def test_a_pool_of_one_is_what_the_model_says() -> None:
    member = world(
        (MODEL, model(source="pvc://weights/a", device="GPU", resources={"gpus": 2, "memory": "8Gi"}, replicas=3))
    ).member
    assert member.spec is not None
    pool = pool_of_one(member.spec)
    assert (pool.device, pool.gpus_per_pod, pool.resources.memory, pool.replicas) == (Device.GPU, 2, "8Gi", 3)
    assert [volume.claim for volume in pool.volumes] == ["weights"]
    hub = world((MODEL, model(source="hf://a/b"))).member.spec
    assert hub is not None
    assert pool_of_one(hub).volumes == []


OVERLAYS: dict[str, tuple[Obj, str]] = {
    "hostNetwork": ({"hostNetwork": True}, "HostNamespaces"),
    "hostPID": ({"hostPID": True}, "HostNamespaces"),
    "hostIPC": ({"hostIPC": True}, "HostNamespaces"),
    "hostPort": (
        {"containers": [{"name": "server", "ports": [{"containerPort": 1, "hostPort": 1}]}]},
        "HostNamespaces",
    ),
    "hostPath": ({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "HostPath"),
    "privileged": ({"containers": [{"name": "server", "securityContext": {"privileged": True}}]}, "Privileged"),
    "privileged init": ({"initContainers": [{"name": "x", "securityContext": {"privileged": True}}]}, "Privileged"),
    "escalation": (
        {"containers": [{"name": "server", "securityContext": {"allowPrivilegeEscalation": True}}]},
        "Privileged",
    ),
    "capabilities": (
        {"containers": [{"name": "server", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
        "Privileged",
    ),
    "unconfined": ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "Privileged"),
    "sysctls": ({"securityContext": {"sysctls": [{"name": "a", "value": "b"}]}}, "Privileged"),
    "serviceAccountName": ({"serviceAccountName": "admin"}, "ServiceAccount"),
    "serviceAccount": ({"serviceAccount": "admin"}, "ServiceAccount"),
    "a mounted token": ({"automountServiceAccountToken": True}, "ServiceAccount"),
    "a projected token": (
        {"volumes": [{"name": "x", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
        "ServiceAccount",
    ),
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_beyond_an_ordinary_pod_needs_leave(name: str) -> None:
    spec, needs = OVERLAYS[name]
    pool = world_of_pool(podTemplate={"spec": spec})
    hold = hold_of_pool(pool, CONFIG)
    assert hold is not None
    assert hold.reason == "OverlayRefused"
    assert f"({needs})" in hold.message
    allowed = CONFIG.model_copy(update={"pod_template_allows": [PodTemplateAllows(needs)]})
    assert hold_of_pool(pool, allowed) is None
    others = CONFIG.model_copy(update={"pod_template_allows": [one for one in PodTemplateAllows if one.value != needs]})
    assert hold_of_pool(pool, others) is not None


def test_an_ordinary_overlay_is_taken() -> None:
    spec = {
        "nodeSelector": {"gpu": "h200"}, "priorityClassName": "high", "hostNetwork": False,
        "volumes": [{"name": "x", "emptyDir": {}}, "nonsense"],
        "containers": [{"name": "server", "env": [{"name": "A", "value": "b"}]}],
    }  # fmt: skip
    assert hold_of_pool(world_of_pool(podTemplate={"spec": spec}), CONFIG) is None


def test_an_invalid_pool_says_which_field() -> None:
    hold = hold_of_pool(world_of_pool(gpusPerPod=0), CONFIG)
    assert hold is not None
    assert hold.reason == "Invalid"
    assert "spec.gpusPerPod" in hold.message
