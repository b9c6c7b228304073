"""`tandem serve`: what the command line becomes, and what a person reads."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from tandem_api.fields import Scheduling
from tandem_cli.names import model_name, model_source
from tandem_cli.screen import first_screen, url_of
from tandem_cli.serve import _device_memory, _keep_alive, catalog_models


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


@pytest.mark.parametrize(("text", "given"), [("-1", -1), ("300", 300), ("5m", "5m"), ("0", 0)])
def test_a_keep_alive_is_seconds_or_a_duration(text, given):
    assert _keep_alive(text) == given


@pytest.mark.parametrize("text", ["", "5x", "-2", "five"])
def test_another_keep_alive_is_refused(text):
    with pytest.raises(typer.BadParameter, match="a duration such as 5m"):
        _keep_alive(text)


def test_memory_of_devices():
    assert _device_memory(None) == ()
    assert _device_memory("1GiB,500M") == (1 << 30, 500_000_000)
    with pytest.raises(typer.BadParameter, match="'5X' is no size"):
        _device_memory("1GiB,5X")


def test_the_catalog_of_a_command_line():
    one, two = catalog_models(["hf://a/One", "hf://b/Two"], ["first"], 2, 1024, "plain")
    assert (one.name, one.aliases, one.slots, one.context.length) == ("first", ["One"], 2, 1024)
    assert (two.name, two.aliases, two.scheduling) == ("two", ["Two"], Scheduling.PLAIN)
    assert catalog_models(["hf://a/One"], [], None, None, "overlapped")[0].slots == "Auto"
    with pytest.raises(typer.BadParameter, match="would be called one"):
        catalog_models(["hf://a/One", "hf://b/One"], [], None, None, "plain")
    with pytest.raises(typer.BadParameter, match="2 names were given for 1"):
        catalog_models(["hf://a/One"], ["x", "y"], None, None, "plain")


def host(name, task="Generate", aliases=(), **loaded):
    values = {
        "task": task, "slots": 4, "context": 4096, "dtype": "float32", "device": "CPU (2 threads)",
        "context_reason": "", "weight_bytes": 15_000_000, "cache_bytes": 63_000_000, "overhead_bytes": 322_000_000,
    }  # fmt: skip
    entry = SimpleNamespace(name=name, aliases=list(aliases))
    return SimpleNamespace(
        entry=entry, loaded=SimpleNamespace(**{**values, **loaded}), last_error=None, load_seconds=6.5
    )


def test_the_first_screen_tells_what_was_given_and_how_to_call_it():
    failed = SimpleNamespace(entry=SimpleNamespace(name="broken"), loaded=None, last_error="no weights")
    coder = host("coder", aliases=["Coder"], context=2048, context_reason="4 slots of 4096 tokens need 9 GiB")
    text = first_screen("http://127.0.0.1:11434", [failed, coder, host("vectors", "Embed")])
    assert "Tandem serves at http://127.0.0.1:11434\n" in text
    assert "  broken   cannot be loaded: no weights\n           It is tried again by itself." in text
    assert "  coder    chat, 4 requests at once with 2048 tokens of context each\n" in text
    assert "           400 MB, float32 on CPU (2 threads), loaded in 6.5 s\n" in text
    assert "           less context than asked for: 4 slots of 4096 tokens need 9 GiB\n" in text
    assert "           also called Coder\n" in text
    assert "  vectors  embeddings" in text


def test_the_first_screen_has_a_line_to_call_for_each_dialect():
    text = first_screen("http://127.0.0.1:11434", [host("coder")])
    assert "tandem run coder\n" in text
    calls = dict(re.findall(r"curl (?:-N )?http://127.0.0.1:11434(\S+) -d '(.*)'", text))
    assert set(calls) == {"/api/chat", "/v1/chat/completions"}
    assert json.loads(calls["/v1/chat/completions"])["stream"] is True
    assert "tandem run coder --url http://127.0.0.1:8000\n" in first_screen("http://127.0.0.1:8000", [host("coder")])
    vectors = first_screen("http://127.0.0.1:11434", [host("vectors", "Embed")])
    assert "/api/embed" in vectors
    assert "/v1/embeddings" in vectors


def test_nothing_is_said_to_be_served_when_nothing_is():
    failed = SimpleNamespace(entry=SimpleNamespace(name="broken"), loaded=None, last_error="no weights")
    text = first_screen("http://127.0.0.1:1", [failed])
    assert "No model is loaded at http://127.0.0.1:1" in text
    assert "curl" not in text


def test_addresses_of_all_interfaces_are_told_as_one_can_call_them():
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::", 80) == "http://[::1]:80"
    assert url_of("10.0.0.5", 80) == "http://10.0.0.5:80"


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
