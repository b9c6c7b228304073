"""`tandem run` against a scripted server: one answer, a chat on a terminal, what is told when something fails."""

import json
import subprocess
import sys

import pytest
from cli_fake import BREAK, PAUSE, ollama_lines
from cli_terminal import Terminal
from typer.testing import CliRunner

from tandem_cli.main import app
from tandem_cli.run import is_source


def invoke(fake, *arguments, typed=""):
    return CliRunner().invoke(app, ["run", *arguments], input=typed, env={"TANDEM_URL": fake.url})


def test_a_prompt_as_argument_makes_one_answer(fake):
    result = invoke(fake, "coder", "say", "hello")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello there\n", "")
    assert fake.asked("/api/chat")["messages"] == [{"role": "user", "content": "say hello"}]


def test_what_is_piped_in_follows_the_argument(fake):
    fake.lines = ollama_lines("no newline")
    result = invoke(fake, "coder", "sum up", "--system", "short", "--set", "seed=3", typed="line 1\nline 2\n")
    assert result.stdout == "no newline\n"
    asked = fake.asked("/api/chat")
    assert [message["content"] for message in asked["messages"]] == ["short", "sum up\n\nline 1\nline 2\n"]
    assert asked["options"] == {"seed": 3}


def test_counts_are_told_when_asked_for(fake):
    result = invoke(fake, "coder", "hi", "--verbose")
    assert "7 tokens of prompt, 3 of answer" in result.stderr
    assert result.stdout == "Hello there\n"


def test_an_answer_cut_off_is_told_apart_from_the_answer(fake):
    fake.lines = ollama_lines("Hello", reason="length")
    assert "(cut off: the context is full)" in invoke(fake, "coder", "hi").stderr
    assert "(cut off: num_predict is reached)" in invoke(fake, "coder", "hi", "--set", "num_predict=1").stderr


@pytest.mark.parametrize(
    ("arguments", "typed", "told"),
    [(["coder"], "  \n", "nothing to answer"), (["coder", "x", "--set", "a=1"], "", "no setting 'a'"),
     (["./no-such-folder", "x"], "", "there is no folder")],
)  # fmt: skip
def test_a_wrong_call_ends_with_status_2(fake, arguments, typed, told):
    result = invoke(fake, *arguments, typed=typed)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.replace("│", " ").split())


def test_failures_are_one_sentence_and_status_1(fake):
    fake.status, fake.headers = 503, {"Retry-After": "4", "x-tandem-refused": "queue_full"}
    result = invoke(fake, "coder", "hi")
    assert (result.exit_code, result.stderr) == (1, "tandem run: the queue of coder is full; try again in 4 s\n")
    result = invoke(fake, "nope", "hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"tandem run: the server at {fake.url} has no model 'nope'; it has coder, vectors\n"
    fake.shown = {"capabilities": ["embedding"]}
    assert "makes embeddings and cannot chat" in invoke(fake, "vectors", "hi").stderr


def test_an_answer_that_breaks_off_keeps_what_came(fake):
    fake.lines = [*ollama_lines("Hello")[:1], BREAK]
    result = invoke(fake, "coder", "hi")
    assert (result.exit_code, result.stdout) == (1, "Hello")
    assert "broke in the middle" in result.stderr


def test_names_and_sources_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "coder").mkdir(parents=True)
    sources = ["./x", "/x", "~/x", "hf://a/b", "..", "models/coder"]
    assert all(is_source(each) for each in sources)
    assert not any(is_source(each) for each in ["coder", "qwen3:0.6b", "namespace/coder", "models"])


def test_a_folder_that_the_named_server_may_not_serve_is_not_mistaken(fake, tmp_path):
    folder = tmp_path / "coder"
    folder.mkdir()
    result = invoke(fake, str(folder), "hi")
    assert result.exit_code == 1
    assert "may be another model than file://" in result.stderr
    fake.shown["tandem"]["source"] = f"file://{folder}"
    assert invoke(fake, str(folder), "hi").stdout == "Hello there\n"


