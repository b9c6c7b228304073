"""The reference page: it is what would be generated, and says all that there is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_api.crd import KINDS, CustomKind, crd_of
from tandem_api.reasons import REASONS, TYPES, known
from tandem_api.reference import reference, type_of
from tandem_api.status import Condition, ConditionStatus

ROOT = Path(__file__).parents[3]
PAGE = reference()
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, node in schema.get("properties", {}).items():
        yield f"{path}{name}", node
        yield from fields(node, f"{path}{name}.")
        yield from fields(node.get("items", {}), f"{path}{name}[].")


def section(kind: CustomKind) -> str:
    return PAGE.split(f"\n## {kind.name}\n")[1].split("\n## ")[0]


def test_the_page_is_what_would_be_generated() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == PAGE, "run make generate"


@each_kind
def test_every_field_rule_and_column_stands_in_the_page(kind: CustomKind) -> None:
    version = crd_of(kind)["spec"]["versions"][0]
    parts = version["schema"]["openAPIV3Schema"]["properties"]
    rows = {line.split(" | ")[0].removeprefix("| ") for line in section(kind).splitlines() if line.startswith("| ")}
    for part in ("spec", "status"):
        for path, node in fields(parts[part]):
            assert f"`{path}`" in rows, path
            for rule in node.get("x-kubernetes-validations", ()):
                assert f"| {rule['message']} |" in section(kind)
    assert {column["name"].upper() for column in version["additionalPrinterColumns"]} <= rows


@each_kind
def test_the_manifest_in_the_page_is_valid(kind: CustomKind) -> None:
    (found,) = re.findall(r"```yaml\n(.*?)```", section(kind), re.DOTALL)
    manifest = yaml.safe_load(found)
    assert manifest["kind"] == kind.name
    assert kind.spec.model_validate(manifest["spec"])


def test_tables_have_as_many_cells_in_each_row() -> None:
    """A bar inside a cell would end it, and the rest of the row would be lost."""
    width = 0
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert width in (0, cells), line
        width = cells


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 65_536}, "integer 0 to 65,536"),
        ({"type": "string", "enum": ["A", "B"]}, "`A`, `B`"),
        ({"type": "string", "maxLength": 9, "pattern": "^(a|b)$"}, "text, 0 to 9 characters, `^(a|b)$`"),
        ({"type": "array", "maxItems": 3, "items": {"type": "object"}, "x-kubernetes-list-map-keys": ["name"]},
         "list of up to 3, each with its own `name`: objects"),
    ],
)  # fmt: skip
def test_types_in_words(node: dict[str, Any], words: str) -> None:
    assert type_of(node) == words


def test_every_reason_belongs_to_known_conditions_and_stands_there_once() -> None:
    names = [one.name for one in REASONS]
    assert len(names) == len(set(names))
    types, statuses = {one.name for one in TYPES}, {status.value for status in ConditionStatus}
    for reason in REASONS:
        for where in reason.where:
            condition, status = where.split("=")
            assert condition in types, reason
            assert status in statuses, reason
            assert known(condition, status, reason.name)
            Condition(type=condition, status=ConditionStatus(status), reason=reason.name, message="")
        assert reason.where, reason
        assert f"| `{reason.name}` |" in PAGE


def test_what_no_table_has_is_not_known() -> None:
    assert not known("Ready", "True", "DoesNotFit")
    assert not known("Ready", "False", "Whatever")


def test_whoever_is_not_ready_is_told_what_to_do() -> None:
    """Only what passes by itself may have no advice."""
    silent = {one.name for one in REASONS if not one.advice and any("Ready=False" in where for where in one.where)}
    assert silent <= {"Draining"}
