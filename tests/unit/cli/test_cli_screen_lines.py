"""Bars and log lines share a terminal: lines of this process and of those it starts appear whole, above the bars."""

import re
import subprocess
import sys

import pytest
from cli_terminal import Terminal

from tandem_cli.terminal import is_quiet

PROGRAM = """
import logging, subprocess, sys, time
from tandem_api import logs
from tandem_api.report import ModelReport, ModelState, Progress
from tandem_cli.loading import LoadBars
from tandem_cli.terminal import is_quiet, log_above_bars

shows = (lambda line: True) if sys.argv[1] == "all" else lambda line: not is_quiet(line)
with log_above_bars(shows) as console:
    logs.configure("text", "INFO")
    with LoadBars(console) as bars:
        for done in range(1, 11):
            sizes = {"done_bytes": done * 10**8, "total_bytes": 10**9}
            told = Progress(phase="reading", fraction=done / 10, eta_seconds=5, **sizes)
            bars.show([ModelReport(name="coder", state=ModelState.LOADING, progress=told)])
            logging.info("fine %d", done)
            logging.warning("odd %d", done)
            child = "import sys; sys.stderr.write('2026-11-23T00:00:00.000Z ERROR   from a child [bold]\\\\n')"
            done == 5 and subprocess.run([sys.executable, "-c", child], check=True)
            time.sleep(0.02)
    console.print("loaded at last")
sys.stderr.write("after the bars\\n")
raise SystemExit(3)
"""


def test_lines_that_tell_no_more_than_that_all_is_well():
    assert is_quiet("2026-11-23T08:23:00.968Z INFO    Tandem serves.")
    assert not is_quiet("2026-11-23T08:23:00.968Z WARNING A model is slow.")
    assert not is_quiet("Traceback (most recent call last):")
    assert not is_quiet('{"time": "2026-11-23T08:23:00.968Z", "level": "info"}')


@pytest.mark.process
@pytest.mark.parametrize("shown", ["all", "warnings"])
def test_lines_appear_whole_above_the_bars(shown):
    with Terminal([sys.executable, "-c", PROGRAM, shown]) as screen:
        screen.wait("after the bars\n")
        assert screen.end() == 3
    lines = screen.shown
    expected = [line for n in range(1, 11) for line in ((f"fine {n}",) if shown == "all" else ()) + (f"odd {n}",)]
    said = [line.split(maxsplit=2)[2] for line in lines if line.startswith("20") and "child" not in line]
    assert said == expected
    assert [line for line in lines if "child" in line] == ["2026-11-23T00:00:00.000Z ERROR   from a child [bold]"]
    assert lines[-2:] == ["loaded at last", "after the bars"]
    assert re.search(r"reading \d+ MB of 1.0 GB \d+ MB/s, 5 s left", " ".join(screen.seen.split()))
    assert not [line for line in lines if "━" in line], "the bars are gone afterwards"


@pytest.mark.process
def test_without_a_terminal_standard_error_is_left_alone():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "warnings"], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "INFO    fine 1\n" in done.stderr
    assert "━" not in done.stderr
    assert done.stderr.endswith("loaded at last\nafter the bars\n")
