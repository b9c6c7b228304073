"""Benchmark results are kept by a tool: a second run replaces the first and leaves the others alone."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("record", Path(__file__).resolve().parents[3] / "tools" / "record.py")
assert SPEC
assert SPEC.loader
record = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(record)


def result(value: float) -> dict[str, object]:
    aim = {"aim": "overlapped / plain", "value": value, "spread": "±0.01", "target": ">= 1", "ok": value >= 1}
    return {"name": "overlap", "machine": "2 cores", "versions": {"torch": "2.13"}, "aims": [aim]}


def test_a_section_is_replaced_in_place() -> None:
    page = record.HEADER
    page = record.insert(page, "overlap", record.section("overlap", ["x"], result(1.1), "2026-01-01"))
    page = record.insert(page, "gateway", record.section("gateway", ["y"], result(2.0), "2026-01-01"))
    again = record.insert(page, "overlap", record.section("overlap", ["x"], result(0.9), "2026-01-02"))
    assert again.count("<!-- begin overlap -->") == 1
    assert "| overlapped / plain | 0.9 | ±0.01 | >= 1 | **no** |" in again
    assert "1.1" not in again
    assert again.index("## overlap") < again.index("## gateway")
    assert "| overlapped / plain | 2.0 |" in again
