"""`tandem serve`: what the command line becomes, and what a person reads."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from tandem_api.fields import Scheduling
from tandem_cli.screen import first_screen
from tandem_cli.serve import catalog_models, model_name, model_source


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://Qwen/Qwen3-0.6B", "qwen3-0.6b"), ("file:///models/My Model/", "my-model"), ("file:///", "model"),
        ("file:///a/.hidden", "hidden"),
    ],
)  # fmt: skip
def test_names_come_from_the_source(source, name):
    assert model_name(source) == name


def test_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert model_source("checkpoint") == f"file://{tmp_path}/checkpoint"
    assert model_source("hf://org/name") == "hf://org/name"
    with pytest.raises(typer.BadParameter, match="for the hub write hf://org/name"):
        model_source("org/name")
    with pytest.raises(typer.BadParameter, match="write a folder"):
        model_source("s3://bucket/x")


def test_the_catalog_of_a_command_line():
    one, two = catalog_models(["hf://a/One", "hf://b/Two"], ["first"], 2, 1024, "plain")
    assert (one.name, one.aliases, one.slots, one.context.length) == ("first", ["One"], 2, 1024)
    assert (two.name, two.aliases, two.scheduling) == ("two", ["Two"], Scheduling.PLAIN)
    assert catalog_models(["hf://a/One"], [], None, None, "overlapped")[0].slots == "Auto"
    with pytest.raises(typer.BadParameter, match="would be called one"):
        catalog_models(["hf://a/One", "hf://b/One"], [], None, None, "plain")
    with pytest.raises(typer.BadParameter, match="2 names were given for 1"):
        catalog_models(["hf://a/One"], ["x", "y"], None, None, "plain")


def host(name, task="Generate", **loaded):
    values = {"task": task, "slots": 4, "context": 4096, "dtype": "float32", "device": "CPU (2 threads)"}
    told = SimpleNamespace(**{**values, **loaded}) if loaded is not None else None
    return SimpleNamespace(entry=SimpleNamespace(name=name), loaded=told, last_error=None)


def test_the_first_screen_names_the_urls_and_a_line_to_try():
    failed = SimpleNamespace(entry=SimpleNamespace(name="broken"), loaded=None, last_error="no weights")
    text = first_screen("http://127.0.0.1:11434", [failed, host("coder"), host("vectors", "Embed")])
    assert "broken: cannot be loaded: no weights" in text
    assert "coder: chat, 4 requests at once, 4096 tokens each, float32 on CPU (2 threads)" in text
    assert "vectors: embeddings" in text
    assert "http://127.0.0.1:11434/v1" in text
    assert """curl -N http://127.0.0.1:11434/api/chat -d '{"model": "coder",""" in text


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from tandem_cli.main import app\n"
        "heavy = [name for name in ('torch', 'fastapi', 'uvicorn', 'tandem_server') if name in sys.modules]\n"
        "print(heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_wrong_model_is_told_without_a_traceback():
    from tandem_cli.main import app

    result = CliRunner().invoke(app, ["serve", "--model", "no/where"])
    assert result.exit_code == 2
    assert "there is no folder" in result.output.replace("\n", " ")
