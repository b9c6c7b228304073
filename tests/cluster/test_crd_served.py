"""Model and ModelPool as a real API server serves them: examples, words of a refusal, defaults, updates."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_devcluster.cluster import Cluster
from tandem_testing.crd import Table, causes
from tandem_testing.crd_model import MODEL as MODEL_TABLE
from tandem_testing.crd_pool import POOL as POOL_TABLE
from tandem_testing.crd_shared import INVALID, OWN_PODS_ONLY
from tandem_testing.kube import Kube, Obj

pytestmark = pytest.mark.timeout(120)

NAMESPACE = "crd-served"
MODEL, POOL = (replace(table, namespace=NAMESPACE) for table in (MODEL_TABLE, POOL_TABLE))
each_kind = pytest.mark.parametrize("table", [MODEL, POOL], ids=lambda table: table.kind.name)
MERGE = "application/merge-patch+json"
EXAMPLES = sorted((Path(__file__).parents[2] / "manifests" / "examples").glob("*.yaml"))


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


def as_written(spec: Any) -> Any:
    """A type's own spec as a person would write it: without what is absent, and without empty lists and maps in it."""
    raw = spec.model_dump(by_alias=True, exclude_none=True, mode="json")
    return {key: value for key, value in raw.items() if value not in ([], {"labels": {}, "annotations": {}})}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_taken(kube: Kube, file: Path) -> None:
    command = ["apply", "--dry-run=server", "--validate=strict", "-n", MODEL.namespace, "-f", str(file)]
    told = kube.kubectl(*command)
    assert told.stderr == ""
    assert told.stdout.count("created (server dry run)") == len(list(yaml.safe_load_all(file.read_text())))


def test_what_kubectl_prints_of_a_refusal(kube: Kube) -> None:
    wrong = MODEL.object({"source": "ftp://a/b", "slots": 0, "pool": "p", "replicas": 1, "context": {"length": 128}})
    told = kube.kubectl("create", "-f", "-", text=yaml.safe_dump(wrong), check=False)
    assert told.returncode == 1
    for words in (
        'The Model "m" is invalid:',
        "* spec.slots: Invalid value: 0: spec.slots in body should be greater than or equal to 1",
        '* spec.source: Invalid value: "object": source must begin with hf://, pvc://, file://, s3://, gs:// or oci://',
        "* spec.replicas: Forbidden: replicas is for a Model with pods of its own; with pool set, the ModelPool's pods "
        "serve it: leave out replicas, or pool",
        '* spec.context.minLength: Invalid value: "object": context.minLength (256 when left out) must not be larger '
        "than context.length",
    ):
        assert words in told.stderr


@each_kind
def test_a_field_that_nobody_knows_is_named(kube: Kube, table: Table) -> None:
    wrong = table.object({**table.least, "sluts": 4, "scaling": {"mode": "Auto", "maximum": 1}})
    (told,) = table.refusals(kube, wrong)
    assert told.endswith('strict decoding error: unknown field "spec.scaling.maximum", unknown field "spec.sluts"')


@each_kind
def test_defaults_are_filled_in_and_are_the_types_own(kube: Kube, table: Table) -> None:
    live = create(kube, table, "defaults", {})["spec"]
    own = table.kind.spec.model_validate(table.least)
    assert table.kind.spec.model_validate(live) == own
    empty = {"podTemplate": {"metadata": {}}} if table is POOL else {}
    assert live == {**as_written(own), **empty}