@pytest.mark.parametrize("call", [["run", "coder", "hi"], ["ps"]], ids=["run", "ps"])
def test_a_command_that_only_talks_imports_neither_the_server_nor_torch(fake, call):
    code = (
        "import sys, json\n"
        "from typer.testing import CliRunner\n"
        "from tandem_cli.main import app\n"
        "code = CliRunner().invoke(app, sys.argv[1:]).exit_code\n"
        "print(json.dumps([code, list(sys.modules)]))"
    )
    command = [sys.executable, "-c", code, *call, "--url", fake.url]
    status, modules = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    heavy = {"torch", "transformers", "numpy", "fastapi", "uvicorn", "tandem_server", "huggingface_hub"}
    assert (status, heavy & set(modules)) == (0, set())


@pytest.mark.process
def test_a_chat(fake, tandem):
    with Terminal([*tandem, "run", "coder", "--url", fake.url]) as screen:
        greeting = screen.wait(">>> $")
        assert (
            f"coder at {fake.url}, 4096 tokens of context. /help tells the commands, /bye or Ctrl-D ends." in greeting
        )
        screen.type("one\\\n")
        screen.wait(r"\.\.\. $")
        screen.type("two\n")
        screen.wait("Hello there\n\n>>> $")
        assert fake.asked("/api/chat")["messages"][-1]["content"] == "one\ntwo"
        screen.type("/set num_predict 5\n")
        screen.wait("num_predict is 5\n>>> $")
        screen.type("again\n")
        screen.wait("Hello there\n\n>>> $")
        asked = fake.asked("/api/chat")
        assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "user"]
        assert asked["options"] == {"num_predict": 5}
        screen.type("/clear\n")
        screen.wait("forgotten.*>>> $")
        screen.type("/foo\n")
        screen.wait("there is no command /foo.*>>> $")
        screen.type("last\n")
        screen.wait("Hello there\n\n>>> $")
        assert len(fake.asked("/api/chat")["messages"]) == 1
        screen.type("/bye\n")
        assert screen.end() == 0


@pytest.mark.process
def test_control_c_stops_the_answer_and_not_the_program(fake, tandem):
    fake.lines = [*ollama_lines("Hello")[:1], PAUSE]
    with Terminal([*tandem, "run", "coder", "--url", fake.url]) as screen:
        screen.wait(">>> $")
        screen.type("hi\n")
        screen.wait("Hello")
        screen.type("\x03")
        screen.wait("stopped\n\n>>> $")
        assert fake.gone.wait(5), "the server did not see the client go"
        fake.lines = ollama_lines("All is well")
        screen.type("go on\n")
        screen.wait("All is well\n\n>>> $")
        assert [message["content"] for message in fake.asked("/api/chat")["messages"]] == ["hi", "Hello", "go on"]
        screen.press("\x03", "Ctrl-D or /bye ends the chat.\n>>> $")
        screen.type("\x04")
        assert screen.end() == 0


@pytest.mark.process
def test_waiting_and_failing_are_told_within_the_chat(fake, tandem):
    fake.lines = [PAUSE, *ollama_lines("At last")]
    with Terminal([*tandem, "run", "coder", "--url", fake.url]) as screen:
        screen.wait(">>> $")
        screen.type("hi\n")
        screen.wait("coder has not begun to answer yet")
        fake.release.set()
        screen.wait("At last\n\n>>> $")
        fake.status, fake.headers = 503, {"Retry-After": "4", "x-tandem-refused": "queue_full"}
        screen.type("more\n")
        screen.wait("tandem run: the queue of coder is full; try again in 4 s\n\n>>> $")
        fake.status, fake.lines = 200, ollama_lines("\x1b]0;evil\x07red\x1b[31m")
        screen.type("colour\n")
        screen.wait(r"\]0;evilred\[31m\n\n>>> $")
        assert b"\x1b[31m" not in screen.raw
        screen.type("\x04")
        assert screen.end() == 0


@pytest.mark.process
def test_one_answer_stopped_by_control_c_has_its_status(fake, tandem):
    fake.lines = [*ollama_lines("Hello")[:1], PAUSE]
    with Terminal([*tandem, "run", "coder", "hi", "--url", fake.url]) as screen:
        screen.wait("Hello")
        screen.type("\x03")
        assert screen.end() == 130
        assert fake.gone.wait(5)
