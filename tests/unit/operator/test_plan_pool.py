"""What should exist for a shared pool: catalog and preload, gathered credentials, guards, and the pods' template."""

import base64
from typing import Any

import pytest

from tandem_api import placement
from tandem_api.catalog import Catalog
from tandem_operator.admit import Hold, hold_of_member
from tandem_operator.config import Config, NetworkPolicyConfig
from tandem_operator.kinds import CONFIG_MAP, DEPLOYMENT, MODEL, OWNED, POD, SECRET, Key, Obj, name_of
from tandem_operator.observe import Pool
from tandem_operator.plan import Plan, plan
from tandem_testing.operator_world import (
    CONFIG,
    MASTER,
    POOL_KEY,
    POOL_UID,
    SERVER,
    pooled,
    running,
    secret,
    world_of_pool,
)


def planned(pool: Pool, config: Config = CONFIG) -> Plan:
    holds = {one.key: hold for one in pool.members if (hold := hold_of_member(one, pool)) is not None}
    return plan(pool, holds, config, MASTER)


def catalog_of(made: Plan) -> Catalog:
    assert made.catalog is not None
    return made.catalog


def object_of(made: Plan, kind: Any, name: str = "tandem-p-shared") -> Obj:
    (found,) = [one.obj for one in made.objects if one.kind == kind and name_of(one.obj) == name]
    return found


def template(**spec: Any) -> Obj:
    found: Obj = object_of(planned(world_of_pool(**spec)), DEPLOYMENT)["spec"]["template"]
    return found


ONE, TWO = pooled("one", "uid-1"), pooled("two", "uid-2", slots=2)


