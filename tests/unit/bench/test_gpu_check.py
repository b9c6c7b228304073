"""`tools/gpu_check.py` on a machine without a GPU: parts that fail, hang or lose their device."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[3] / "tools" / "gpu_check.py"
spec = importlib.util.spec_from_file_location("gpu_check", FILE)
assert spec
assert spec.loader
check = importlib.util.module_from_spec(spec)
sys.modules["gpu_check"] = check  # dataclasses look their module up
spec.loader.exec_module(check)

LOSES_ITS_DEVICE = """
import os, sys
file = os.environ["TANDEM_GPU_DONE"]
again = os.path.exists(file)
open(file, "a").write("END\\n" if again else "a test\\n")
print("the rest" if again else "the first")
sys.exit(0 if again else 3)
"""


@pytest.mark.process
def test_a_part_goes_on_in_another_process_behind_the_test_that_failed(tmp_path):
    outcome = check.run(check.Part("tests", 20, ["-c", LOSES_ITS_DEVICE], True), tmp_path, 20)
    assert outcome.startswith("FAILED [3, 0]")
    assert (tmp_path / "tests.txt").read_text() == "the first\nthe rest\n"
    assert [file.name for file in tmp_path.iterdir()] == ["tests.txt"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "seconds", "outcome"),
    [
        ("print(1)", 20, "passed"),
        ("raise SystemExit(2)", 20, "FAILED [2]"),
        ("import threading; threading.Event().wait()", 0.5, "did not end"),
    ],
)
def test_a_part_has_an_outcome_whatever_happens(code, seconds, outcome, tmp_path):
    assert check.run(check.Part("bench", seconds, ["-c", code]), tmp_path, seconds).startswith(outcome)


@pytest.mark.process
def test_what_there_is_no_time_for_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    parts = (check.Part("one", 20, ["-c", "print('it ran')"]), check.Part("two", 5, ["-c", "print(2)"]))
    monkeypatch.setattr(check, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path)])
    assert check.main() == 1
    said = capsys.readouterr().out
    assert "== one: passed" in said
    assert "it ran" in said
    assert "== two: left out" in said
    assert (tmp_path / "summary.txt").read_text().count("\n") == 2
