"""The start of the process: settings that cannot be used are named in one line, and the form of log lines."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tandem_operator.__main__ import configure_logs, main
from tandem_operator.config import CONFIG_VARIABLE, MASTER_SECRET_VARIABLE, Config, LogConfig, LogFormat, load_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.yaml").write_text("server: {image: x}\n")
    (tmp_path / "master").write_text("a-master-secret-for-tests\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "config.yaml"))
    monkeypatch.setenv(MASTER_SECRET_VARIABLE, str(tmp_path / "master"))
    return tmp_path


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "master").unlink(), "master cannot be read: No such file"),
        (lambda folder: (folder / "master").write_text("short"), "has 5 bytes; it needs at least 16"),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml cannot be read: No such file"),
        (lambda folder: (folder / "config.yaml").write_text("server: {}"), "server.image: Field required"),
        (lambda folder: (folder / "config.yaml").write_text("server: {image: x}\nworkrs: 2"), "workrs: Extra inputs"),
        (lambda folder: (folder / "config.yaml").write_text("a: ["), "is not YAML"),
    ],
)
def test_wrong_settings_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], break_it: Callable[[Path], object], words: str
) -> None:
    break_it(folder)
    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith("tandem-operator: ")
    assert words in told


def test_a_variable_that_is_not_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE)
    assert main() == 2
    assert CONFIG_VARIABLE in capsys.readouterr().err


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_no_cluster_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(folder))
    assert main() == 1
    assert "neither KUBECONFIG nor ~/.kube/config exists" in capsys.readouterr().err


def test_the_example_in_the_chart_is_a_config(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("server: {image: x}\n")
    assert load_config(tmp_path / "c") == Config(server={"image": "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", list(LogFormat))
def test_kopf_speaks_only_of_trouble(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], form: LogFormat
) -> None:
    configure_logs(LogConfig(format=form))
    logging.getLogger("kopf.x").info("chatter")
    logging.getLogger("kopf.x").warning("trouble")
    logging.getLogger("tandem_operator.x").info("ours")
    told = capsys.readouterr().err
    assert "chatter" not in told
    assert "trouble" in told
    assert "ours" in told
