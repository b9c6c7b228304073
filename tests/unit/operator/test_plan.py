"""What should exist for a Model: tables of specs and what follows from them."""

import base64
import json
from typing import Any

import pytest

from tandem_api.catalog import Catalog
from tandem_api.keys import pool_key
from tandem_operator.config import ServerConfig
from tandem_operator.kinds import MODEL, OWNED, Obj
from tandem_operator.plan import plan
from tandem_testing.operator_world import CONFIG, KEY, MASTER, SERVER, UID, model, world


def planned(server: ServerConfig = SERVER, uid: str = UID, **spec: Any) -> dict[str, Obj]:
    pool = world((MODEL, model(uid=uid, **spec))).pool
    assert pool is not None
    result = plan(pool, {}, CONFIG.model_copy(update={"server": server}), MASTER)
    assert [one.kind for one in result.objects] == list(OWNED)
    return {one.kind.name: one.obj for one in result.objects}


def pod_of(objects: dict[str, Obj]) -> Obj:
    return objects["Deployment"]["spec"]["template"]["spec"]


def container(objects: dict[str, Obj]) -> Obj:
    (found,) = pod_of(objects)["containers"]
    return found


def digest(obj: Obj) -> str:
    return obj["metadata"]["annotations"]["tandem.dev/template-hash"]


def test_every_object_is_owned_by_the_model_and_named_after_it() -> None:
    for obj in planned().values():
        assert obj["metadata"]["name"] == "tandem-m-coder"
        assert obj["metadata"]["namespace"] == "demo"
        (owner,) = obj["metadata"]["ownerReferences"]
        assert owner["uid"] == UID
        assert owner["kind"] == "Model"
        assert owner["controller"] is True
        assert obj["metadata"]["labels"] == {
            "app.kubernetes.io/managed-by": "tandem",
            "app.kubernetes.io/component": "server",
            "tandem.dev/pool": "coder",
            "tandem.dev/pool-kind": "Model",
            "tandem.dev/pool-uid": UID,
        } | ({"tandem.dev/model-credentials": "own"} if obj["kind"] == "Secret" else {})


def test_equal_models_give_equal_objects() -> None:
    assert planned(slots=4) == planned(slots=4)


def test_the_catalog_says_what_the_model_says() -> None:
    objects = planned(
        slots=3, context={"length": 512}, queue={"max": 7}, aliases=["c:1"], defaults={"temperature": "0.5"}
    )
    catalog = Catalog.model_validate_json(objects["ConfigMap"]["data"]["catalog.json"])
    assert catalog.with_revision().revision == catalog.revision
    assert catalog.preload_of("any-pod") == ["coder"]
    found = catalog.find("c:1")
    assert found is not None
    assert (found.name, found.uid, found.slots, found.context.length, found.queue.max) == ("coder", UID, 3, 512, 7)
    assert found.defaults.temperature == "0.5"


def test_the_secret_holds_the_key_that_a_gateway_derives() -> None:
    secret = planned()["Secret"]
    assert secret["type"] == "Opaque"
    assert base64.b64decode(secret["data"]["key"]).decode() == pool_key(MASTER, UID)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"device": "CPU"}, None),
        ({"device": "CPU", "resources": {"gpus": 4}}, None),
        (
            {"device": "CPU", "resources": {"cpu": "500m", "memory": "2Gi"}},
            {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
        ),
        ({"device": "GPU"}, {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}),
        (
            {"device": "GPU", "resources": {"gpus": 2, "memory": "8Gi"}},
            {
                "requests": {"memory": "8Gi", "nvidia.com/gpu": "2"},
                "limits": {"memory": "8Gi", "nvidia.com/gpu": "2"},
            },
        ),
    ],
)
def test_resources(spec: dict[str, Any], expected: Obj | None) -> None:
    assert container(planned(**spec)).get("resources") == expected


@pytest.mark.parametrize(
    ("source", "claim"),
    [("pvc://weights/a/b", "weights"), ("pvc://weights", "weights"), ("hf://org/name", None)],
)
def test_a_claim_is_mounted_read_only(source: str, claim: str | None) -> None:
    objects = planned(source=source)
    claims = [one["persistentVolumeClaim"] for one in pod_of(objects)["volumes"] if "persistentVolumeClaim" in one]
    mounts = [one for one in container(objects)["volumeMounts"] if one["mountPath"].startswith("/models")]
    if claim is None:
        assert claims == mounts == []
    else:
        assert claims == [{"claimName": claim, "readOnly": True}]
        (mount,) = mounts
        assert (mount["mountPath"], mount["readOnly"]) == (f"/models/{claim}", True)
        assert mount["name"] in {one["name"] for one in pod_of(objects)["volumes"]}


