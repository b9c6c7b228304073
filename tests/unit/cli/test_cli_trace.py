"""`tandem trace`: the file, the line about it, and what can be wrong."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tandem_cli.main import app

TOLD: dict[str, Any] = {
    "traceEvents": [
        {"name": "process_name", "ph": "M", "pid": 1},
        {"name": "step 1", "ph": "X", "ts": 0.0, "dur": 1_500_000.0},
    ],
    "otherData": {"model": "coder", "steps": 1, "device_idle_share": 0.125},
}


def test_the_file_and_a_line_about_it(fake, tmp_path: Path):
    fake.traces["coder"] = TOLD
    file = tmp_path / "t.json"
    result = CliRunner().invoke(app, ["trace", "coder", "-o", str(file), "--url", fake.url])
    assert result.exit_code == 0, result.output
    assert json.loads(file.read_text()) == TOLD
    assert result.stdout.splitlines()[0] == "coder: 1 steps in 1.50 s; the device waited 12.5% of its time."
    assert "ui.perfetto.dev" in result.stdout


def test_nothing_to_tell_yet(fake, tmp_path: Path):
    fake.traces["coder"] = {"traceEvents": [], "otherData": {"model": "coder", "steps": 0}}
    result = CliRunner().invoke(app, ["trace", "coder", "-o", str(tmp_path / "t.json"), "--url", fake.url])
    assert "coder: no steps yet; send it a request first." in result.stdout


def test_errors_end_with_a_status_and_leave_no_file(fake, tmp_path: Path):
    file = tmp_path / "t.json"

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["trace", *arguments])
        assert result.exit_code == 1
        return result.stderr

    assert "tells no traces; ask 'tandem serve', or a pod's internal port" in said(
        "coder", "-o", str(file), "--url", fake.url
    )
    assert "has no model 'nobody'; it has coder, vectors" in said("nobody", "-o", str(file), "--url", fake.url)
    assert "no server answers" in said("coder", "-o", str(file), "--url", "127.0.0.1:1")
    assert not file.exists()
    fake.traces["coder"] = TOLD
    assert "cannot be written" in said("coder", "-o", str(tmp_path), "--url", fake.url)