@pytest.mark.parametrize(
    ("table", "written", "kept"),
    [
        (MODEL, {"context": {}}, {"context": {"length": "Auto", "minLength": 256}}),
        (MODEL, {"context": {"length": 256}}, {"context": {"length": 256, "minLength": 256}}),
        (MODEL, {"queue": None, "revision": None}, {"queue": {"max": 512, "timeoutSeconds": 300}}),
        (MODEL, {"resources": {}}, {"resources": {"gpus": 1}}),
        (MODEL, {"topology": {}}, {"topology": {"nodes": 1}}),
        (MODEL, {"pool": "p", "copies": {}}, {"copies": {"min": 0}}),
        (MODEL, {"engineArgs": [{"name": "a"}]}, {"engineArgs": [{"name": "a", "value": ""}]}),
        (MODEL, {"resources": {"cpu": 2}}, {"resources": {"cpu": 2, "gpus": 1}}),
        (POOL, {"rollout": {"maxUnavailable": 1}}, {"rollout": {"maxSurge": 1, "maxUnavailable": 1}}),
        (POOL, {"podTemplate": {"spec": {}}}, {"podTemplate": {"metadata": {}, "spec": {}}}),
    ],
)  # fmt: skip
def test_defaults_within_a_group(kube: Kube, table: Table, written: Obj, kept: Obj) -> None:
    spec = {**table.least, **written}
    live = kube.request("POST", f"{table.path}?dryRun=All", table.object(spec))["spec"]
    assert {name: live[name] for name in kept} == kept
    given = {name: value for name, value in spec.items() if value is not None}
    assert table.kind.spec.model_validate(live) == table.kind.spec.model_validate(given)


UPDATES: dict[str, tuple[Table, Obj, Obj, list[str]]] = {
    "into a pool": (MODEL, {}, {"pool": "p"}, []),
    "into a pool, with replicas": (
        MODEL, {"replicas": 2}, {"pool": "p"}, [OWN_PODS_ONLY.format("replicas")],
    ),
    "into a pool, with device and resources": (
        MODEL, {"device": "CPU", "resources": {}}, {"pool": "p"},
        [OWN_PODS_ONLY.format("device"),
         OWN_PODS_ONLY.format("resources")],
    ),
    "into a pool, replicas left out at once": (MODEL, {"replicas": 2}, {"pool": "p", "replicas": None}, []),
    "from pool to pool": (MODEL, {"pool": "p"}, {"pool": "q"}, []),
    "out of a pool": (MODEL, {"pool": "p"}, {"pool": None, "device": "CPU"}, []),
    "out of a pool, with copies": (
        MODEL, {"pool": "p", "copies": {"min": 1}}, {"pool": None},
        ["spec.copies: Forbidden: copies are for a Model with a pool; without one, set replicas"],
    ),
    "to another source, with the revision": (
        MODEL, {"revision": "main"}, {"source": "pvc://c/a"},
        ["spec.revision: Forbidden: revision is for hf:// sources only"],
    ),
    "to another source": (MODEL, {"revision": "main"}, {"source": "pvc://c/a", "revision": None}, []),
    "a context below the minimum": (
        MODEL, {"context": {"length": 4096, "minLength": 1024}}, {"context": {"length": 512}},
        [f"spec.context.minLength: {INVALID}context.minLength (256 when left out) must not be larger than "
         "context.length"],
    ),
    "Tandem scales, with replicas": (
        POOL, {"replicas": 2}, {"scaling": {"mode": "Auto"}},
        ["spec.replicas: Forbidden: with scaling.mode Auto Tandem decides on replicas: leave replicas out"],
    ),
    "Tandem scales": (POOL, {"replicas": 2}, {"scaling": {"mode": "Auto"}, "replicas": None}, []),
    "others scale, with bounds": (
        POOL, {"scaling": {"mode": "Auto", "max": 3}}, {"scaling": {"mode": "External"}},
        [f"spec.scaling.mode: {INVALID}min, max, targetUtilization and idleSecondsToZero are for mode Auto; with "
         "External, replicas says it all"],
    ),
    "another device": (POOL, {}, {"device": "CPU"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", UPDATES)
def test_updates(kube: Kube, name: str) -> None:
    table, before, change, told = UPDATES[name]
    unique = f"update-{list(UPDATES).index(name)}"
    create(kube, table, unique, before)
    answer = kube.attempt("PATCH", f"{table.path}/{unique}?dryRun=All", {"spec": change}, MERGE)
    assert causes(*answer) == told