def test_objects_are_the_pools_own() -> None:
    made = planned(world_of_pool((MODEL, ONE)))
    assert [one.kind for one in made.objects] == list(OWNED)
    for one in made.objects:
        assert name_of(one.obj) == "tandem-p-shared"
        (owner,) = one.obj["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("ModelPool", "shared", POOL_UID)
        assert one.obj["metadata"]["labels"]["tandem.dev/pool-kind"] == "ModelPool"


def test_the_catalog_has_every_model_that_names_the_pool() -> None:
    stranger = pooled("three", "uid-3")
    stranger["spec"]["pool"] = "another"
    made = planned(world_of_pool((MODEL, TWO), (MODEL, ONE), (MODEL, stranger)))
    assert [entry.name for entry in catalog_of(made).models] == ["one", "two"]
    assert catalog_of(made).preload == {}


def test_a_model_that_says_nothing_gets_the_pools_word() -> None:
    own = pooled("two", "uid-2", context={"whenShort": "Fail", "minLength": 8}, keepAlive=-1)
    catalog = catalog_of(planned(world_of_pool((MODEL, ONE), (MODEL, own), contextPolicy="Shrink")))
    assert [one.context.when_short for one in catalog.models] == ["Shrink", "Fail"]
    catalog = catalog_of(planned(world_of_pool((MODEL, ONE), contextPolicy="Fail", keepAlive=-1)))
    assert [(one.context.when_short, one.keep_alive) for one in catalog.models] == [("Fail", -1)]


def test_a_held_model_keeps_its_place_in_the_catalog_as_it_was() -> None:
    before = planned(world_of_pool((MODEL, ONE), (MODEL, TWO)))
    live = {**object_of(before, CONFIG_MAP)}
    live["metadata"] = {**live["metadata"], "uid": "cm", "resourceVersion": "30"}
    changed = pooled("two", "uid-2", slots=9, engine="VLLM")
    newcomer = pooled("three", "uid-3", engine="VLLM")
    after = planned(world_of_pool((MODEL, ONE), (MODEL, changed), (MODEL, newcomer), (CONFIG_MAP, live)))
    assert [(one.name, one.slots) for one in catalog_of(after).models] == [("one", "Auto"), ("two", 2)]
    anew = planned(world_of_pool((MODEL, pooled("two", "another", engine="VLLM")), (CONFIG_MAP, live)))
    assert catalog_of(anew).models == [], "a Model made anew does not inherit from its namesake"


def test_preload_follows_copies_and_pins() -> None:
    pods = [(POD, running(f"pod-{letter}", pool=POOL_KEY)) for letter in "abc"]
    models = [
        (MODEL, pooled("twice", "uid-1", copies={"min": 2})),
        (MODEL, pooled("pinned", "uid-2", residency="Pinned")),
        (MODEL, pooled("all", "uid-3", copies={"min": 9})),
        (MODEL, pooled("none", "uid-4")),
    ]
    preload = catalog_of(planned(world_of_pool(*pods, *models))).preload
    counts = {name: sum(name in one for one in preload.values()) for name in ("twice", "pinned", "all", "none")}
    assert counts == {"twice": 2, "pinned": 1, "all": 3, "none": 0}
    first = placement.order("uid-2", [f"uid-pod-{letter}" for letter in "abc"])[0].removeprefix("uid-")
    assert "pinned" in preload[first]


def test_pods_that_end_are_not_preloaded() -> None:
    going = running("pod-a", pool=POOL_KEY)
    going["metadata"]["deletionTimestamp"] = "now"
    ended = running("pod-b", pool=POOL_KEY)
    ended["status"]["phase"] = "Failed"
    model = (MODEL, pooled("one", "uid-1", copies={"min": 1}))
    assert catalog_of(planned(world_of_pool((POD, going), (POD, ended), model))).preload == {}


def test_credentials_are_gathered_under_the_models_names() -> None:
    one = pooled("one", "uid-1", secretRef={"name": "hub"})
    two = pooled("two", "uid-2", secretRef={"name": "s3"})
    made = planned(
        world_of_pool(
            (MODEL, one), (MODEL, two), (MODEL, pooled("three", "uid-3")),
            (SECRET, secret("hub", token="t-1")), (SECRET, secret("s3", id="a", key="b")), (SECRET, secret("x", y="z")),
        )
    )  # fmt: skip
    data = object_of(made, SECRET, "tandem-p-shared-credentials")["data"]
    assert {key: base64.b64decode(value).decode() for key, value in data.items()} == {
        "one.token": "t-1", "two.id": "a", "two.key": "b",
    }  # fmt: skip
    assert "t-1" not in str(object_of(made, CONFIG_MAP))
    assert catalog_of(made).credentials


def test_changed_credentials_change_the_revision_and_not_the_pods() -> None:
    one = (MODEL, pooled("one", "uid-1", secretRef={"name": "hub"}))
    first = planned(world_of_pool(one, (SECRET, secret("hub", token="t-1"))))
    second = planned(world_of_pool(one, (SECRET, secret("hub", token="t-2"))))
    bare = planned(world_of_pool((MODEL, ONE)))
    assert catalog_of(first).revision != catalog_of(second).revision
    assert object_of(first, DEPLOYMENT) == object_of(second, DEPLOYMENT) == object_of(bare, DEPLOYMENT)
    assert len(bare.objects) == len(OWNED), "without credentials there is no Secret for them"


def test_the_network_policy_lets_in_the_installation_and_whom_it_names() -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    config = CONFIG.model_copy(update={"network_policy": NetworkPolicyConfig(extra_from=[prometheus])})
    made = planned(world_of_pool((MODEL, ONE)), config)
    (policy,) = [one.obj["spec"] for one in made.objects if one.kind.name == "NetworkPolicy"]
    ours, health = policy["ingress"]
    names = [one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in ours["from"][:2]]
    assert names == ["gateway", "operator"]
    assert ours["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "tandem-system"}
    assert ours["from"][2] == prometheus
    assert [one["port"] for one in ours["ports"]] == [8080, 8081]
    assert [one["port"] for one in health["ports"]] == [8082]
    assert "from" not in health
    off = CONFIG.model_copy(update={"network_policy": NetworkPolicyConfig(enabled=False)})
    assert "NetworkPolicy" not in {one.kind.name for one in planned(world_of_pool(), off).objects}


def test_one_pod_may_be_evicted_at_a_time() -> None:
    (budget,) = [one.obj["spec"] for one in planned(world_of_pool()).objects if one.kind.name == "PodDisruptionBudget"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    assert budget["selector"]["matchLabels"]["tandem.dev/pool-uid"] == POOL_UID


def test_the_pods_are_as_the_pool_says() -> None:
    made = template(
        device="GPU", gpusPerPod=4, resources={"cpu": "2", "memory": "64Gi"}, image="registry/own:1", maxQueue=9,
        fileRoots=["/b", "/a"], volumes=[{"claim": "w.two"}, {"claim": "one"}],
    )  # fmt: skip
    (server,) = made["spec"]["containers"]
    assert server["image"] == "registry/own:1"
    assert server["resources"]["limits"] == {"nvidia.com/gpu": "4", "memory": "64Gi"}
    values = {one["name"]: one.get("value") for one in server["env"]}
    assert (values["TANDEM_MAX_QUEUED"], values["TANDEM_FILE_ROOTS"]) == ("9", "/a:/b")
    assert values["TANDEM_MAX_LOADED"] == "0"
    paths = {one["mountPath"]: one for one in server["volumeMounts"]}
    assert {"/models/one", "/models/w.two", "/etc/tandem/credentials"} <= set(paths)
    assert all(len(one["name"]) <= 63 and "." not in one["name"] for one in made["spec"]["volumes"])


def test_a_volume_more_does_not_rename_the_others() -> None:
    def named(*claims: str) -> dict[str, str]:
        (server,) = template(volumes=[{"claim": one} for one in claims])["spec"]["containers"]
        return {one["mountPath"]: one["name"] for one in server["volumeMounts"]}

    assert named("b").items() <= named("a", "b").items()


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "10Gi"}, {"emptyDir": {"sizeLimit": "10Gi"}}),
        ({"claim": "hub"}, {"persistentVolumeClaim": {"claimName": "hub"}}),
    ],
)
def test_the_cache(cache: Obj, expected: Obj) -> None:
    pod = template(cache=cache)["spec"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == "cache"]
    assert volume == {"name": "cache", **expected}
    assert ("fsGroup" in pod["securityContext"]) == ("claim" in cache)


