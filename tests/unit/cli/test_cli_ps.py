"""`tandem ps`: the table from what servers tell, and the command itself."""

from datetime import UTC, datetime

import pytest
from cli_terminal import Terminal
from typer.testing import CliRunner

from tandem_api.report import ModelReport, ModelState, Progress, Report
from tandem_cli.main import app
from tandem_cli.running import lines, notes, rows

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LISTED = {
    "name": "coder", "size": 417_423_360, "size_vram": 0, "expires_at": "2318-01-01T00:00:00Z", "context_length": 4096,
    "tandem": {"slots": 4, "busy": 1, "queued": 2, "context_reason": "memory is short"},
}  # fmt: skip
OLLAMA = {"name": "llama3:8b", "size": 5_000_000_000, "size_vram": 5_000_000_000, "expires_at": "2026-11-23T12:04:00Z"}


def test_rows_of_a_pod_and_of_ollama_itself():
    found = rows([LISTED, OLLAMA], None, NOW)
    assert found[0].cells == ("coder", "417 MB", "100% CPU", "4096", "1/4", "2", "Forever")
    assert found[1].cells == ("llama3:8b", "5.0 GB", "100% GPU", "-", "-", "-", "4 minutes from now")
    assert notes(found) == ["coder has less context than asked for: memory is short"]


def test_the_report_adds_what_is_not_loaded_and_newer_numbers():
    loading = Progress(phase="reading weights", fraction=0.45, done_bytes=45, total_bytes=100)
    models = [
        ModelReport(name="coder", state=ModelState.LOADED, slots=4, busy=3, queued=9, rejected=5),
        ModelReport(name="big", state=ModelState.LOADING, progress=loading, queued=1),
        ModelReport(name="broken", state=ModelState.FAILED, last_error="no weights"),
        ModelReport(name="idle", state=ModelState.UNLOADED),
    ]
    found = rows([{**LISTED, "tandem": {}}], Report(pod="local", version="1", models=models), NOW)
    assert [row.cells[0] for row in found] == ["coder", "big", "broken", "idle"]
    assert found[0].cells[4:6] == ("3/4", "9")
    assert [row.cells[6] for row in found[1:]] == ["reading weights, 45%", "cannot be loaded", "not loaded"]
    assert notes(found) == ["coder refused 5 requests in the last 5 minutes", "broken does not serve: no weights"]


def test_lines_are_aligned_and_never_cut():
    long = {**LISTED, "name": "x" * 90}
    header, first, second = lines(rows([long, LISTED], None, NOW))
    assert header.index("SIZE") == first.index("417 MB") == second.index("417 MB") == 93
    assert "x" * 90 in first


def test_the_command_without_a_terminal(fake):
    fake.ps = [LISTED]
    result = CliRunner().invoke(app, ["ps", "--url", fake.url])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["NAME", "SIZE", "PROCESSOR", "CONTEXT", "SLOTS", "QUEUE", "UNTIL"]
    assert "1/4" in result.stdout
    assert "memory is short" in result.stderr
    fake.ps = []
    empty = CliRunner().invoke(app, ["ps"], env={"TANDEM_URL": fake.url})
    assert len(empty.stdout.splitlines()) == 1


def test_errors_end_with_a_status():
    result = CliRunner().invoke(app, ["ps", "--url", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("tandem ps: no server answers at http://127.0.0.1:1 (")
    assert CliRunner().invoke(app, ["ps", "-w", "--url", "127.0.0.1:1"]).exit_code == 2


@pytest.mark.process
def test_a_watch_follows_the_server(fake, tandem):
    fake.ps = [LISTED]
    with Terminal([*tandem, "ps", "-w", "--interval", "0.25", "--url", fake.url]) as screen:
        screen.wait("coder +417 MB +100% CPU +4096 +1/4 +2 +Forever")
        fake.ps = [LISTED, OLLAMA]
        screen.wait("llama3:8b")
        fake.__exit__()
        screen.wait("is gone since .*; looking on")
        screen.type("\x03")
        assert screen.end() == 0
