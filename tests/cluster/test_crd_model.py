"""The CustomResourceDefinition of Model on a real API server: what is taken, what is refused and in which words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_api.model import ModelSpec
from tandem_devcluster.cluster import Cluster
from tandem_testing.kube import Kube, Obj

pytestmark = pytest.mark.timeout(120)

NAMESPACE = "crd-test"
EXAMPLES = sorted((Path(__file__).parents[2] / "manifests" / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    made.kubectl("create", "namespace", NAMESPACE)
    yield made
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    made.close()


def manifest(name: str = "m", **spec: Any) -> Obj:
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"source": "hf://org/name", **spec},
    }


def create(kube: Kube, obj: Obj) -> tuple[int, str]:
    """What a strict server-side dry run says: kubectl's own way to create."""
    command = ["create", "--dry-run=server", "--validate=strict", "-f", "-"]
    result = kube.kubectl(*command, text=yaml.safe_dump(obj), check=False)
    return result.returncode, result.stderr


VALID: dict[str, Obj] = {
    "the least": manifest(),
    "a claim": manifest(source="pvc://weights/a/b_c.d"),
    "a claim's root": manifest(source="pvc://weights"),
    "the longest name": manifest("a" * 40),
    "everything": manifest(
        revision="refs/pr/1",
        task="Generate",
        aliases=["qwen3:0.6b", "Org/Name"],
        context={"length": 4096, "minLength": 4096, "whenShort": "Fail"},
        slots=16,
        queue={"max": 0, "timeoutSeconds": 1},
        scheduling="Plain",
        dtype="BFloat16",
        defaults={"temperature": "0.7", "topP": "0.95", "topK": 40, "maxTokens": 100},
        device="CPU",
        resources={"gpus": 2, "cpu": "500m", "memory": "8Gi"},
        replicas=0,
    ),
    "Auto": manifest(slots="Auto", context={"length": "Auto", "minLength": 100000}),
}


@pytest.mark.parametrize("name", VALID)
def test_taken(kube: Kube, name: str) -> None:
    code, told = create(kube, VALID[name])
    assert (code, told) == (0, "")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_taken(kube: Kube, file: Path) -> None:
    obj = yaml.safe_load(file.read_text())
    obj["metadata"]["namespace"] = NAMESPACE
    assert create(kube, obj) == (0, "")


REFUSED: dict[str, tuple[Obj, str]] = {
    "no source": (
        {**manifest(), "spec": {}},
        "spec.source: Required value",
    ),
    "no spec": ({key: value for key, value in manifest().items() if key != "spec"}, "spec: Required value"),
    "another scheme": (
        manifest(source="s3://bucket/x"),
        'spec.source: Invalid value: "object": source must begin with hf:// or pvc://',
    ),
    "a local path": (manifest(source="/etc/passwd"), "source must begin with hf:// or pvc://"),
    "hf without organisation": (manifest(source="hf://name"), "an hf:// source is hf://organisation/name"),
    "hf too deep": (manifest(source="hf://a/b/c"), "an hf:// source is hf://organisation/name"),
    "pvc upwards": (
        manifest(source="pvc://claim/../x"),
        "a pvc:// source is pvc://claim or pvc://claim/folder, without . or .. in its path",
    ),
    "pvc upwards at the end": (manifest(source="pvc://claim/a/.."), "without . or .. in its path"),
    "pvc in place": (manifest(source="pvc://claim/./x"), "without . or .. in its path"),
    "pvc in place at the end": (manifest(source="pvc://claim/."), "without . or .. in its path"),
    "pvc with a bad claim": (manifest(source="pvc://Claim/x"), "a pvc:// source is pvc://claim"),
    "revision of a claim": (
        manifest(source="pvc://c/x", revision="main"),
        'spec.revision: Invalid value: "object": revision is for hf:// sources only',
    ),
    "revision with a space": (manifest(revision="a b"), "spec.revision: Invalid value"),
    "slots zero": (
        manifest(slots=0),
        "spec.slots: Invalid value: 0: spec.slots in body should be greater than or equal",
    ),
    "slots a word": (manifest(slots="Many"), "spec.slots in body should match '^Auto$'"),
    "slots a fraction": (manifest(slots=1.5), "spec.slots"),
    "context too short": (manifest(context={"length": 1}), "spec.context.length in body should be greater than"),
    "context below its minimum": (
        manifest(context={"length": 128, "minLength": 256}),
        'spec.context.minLength: Invalid value: "object": context.minLength must not be larger than context.length',
    ),
    "a queue below zero": (manifest(queue={"max": -1}), "spec.queue.max in body should be greater than or equal to 0"),
    "an unknown task": (manifest(task="Dance"), 'spec.task: Unsupported value: "Dance": supported values: "Auto"'),
    "an unknown device": (manifest(device="TPU"), 'supported values: "GPU", "CPU"'),
    "a temperature as a number": (manifest(defaults={"temperature": 0.7}), 'must be of type string: "number"'),
    "a temperature in words": (manifest(defaults={"temperature": "hot"}), "spec.defaults.temperature in body should"),
    "memory without sense": (manifest(resources={"memory": "lots"}), "spec.resources.memory in body should match"),
    "no GPUs": (manifest(resources={"gpus": 0}), "spec.resources.gpus in body should be greater than or equal to 1"),
    "an alias twice": (manifest(aliases=["a", "a"]), "spec.aliases[1]: Duplicate value"),
    "too many aliases": (manifest(aliases=[f"a{n}" for n in range(17)]), "spec.aliases: Too many: 17"),
    "an alias with a space": (manifest(aliases=["a b"]), "spec.aliases[0] in body should match"),
    "negative replicas": (manifest(replicas=-1), "spec.replicas in body should be greater than or equal to 0"),
    "a long name": (manifest("a" * 41), "a Model's name has at most 40 characters"),
    "a name with a dot": (manifest("a.b"), "a Model's name has lower-case letters, digits and '-' only"),
    "an unknown field": (manifest(sluts=4), 'unknown field "spec.sluts"'),
    "a field of a later version": (manifest(pool="p"), 'unknown field "spec.pool"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(kube: Kube, name: str) -> None:
    obj, words = REFUSED[name]
    code, told = create(kube, obj)
    assert code == 1
    assert words in told


ONLY_BY_RULE = {
    "another scheme", "a local path", "hf without organisation", "hf too deep", "pvc upwards",
    "pvc upwards at the end", "pvc in place", "pvc in place at the end", "pvc with a bad claim",
    "revision of a claim", "context below its minimum", "an alias twice", "a long name", "a name with a dot", "no spec",
}  # fmt: skip
"""Refused by a rule between fields or of the object, which only the API server knows."""


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ONLY_BY_RULE])
def test_the_types_refuse_what_the_schema_refuses(name: str) -> None:
    """What slips past an older schema must not pass the operator silently: pydantic says no as well."""
    with pytest.raises(ValueError):
        ModelSpec.model_validate(REFUSED[name][0]["spec"])


