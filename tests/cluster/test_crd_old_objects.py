"""Objects that were stored under an earlier CRD: they gain new defaults, and rules that came later do not lock them up.

The CRD is installed under a group of its own, first as an early version knew it and then as it is now.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tandem_api.crd import KINDS, crd_of
from tandem_api.model import ModelSpec
from tandem_api.names import GROUP
from tandem_devcluster.cluster import Cluster
from tandem_testing.crd import causes
from tandem_testing.kube import Kube, Obj, eventually

pytestmark = pytest.mark.timeout(120)

OLD_GROUP = "old.example"
PATH = f"/apis/{OLD_GROUP}/v1alpha1/namespaces/default/models"
MERGE = "application/merge-patch+json"
EARLY_FIELDS = ("source", "revision", "aliases", "context", "slots", "queue", "device", "replicas")
STORED: dict[str, Obj] = {
    "plain": {"source": "hf://a/b", "aliases": ["a"]},
    "against-a-rule": {"source": "ftp://a/b"},
    "against-a-bound": {"source": "hf://a/b", "slots": 2000},
}
SCHEME = 'spec.source: Invalid value: "object": source must begin with hf://, pvc://, file://, s3://, gs:// or oci://'


def crd() -> Obj:
    made: Obj = json.loads(json.dumps(crd_of(KINDS[0])).replace(GROUP, OLD_GROUP))
    return made


def without_rules(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: without_rules(value) for key, value in node.items() if key != "x-kubernetes-validations"}
    return [without_rules(one) for one in node] if isinstance(node, list) else node


def early_crd() -> Obj:
    """Fewer fields, no rule between them, and slots without a largest number."""
    made: Obj = without_rules(crd())
    spec = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"] = {name: spec["properties"][name] for name in EARLY_FIELDS}
    del spec["properties"]["slots"]["maximum"]
    return made


def install(kube: Kube, made: Obj) -> None:
    kube.kubectl("apply", "--server-side", "-f", "-", text=yaml.safe_dump(made))
    kube.kubectl("wait", "--for=condition=Established", f"crd/{made['metadata']['name']}", "--timeout=30s")


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """The API server after the upgrade, with what was stored before it."""
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    install(made, early_crd())
    for name, spec in STORED.items():
        metadata = {"name": name, "namespace": "default"}
        obj = {"apiVersion": f"{OLD_GROUP}/v1alpha1", "kind": "Model", "metadata": metadata, "spec": spec}
        early = made.request("POST", PATH, obj)
        assert "kvCache" not in early["spec"]
    install(made, crd())
    asyncio.run(eventually("the new CRD is served", lambda: "kvCache" in made.request("GET", f"{PATH}/plain")["spec"]))
    yield made
    made.kubectl("delete", "crd", crd()["metadata"]["name"], "--wait=false")
    made.close()


def patched(kube: Kube, name: str, change: Obj, subresource: str = "") -> list[str]:
    return causes(*kube.attempt("PATCH", f"{PATH}/{name}{subresource}", change, MERGE))


def test_new_fields_read_as_their_defaults(kube: Kube) -> None:
    live = kube.request("GET", f"{PATH}/plain")["spec"]
    assert ModelSpec.model_validate(live) == ModelSpec(source="hf://a/b", aliases=["a"])
    assert live["kvCache"] == {"policy": "Guaranteed", "dtype": "Auto"}
    assert "pool" not in live


def test_what_the_type_says_of_them(kube: Kube) -> None:
    """A bound is known to the type, so the operator says Invalid; a rule is the API server's alone."""
    assert ModelSpec.model_validate(kube.request("GET", f"{PATH}/against-a-rule")["spec"]).source == "ftp://a/b"
    with pytest.raises(ValueError, match="less than or equal to 1024"):
        ModelSpec.model_validate(kube.request("GET", f"{PATH}/against-a-bound")["spec"])


@pytest.mark.parametrize("name", STORED)
def test_status_labels_and_unchanged_parts_can_be_written(kube: Kube, name: str) -> None:
    """The operator must be able to say what is wrong with an object that would be refused today."""
    ready = {"type": "Ready", "status": "False", "reason": "Invalid", "message": "It is wrong."}
    assert patched(kube, name, {"status": {"conditions": [ready]}}, "/status") == []
    assert patched(kube, name, {"metadata": {"labels": {"a": "b"}}}) == []
    assert patched(kube, name, {"spec": {"source": STORED[name]["source"]}}) == []


def test_the_first_change_of_a_spec_must_mend_it(kube: Kube) -> None:
    change = {"spec": {"queue": {"max": 1}}}
    assert patched(kube, "plain", change) == []
    assert patched(kube, "against-a-rule", change) == [SCHEME]
    assert patched(kube, "against-a-rule", {"spec": {**change["spec"], "source": "hf://a/b"}}) == []


def test_a_bound_that_came_later_is_asked_of_the_field_alone(kube: Kube) -> None:
    assert patched(kube, "against-a-bound", {"spec": {"queue": {"max": 1}}}) == []
    assert patched(kube, "against-a-bound", {"spec": {"slots": 1999}}) == [
        "spec.slots: Invalid value: 1999: spec.slots in body should be less than or equal to 1024"
    ]
    assert patched(kube, "against-a-bound", {"spec": {"slots": 1024}}) == []
