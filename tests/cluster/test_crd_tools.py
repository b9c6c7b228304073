"""Model and ModelPool through the tools of Kubernetes: scale, explain, columns, and several writers of one object."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml

from tandem_devcluster.cluster import Cluster
from tandem_testing.crd import Table
from tandem_testing.crd_model import MODEL as MODEL_TABLE
from tandem_testing.crd_pool import POOL as POOL_TABLE
from tandem_testing.crd_shared import OWN_PODS_ONLY
from tandem_testing.kube import Kube, Obj

pytestmark = pytest.mark.timeout(120)

NAMESPACE = "crd-tools"
MODEL, POOL = (replace(table, namespace=NAMESPACE) for table in (MODEL_TABLE, POOL_TABLE))
each_kind = pytest.mark.parametrize("table", [MODEL, POOL], ids=lambda table: table.kind.name)
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    made.kubectl("create", "namespace", NAMESPACE)
    yield made
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    made.close()


def create(kube: Kube, table: Table, name: str, spec: Obj) -> Obj:
    return kube.request("POST", table.path, table.object({**table.least, **spec}, name))


def one_line(text: str) -> str:
    return " ".join(text.split())


@each_kind
def test_scale(kube: Kube, table: Table) -> None:
    """What kubectl scale, an HPA and KEDA use."""
    create(kube, table, "scaled", {"replicas": 1})
    kube.kubectl("scale", table.kind.plural, "scaled", "-n", table.namespace, "--replicas=3")
    assert kube.request("GET", f"{table.path}/scaled")["spec"]["replicas"] == 3
    status = {"status": {"replicas": 2, "selector": "tandem.dev/pool=scaled"}}
    kube.request("PATCH", f"{table.path}/scaled/status", status, MERGE)
    scale = kube.request("GET", f"{table.path}/scaled/scale")
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "tandem.dev/pool=scaled"}


@each_kind
def test_scale_where_replicas_are_left_out(kube: Kube, table: Table) -> None:
    """kubectl scale writes them; an HPA reads first and cannot, which is why the description says to set them once."""
    create(kube, table, "unscaled", {})
    status, told = kube.attempt("GET", f"{table.path}/unscaled/scale")
    assert status == 500
    assert 'the spec replicas field ".spec.replicas" does not exist' in told["message"]
    kube.kubectl("scale", table.kind.plural, "unscaled", "-n", table.namespace, "--replicas=0")
    assert kube.request("GET", f"{table.path}/unscaled/scale")["spec"] == {}, "0 is left out of a Scale"


@pytest.mark.parametrize(
    ("table", "spec", "told"),
    [
        (MODEL, {"pool": "p"}, OWN_PODS_ONLY.format("replicas")),
        (MODEL, {"scaling": {"mode": "Auto"}}, "with scaling.mode Auto Tandem decides on replicas: leave replicas out"),
        (POOL, {"scaling": {"mode": "Auto"}}, "with scaling.mode Auto Tandem decides on replicas: leave replicas out"),
    ],
    ids=["pooled", "Model", "ModelPool"],
)
def test_scale_keeps_the_rules(kube: Kube, table: Table, spec: Obj, told: str) -> None:
    name = f"fixed-{len(spec)}-{'pool' in spec}".lower()
    create(kube, table, name, spec)
    command = ["scale", table.kind.plural, name, "-n", table.namespace, "--replicas=3"]
    result = kube.kubectl(*command, check=False)
    assert result.returncode == 1
    assert told in result.stderr


def test_explain_reads_like_documentation(kube: Kube) -> None:
    told = one_line(kube.kubectl("explain", "model.spec").stdout)
    for field, node in MODEL.schema.items():
        if "." not in field and "[" not in field:
            assert node["description"] in told, field
    assert "enum: Shrink, Fail" in kube.kubectl("explain", "model.spec.context").stdout
    pool = one_line(kube.kubectl("explain", "modelpool.spec.podTemplate").stdout)
    assert "The server's container is named server." in pool
    conditions = one_line(kube.kubectl("explain", "models.status.conditions").stdout)
    assert "reason of the status in one word, for programs." in conditions


STATUS: dict[str, Obj] = {
    "Model": {
        "readyReplicas": 1, "size": "12 MB", "processor": "100% CPU", "context": 2048, "slots": "3/4",
        "until": "in use", "queued": 7, "rejected": 2,
    },
    "ModelPool": {"readyReplicas": 2, "models": 5, "loaded": 3, "memory": "60 GB/141 GB", "queued": 7, "rejected": 2},
}  # fmt: skip
ROWS = {
    "Model": (
        "NAME READY REPLICAS SIZE PROCESSOR CONTEXT SLOTS UNTIL AGE",
        "columns True 1 12 MB 100% CPU 2048 3/4 in use ",
        "NAME READY REPLICAS SIZE PROCESSOR CONTEXT SLOTS UNTIL QUEUE REJECTED POOL REASON AGE",
        "columns True 1 12 MB 100% CPU 2048 3/4 in use 7 2 shared Loaded ",
    ),
    "ModelPool": (
        "NAME READY REPLICAS DEVICE MODELS LOADED MEMORY AGE",
        "columns True 2 GPU 5 3 60 GB/141 GB ",
        "NAME READY REPLICAS DEVICE MODELS LOADED MEMORY QUEUE REJECTED REASON AGE",
        "columns True 2 GPU 5 3 60 GB/141 GB 7 2 Loaded ",
    ),
}


@each_kind
def test_columns_narrow_and_wide(kube: Kube, table: Table) -> None:
    create(kube, table, "columns", {"pool": "shared"} if table is MODEL else {})
    ready = {"type": "Ready", "status": "True", "reason": "Loaded", "message": "1 of 1."}
    status = {"status": {**STATUS[table.kind.name], "conditions": [ready]}}
    kube.request("PATCH", f"{table.path}/columns/status", status, MERGE)
    head, row, wide_head, wide_row = ROWS[table.kind.name]
    narrow = kube.kubectl("get", table.kind.plural, "columns", "-n", table.namespace).stdout.splitlines()
    assert one_line(narrow[0]) == head
    assert one_line(narrow[1]).startswith(row)
    wide = kube.kubectl("get", table.kind.plural, "columns", "-n", table.namespace, "-o", "wide").stdout.splitlines()
    assert one_line(wide[0]) == wide_head
    assert one_line(wide[1]).startswith(wide_row)


def test_both_kinds_at_once(kube: Kube) -> None:
    for table in (MODEL, POOL):
        create(kube, table, "both", {})
    for what in ("models,modelpools", "tandem"):
        told = kube.kubectl("get", what, "-n", MODEL.namespace, "-o", "name").stdout.splitlines()
        assert {"model.tandem.dev/both", "modelpool.tandem.dev/both"} <= set(told), what


@each_kind
def test_spec_and_status_have_writers_of_their_own(kube: Kube, table: Table) -> None:
    made = kube.request("POST", table.path, {**table.object(table.least, "honest"), "status": {"replicas": 9}})
    assert "status" not in made
    mixed = {"status": {"replicas": 9}, "spec": {"replicas": 9}}
    by_person = kube.request("PATCH", f"{table.path}/honest", mixed, MERGE)
    assert "status" not in by_person
    mixed["spec"] = {"replicas": 1}
    by_operator = kube.request("PATCH", f"{table.path}/honest/status", mixed, MERGE)
    assert (by_operator["spec"]["replicas"], by_operator["status"]["replicas"]) == (9, 9)
    assert by_operator["metadata"]["generation"] == by_person["metadata"]["generation"], "a status is no new generation"


def apply(kube: Kube, obj: Obj, manager: str, *more: str) -> str:
    command = ["apply", "--server-side", "--field-manager", manager, *more, "-f", "-"]
    result = kube.kubectl(*command, text=yaml.safe_dump(obj), check=False)
    return result.stderr if result.returncode else ""


SHARED_LISTS: dict[str, tuple[Table, str, Obj, Obj, Obj]] = {
    "adapters": (MODEL, "name", {"name": "a", "source": "hf://a/a"}, {"name": "b", "source": "hf://a/b"}, {"source": "hf://a/c"}),
    "engineArgs": (MODEL, "name", {"name": "a", "value": "1"}, {"name": "b", "value": "1"}, {"value": "2"}),
    "volumes": (POOL, "claim", {"claim": "a"}, {"claim": "b"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("field", SHARED_LISTS)
def test_two_managers_of_one_list(kube: Kube, field: str) -> None:
    """Each has its entries: what the one leaves out goes, and what the other has stays."""
    table, key, first, second, otherwise = SHARED_LISTS[field]
    name = f"shared-{field}".lower()

    def wanting(*entries: Obj) -> Obj:
        return table.object({**table.least, field: list(entries)}, name)

    def live() -> list[str]:
        return sorted(one[key] for one in kube.request("GET", f"{table.path}/{name}")["spec"].get(field, []))

    assert apply(kube, wanting(first), "alice") == ""
    assert apply(kube, wanting(second), "bob") == ""
    assert live() == ["a", "b"]
    if otherwise:
        conflict = apply(kube, wanting(second, {**first, **otherwise}), "bob")
        assert 'conflict with "alice"' in conflict
        assert f'.spec.{field}[{key}="a"].{next(iter(otherwise))}' in conflict
    assert apply(kube, wanting(), "alice") == ""
    assert live() == ["b"]


def test_two_managers_of_one_set(kube: Kube) -> None:
    for manager, aliases in (("alice", ["a", "both"]), ("bob", ["b", "both"]), ("alice", [])):
        assert apply(kube, MODEL.object({**MODEL.least, "aliases": aliases}, "shared-aliases"), manager) == ""
    assert sorted(kube.request("GET", f"{MODEL.path}/shared-aliases")["spec"]["aliases"]) == ["b", "both"]


@each_kind
def test_two_managers_of_conditions(kube: Kube, table: Table) -> None:
    """Somebody else's condition outlives the operator's status writes."""
    create(kube, table, "conditions", {})

    def told(kind: str) -> Obj:
        condition = {"type": kind, "status": "True", "reason": "So", "message": "It is so."}
        status = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        bare = {key: value for key, value in table.object({}, "conditions").items() if key != "spec"}
        return {**bare, "status": status}

    for manager, kind in (("operator", "Ready"), ("auditor", "Audited"), ("operator", "Loaded")):
        assert apply(kube, told(kind), manager, "--subresource=status") == ""
    conditions = kube.request("GET", f"{table.path}/conditions")["status"]["conditions"]
    assert sorted(one["type"] for one in conditions) == ["Audited", "Loaded"]


@each_kind
def test_the_crd_can_be_applied_again(kube: Kube, table: Table) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{table.kind.plural}.tandem.dev"
    before = kube.request("GET", path)["metadata"]["generation"]
    kube.install_crd()
    assert kube.request("GET", path)["metadata"]["generation"] == before