def test_defaults_are_filled_in_and_are_the_types_own(kube: Kube) -> None:
    live = kube.request("POST", f"/apis/tandem.dev/v1alpha1/namespaces/{NAMESPACE}/models", manifest("defaults"))
    assert live["spec"]["queue"] == {"max": 512, "timeoutSeconds": 300}
    assert live["spec"]["device"] == "GPU"
    assert "replicas" not in live["spec"]
    assert ModelSpec.model_validate(live["spec"]) == ModelSpec(source="hf://org/name")


def test_kubectl_explain_reads_like_documentation(kube: Kube) -> None:
    told = kube.kubectl("explain", "model.spec.context").stdout
    assert "whenShort" in told
    assert "enum: Shrink, Fail" in told
    assert "slots is how many requests run at once" in " ".join(
        kube.kubectl("explain", "models.spec.slots").stdout.split()
    )


def test_columns_read_like_ollama_ps(kube: Kube) -> None:
    path = f"/apis/tandem.dev/v1alpha1/namespaces/{NAMESPACE}/models"
    kube.request("POST", path, manifest("columns", source="pvc://a/b"))
    status = {
        "conditions": [{"type": "Ready", "status": "True", "reason": "Loaded", "message": "1 of 1."}],
        "readyReplicas": 1, "size": "12 MB", "processor": "100% CPU", "context": 2048, "slots": "3/4",
        "until": "in use", "queued": 7, "rejected": 2,
    }  # fmt: skip
    kube.request("PATCH", f"{path}/columns/status", {"status": status}, "application/merge-patch+json")
    narrow = kube.kubectl("get", "models", "columns", "-n", NAMESPACE).stdout.splitlines()
    assert " ".join(narrow[0].split()) == "NAME READY REPLICAS SIZE PROCESSOR CONTEXT SLOTS UNTIL AGE"
    assert " ".join(narrow[1].split()).startswith("columns True 1 12 MB 100% CPU 2048 3/4 in use ")
    wide = kube.kubectl("get", "models", "columns", "-n", NAMESPACE, "-o", "wide").stdout.splitlines()
    more = "NAME READY REPLICAS SIZE PROCESSOR CONTEXT SLOTS UNTIL QUEUE REJECTED REASON AGE"
    assert " ".join(wide[0].split()) == more
    assert " 7 2 Loaded " in " ".join(wide[1].split())
    assert "columns" in kube.kubectl("get", "tandem", "-n", NAMESPACE).stdout


def test_a_person_cannot_write_the_status_with_the_spec(kube: Kube) -> None:
    path = f"/apis/tandem.dev/v1alpha1/namespaces/{NAMESPACE}/models"
    live = kube.request("POST", path, {**manifest("honest"), "status": {"size": "huge"}})
    assert "status" not in live


def test_kubectl_scale(kube: Kube) -> None:
    path = f"/apis/tandem.dev/v1alpha1/namespaces/{NAMESPACE}/models"
    kube.request("POST", path, manifest("scaled", replicas=1))
    kube.kubectl("scale", "model", "scaled", "-n", NAMESPACE, "--replicas=3")
    found = kube.find(f"{path}/scaled")
    assert found is not None
    assert found["spec"]["replicas"] == 3


def test_the_crd_can_be_applied_again(kube: Kube) -> None:
    before = kube.find("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/models.tandem.dev")
    assert before is not None
    kube.install_crd()
    after = kube.find("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/models.tandem.dev")
    assert after is not None
    assert before["metadata"]["generation"] == after["metadata"]["generation"]