def test_the_rollout_is_the_pools() -> None:
    made = object_of(planned(world_of_pool(rollout={"maxSurge": 0, "maxUnavailable": 1}, replicas=5)), DEPLOYMENT)
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert made["spec"]["replicas"] == 5


def test_the_overlay_is_merged_by_name_and_cannot_take_the_labels_away() -> None:
    overlay = {
        "metadata": {"labels": {"team": "a", "tandem.dev/pool": "stolen"}, "annotations": {"x": "y"}},
        "spec": {
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"operator": "Exists"}],
            "enableServiceLinks": None,
            "containers": [
                {"name": "server", "env": [{"name": "A", "value": "b"}], "resources": {"limits": {"memory": "9Gi"}}},
                {"name": "sidecar", "image": "x"},
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}, {"name": "own", "emptyDir": {}}],
        },
    }
    bare, made = template(), template(podTemplate=overlay)
    assert made["metadata"]["labels"] == {"team": "a", **bare["metadata"]["labels"]}
    assert made["metadata"]["annotations"] == {"x": "y"}
    spec, before = made["spec"], bare["spec"]
    assert (spec["nodeSelector"], "enableServiceLinks" in spec) == ({"gpu": "h200"}, False)
    server, sidecar = spec["containers"]
    assert sidecar == {"name": "sidecar", "image": "x"}
    assert server["env"] == [*before["containers"][0]["env"], {"name": "A", "value": "b"}]
    assert server["resources"] == {"limits": {"memory": "9Gi"}}
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert volumes["tmp"]["emptyDir"] == {"medium": "Memory"}
    assert set(volumes) == {one["name"] for one in before["volumes"]} | {"own"}
    assert template() == bare, "the merge leaves what it merges untouched"


def test_equal_pools_give_equal_objects_whatever_the_order() -> None:
    assert planned(world_of_pool((MODEL, ONE), (MODEL, TWO))) == planned(world_of_pool((MODEL, TWO), (MODEL, ONE)))


def test_a_status_write_of_a_member_changes_nothing() -> None:
    told = {**ONE, "status": {"size": "1 GB"}}
    assert planned(world_of_pool((MODEL, told))) == planned(world_of_pool((MODEL, ONE)))


def test_an_invalid_pool_has_no_plan() -> None:
    with pytest.raises(ValueError, match=r"ModelPool demo/shared is invalid: spec\.gpusPerPod"):
        plan(world_of_pool(gpusPerPod=0), {}, CONFIG, MASTER)


def test_holds_are_taken_by_key() -> None:
    pool = world_of_pool((MODEL, ONE), (MODEL, TWO))
    made = plan(pool, {Key("Model", "demo", "one"): Hold("X", "y")}, CONFIG, MASTER)
    assert [one.name for one in catalog_of(made).models] == ["two"]
    assert SERVER.image in str(made.objects[-1].obj)
