"""Building programs once a machine: keys, the lock between runs, and what a failed build says. No Go is needed."""

import io
import threading
from pathlib import Path

import pytest

from tandem_devcluster import golang, paths, toolchain
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress
from tandem_devcluster.toolchain import Program

QUIET = Progress(quiet=True)
PROGRAM = Program("p", ".", "-s", "")

FAKE_GO = """#!/bin/sh
[ "$1" = env ] && { echo go1.99.1; exit; }
echo run >> "$RUNS"
[ -z "$FAIL" ] || { echo "main.go:3: $FAIL"; exit 1; }
while [ "$1" != -o ]; do shift; done
echo program > "$2"
"""


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `go` that counts its builds in the returned file and makes an empty program, or fails with $FAIL."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "go").write_text(FAKE_GO)
    (tmp_path / "path" / "go").chmod(0o755)
    sources = tmp_path / "assembly" / "pause"
    sources.mkdir(parents=True)
    (sources / "main.go").write_text("package main")
    (sources / "go.mod").write_text("module m\n\ngo 1.24.0\n")
    monkeypatch.setattr(paths, "ASSEMBLY", tmp_path / "assembly")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_program_is_built_once(fake_go: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(toolchain.provide("pause", QUIET))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].read_text() == "program\n"
    assert fake_go.read_text() == "run\n"
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name], "no lock, log or half file stays"


def test_a_changed_source_is_built_again(fake_go: Path) -> None:
    first = toolchain.provide("pause", QUIET)
    (paths.ASSEMBLY / "pause" / "main.go").write_text("package main // changed")
    assert toolchain.provide("pause", QUIET) != first
    assert fake_go.read_text() == "run\nrun\n"


def test_a_failed_build_says_why_and_leaves_no_program(fake_go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "undefined: x")
    with pytest.raises(DevclusterError, match=r"building pause failed: .* then run the same command again") as failed:
        toolchain.provide("pause", QUIET)
    assert str(failed.value).endswith("main.go:3: undefined: x")
    assert all(path.suffix == ".log" for path in (paths.cache_home() / "bin").iterdir())
    monkeypatch.delenv("FAIL")
    assert toolchain.provide("pause", QUIET).exists()


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("write x: no space left on device", "free about 6 GB"),
        ("compile: signal: killed", "out of memory"),
        ("Get https://x: dial tcp: i/o timeout", "HTTPS_PROXY"),
        ("x.go:1: syntax error", "go clean -cache"),
    ],
)
def test_the_usual_reasons_have_an_advice(log: str, advice: str) -> None:
    assert advice in toolchain.failure("x", log)


def test_only_the_last_lines_of_a_log_are_shown() -> None:
    shown = toolchain.failure("x", "\n".join(f"line {number}" for number in range(100)))
    assert "line 99" in shown
    assert "line 80" not in shown


def test_any_difference_is_another_key() -> None:
    base = ({"a": b"1", "b": b"2"}, PROGRAM, "1.26.0", "x86_64")
    keys = {
        toolchain.key(*base),
        toolchain.key({"a": b"1", "b": b"3"}, *base[1:]),
        toolchain.key({"a": b"1b", "": b"2"}, *base[1:]),
        toolchain.key(base[0], Program("p", ".", "-w", ""), *base[2:]),
        toolchain.key(*base[:2], "1.26.1", "x86_64"),
        toolchain.key(*base[:3], "aarch64"),
    }
    assert len(keys) == 6
    assert toolchain.key({"b": b"2", "a": b"1"}, *base[1:]) == toolchain.key(*base)


@pytest.mark.parametrize(
    ("text", "version"),
    [("go1.26.8", (1, 26, 8)), ("1.26", (1, 26, 0)), ("devel go1.27-abc", (1, 27, 0)), ("none", (0, 0, 0))],
)
def test_go_versions(text: str, version: tuple[int, ...]) -> None:
    assert golang.parse_version(text) == version


def test_an_old_go_is_passed_over(fake_go: Path) -> None:
    assert golang.find((1, 24, 0)).version == "1.99.1"
    assert golang.find((2, 0, 0)) == golang.Go(golang.BUNDLED, "")


def test_the_modules_of_the_project_can_be_built_by_the_bundled_go() -> None:
    for name in toolchain.PROGRAMS:
        module = (Path(paths.__file__).parents[1] / "assembly" / name / "go.mod").read_text()
        assert (1, 0, 0) < golang.wanted(module) <= golang.parse_version(golang.BUNDLED)


def test_progress_elsewhere_than_on_a_terminal() -> None:
    stream = io.StringIO()
    with Progress(stream).step("Doing"):
        pass
    with pytest.raises(ValueError, match="reason"), Progress(stream).step("Trying"):
        raise ValueError("reason")
    assert stream.getvalue() == "Doing: done (0.0 s)\nTrying: failed (0.0 s)\n"