def test_the_pod_meets_pod_security_restricted() -> None:
    objects = planned()
    pod, only = pod_of(objects), container(objects)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])


def test_the_contract_with_the_server() -> None:
    only = container(planned())
    values = {one["name"]: one.get("value") for one in only["env"]}
    assert values["TANDEM_CATALOG"] == "/etc/tandem/catalog/catalog.json"
    assert values["TANDEM_POOL_KEY_FILE"] == "/etc/tandem/pool-key/key"
    assert values["TANDEM_DEVICE"] == "CPU"
    assert values["TANDEM_DRAIN_SECONDS"] == "590"
    assert values["HF_HOME"].startswith(values["TANDEM_CACHE"])
    (name,) = [one for one in only["env"] if one["name"] == "TANDEM_POD_NAME"]
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    ports = {one["name"]: one["containerPort"] for one in only["ports"]}
    assert ports == {"http": 8080, "internal": 8081, "health": 8082}
    writable = {one["mountPath"] for one in only["volumeMounts"] if not one.get("readOnly")}
    assert writable == {"/tmp", "/var/cache/tandem"}
    assert all("subPath" not in one for one in only["volumeMounts"])


def test_settings_of_the_operator_reach_the_pod_but_cannot_replace_the_contract() -> None:
    server = ServerConfig(
        image="registry/x:1",
        command=["/venv/python", "-m", "tandem_server"],
        env=[{"name": "PYTHONPATH", "value": "/src"}, {"name": "TANDEM_DEVICE", "value": "GPU"}],
        extra_volumes=[{"name": "venv", "persistentVolumeClaim": {"claimName": "venv"}}],
        extra_volume_mounts=[{"name": "venv", "mountPath": "/venv", "readOnly": True}],
        node_selector={"kind": "gpu"},
        tolerations=[{"operator": "Exists"}],
        image_pull_secrets=[{"name": "pull"}],
    )
    objects = planned(server)
    only, pod = container(objects), pod_of(objects)
    assert (only["image"], only["command"]) == ("registry/x:1", ["/venv/python", "-m", "tandem_server"])
    assert [one.get("value") for one in only["env"] if one["name"] == "TANDEM_DEVICE"] == ["CPU"]
    assert {"name": "PYTHONPATH", "value": "/src"} in only["env"]
    assert server.extra_volumes[0] in pod["volumes"]
    assert server.extra_volume_mounts[0] in only["volumeMounts"]
    assert pod["nodeSelector"] == {"kind": "gpu"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]


def test_the_rollout_never_has_fewer_pods_than_asked_for() -> None:
    spec = planned(replicas=3)["Deployment"]["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 600
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


CATALOG_ONLY = [
    {"slots": 8},
    {"context": {"length": 64}},
    {"queue": {"max": 1}},
    {"aliases": ["x"]},
    {"dtype": "Float32"},
]


@pytest.mark.parametrize("spec", CATALOG_ONLY, ids=lambda spec: next(iter(spec)))
def test_a_change_of_the_catalog_alone_does_not_touch_the_deployment(spec: dict[str, Any]) -> None:
    before, after = planned(), planned(**spec)
    assert digest(before["ConfigMap"]) != digest(after["ConfigMap"])
    assert before["Deployment"] == after["Deployment"]


@pytest.mark.parametrize("spec", [{"replicas": 2}, {"device": "GPU"}, {"resources": {"memory": "3Gi"}}])
def test_a_change_of_the_pods_alone_does_not_touch_the_catalog(spec: dict[str, Any]) -> None:
    before, after = planned(), planned(**spec)
    assert before["ConfigMap"] == after["ConfigMap"]
    assert digest(before["Deployment"]) != digest(after["Deployment"])


def test_a_model_made_anew_does_not_adopt_pods_of_its_namesake() -> None:
    one, other = planned(), planned(uid="other")
    assert one["Deployment"]["spec"]["selector"] != other["Deployment"]["spec"]["selector"]
    assert one["Secret"]["data"] != other["Secret"]["data"]


def test_an_invalid_model_has_no_plan() -> None:
    observed = world((MODEL, model(slots=0)))
    assert observed.member.spec is None
    assert observed.member.invalid.startswith("spec.slots")
    assert observed.pool is not None
    with pytest.raises(ValueError, match=f"{KEY} is invalid: spec.slots"):
        plan(observed.pool, {}, CONFIG, MASTER)


def test_objects_are_json() -> None:
    for obj in planned().values():
        assert json.loads(json.dumps(obj)) == obj
