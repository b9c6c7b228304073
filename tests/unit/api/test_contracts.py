"""The contracts that all pieces share: what one writes the other reads, and equal things give equal bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tandem_api.catalog import Catalog, CatalogModel
from tandem_api.crd import KINDS, CustomKind, crd_of, crd_yaml
from tandem_api.keys import bearer_matches, pool_key
from tandem_api.model import ModelSpec
from tandem_api.names import owned_name
from tandem_api.report import ModelReport, ModelState, Report
from tandem_api.schema import structural

ROOT = Path(__file__).parents[3]


each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@each_kind
def test_the_chart_and_the_plain_manifests_hold_the_crd_of_the_types(kind: CustomKind) -> None:
    template = (ROOT / f"charts/tandem/templates/crd-{kind.plural}.yaml").read_text().splitlines()
    kept = [line for line in template if not line.startswith("{{-")]
    chart = yaml.safe_load("\n".join(kept))
    assert chart["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert chart == yaml.safe_load(crd_yaml(kind)) == crd_of(kind), "run make generate"
    plain = [one for one in yaml.safe_load_all((ROOT / "manifests/tandem.yaml").read_text()) if one]
    found = [one for one in plain if one["kind"] == "CustomResourceDefinition"]
    (found,) = [one for one in found if one["spec"]["names"]["kind"] == kind.name]
    del found["metadata"]["annotations"]
    assert found == crd_of(kind), "run make generate"


def walk(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, value in schema.get("properties", {}).items():
        found += walk(value, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            found += walk(schema[inner], f"{path}[]")
    return found


def schema_of(kind: CustomKind, part: str) -> dict[str, Any]:
    schema: dict[str, Any] = crd_of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    return schema


@each_kind
def test_every_field_of_the_spec_is_bounded_and_described(kind: CustomKind) -> None:
    for path, schema in walk(schema_of(kind, "spec")):
        if path and not path.endswith("[]"):
            assert schema.get("description"), path
        if schema.get("type") == "string" and "enum" not in schema:
            assert "maxLength" in schema, path
        if schema.get("x-kubernetes-int-or-string"):
            assert "maxLength" in schema or schema["pattern"] == "^Auto$", path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path
        if schema.get("type") == "integer" or schema.get("x-kubernetes-int-or-string"):
            assert {"minimum", "maximum"} <= set(schema), path
        assert schema.get("type") != "number", f"{path}: no floats in a spec"


@each_kind
@pytest.mark.parametrize("part", ["spec", "status"])
def test_descriptions_begin_with_the_fields_name_and_say_what_each_value_does(kind: CustomKind, part: str) -> None:
    for path, schema in walk(schema_of(kind, part)):
        name, words = path.rsplit(".", 1)[-1], schema.get("description", "")
        if name and not name.endswith("[]"):
            assert words.split(maxsplit=1)[0] == name, f"{path}: {words}"
            assert words.endswith("."), f"{path}: {words}"
            assert [value for value in schema.get("enum", ()) if value not in words] == [], f"{path}: {words}"


@each_kind
def test_rules_are_told_in_sentences_without_cel(kind: CustomKind) -> None:
    for path, schema in [*walk(schema_of(kind, "spec"))]:
        for rule in schema.get("x-kubernetes-validations", ()):
            assert "self." not in rule["message"], path
            assert rule["fieldPath"].startswith("."), f"{path}: {rule['message']} names no field"


@each_kind
def test_the_status_has_no_defaults_and_no_field_of_it_is_required(kind: CustomKind) -> None:
    schema = schema_of(kind, "status")
    assert "required" not in schema
    assert all("default" not in part for _, part in walk(schema))
    conditions = schema["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_a_union_that_no_structural_schema_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the union"):
        structural({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {})


def test_unknown_fields_are_refused_in_a_spec_and_ignored_in_what_pieces_send() -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate({"source": "hf://a/b", "sluts": 4})
    assert Report.model_validate({"pod": "p", "version": "1", "future": True}).pod == "p"


def test_equal_catalogs_have_equal_bytes_and_different_ones_different_revisions() -> None:
    def made(**more: Any) -> Catalog:
        model = CatalogModel(name="m", source="hf://a/b", **more)
        return Catalog(namespace="n", pool="m", models=[model], preload={"*": ["m"]}).with_revision()

    assert made().to_json() == made().to_json()
    assert made().revision != made(slots=2).revision
    again = Catalog.model_validate_json(made(slots=2).to_json())
    assert again == made(slots=2)
    assert again.with_revision() == again


def test_a_catalog_of_a_newer_operator_is_read_as_far_as_it_is_known() -> None:
    made = Catalog(models=[CatalogModel(name="m", source="hf://a/b")])
    raw = json.loads(made.to_json())
    raw["models"][0]["context"]["future"] = raw["models"][0]["future"] = raw["future"] = 1
    assert Catalog.read(json.dumps(raw)) == made


def test_a_catalog_holds_what_pods_read_and_not_what_only_the_operator_reads() -> None:
    spec = ModelSpec.model_validate({"source": "hf://a/b", "slots": 2, "replicas": 7, "keepAlive": "5m"})
    entry = CatalogModel.of("m", "uid", spec).model_dump(by_alias=True)
    assert (entry["slots"], entry["keepAlive"], entry["uid"]) == (2, "5m", "uid")
    assert "replicas" not in entry


@pytest.mark.parametrize(
    ("asked", "found"),
    [("m", True), ("m:latest", True), ("alias:1", True), ("alias:1:latest", True), ("other", False), ("", False)],
)
def test_names_in_a_catalog(asked: str, found: bool) -> None:
    catalog = Catalog(models=[CatalogModel(name="m", source="hf://a/b", aliases=["alias:1"])])
    assert (catalog.find(asked) is not None) == found


def test_a_catalog_may_preload_by_pod_and_for_all() -> None:
    catalog = Catalog(preload={"*": ["a"], "pod-1": ["b"]})
    assert (catalog.preload_of("pod-1"), catalog.preload_of("pod-2")) == (["b"], ["a"])


def test_pool_keys() -> None:
    master = b"0123456789abcdef"
    assert pool_key(master, "a") != pool_key(master, "b")
    assert pool_key(master, "a") != pool_key(master + b"0", "a")
    with pytest.raises(ValueError, match="has 3 bytes"):
        pool_key(b"abc", "a")


@pytest.mark.parametrize(
    ("header", "good"),
    [("Bearer k", True), ("bearer k", True), ("Bearer  k ", True), ("Basic k", False), ("k", False), (None, False),
     ("Bearer kk", False), ("Bearer", False), ("Bearer \u00e9", False)],
)  # fmt: skip
def test_bearer(header: str | None, good: bool) -> None:
    assert bearer_matches(header, "k") is good


def test_a_report_reads_back() -> None:
    entry = ModelReport(name="m", state=ModelState.LOADED, busy=2, slots=4)
    sent = Report(pod="p", version="0", models=[entry])
    assert Report.model_validate_json(sent.model_dump_json(by_alias=True)) == sent
    assert sent.model("m") == entry
    assert sent.model("other") is None


def test_the_names_of_owned_objects_fit_a_label() -> None:
    assert owned_name("Model", "m") == "tandem-m-m"
    assert owned_name("ModelPool", "m") == "tandem-p-m"
    assert len(owned_name("Model", "x" * 40)) <= 63
