"""`tandem serve`, `run` and `ps` together as a newcomer uses them, with the demo model and real runners."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_terminal import Terminal

pytestmark = [pytest.mark.torch, pytest.mark.process]
MODEL = Path(__file__).resolve().parents[3] / "models" / "python-coder"


@pytest.fixture(scope="module")
def site(tandem) -> Iterator[tuple[Terminal, str]]:
    """A server on a terminal and its address."""
    command = [*tandem, "serve", "--device", "CPU", "--port", "0", "--context", "2048", "--model", str(MODEL)]
    with Terminal(command, columns=160) as screen:
        screen.wait("Ctrl-C ends it.", 90)
        found = re.search(r"Tandem serves at (http://127.0.0.1:\d+)", screen.seen)
        assert found
        yield screen, found[1]
        screen.type("\x03")
        assert screen.end() == 0
        assert "Shut down in order." in screen.seen


def test_the_first_screen(site):
    screen, url = site
    first = "\n".join(screen.shown)
    assert re.search(r"python-coder  chat, 4 requests at once with 2048 tokens of context each\n", first)
    assert re.search(r"\d+ MB, \w+ on CPU \(\d threads?\), loaded in \d+\.\d s", first)
    assert f"tandem run python-coder --url {url}" in first
    assert " INFO " not in first, "log lines that all is well are not for a newcomer's first screen"
    assert "━" not in first


def test_the_lines_to_try_work_as_they_stand(site):
    screen, url = site
    calls = re.findall(rf"curl -N ({re.escape(url)}/\S+) -d '(.*)'", "\n".join(screen.shown))
    assert len(calls) == 2
    for address, body in calls:
        # The demo model may never end by itself, and Ollama's API then goes on for ten contexts.
        short = body.replace("{", '{"max_tokens": 5, "options": {"num_predict": 5}, ', 1)
        done = subprocess.run(
            ["curl", "-sN", "--max-time", "60", address, "-d", short], capture_output=True, text=True, check=True
        )
        assert re.search(r'"done":\s*true|data: \[DONE\]', done.stdout), done.stdout[-300:]


def test_a_chat_is_streamed_stopped_and_ended(site, tandem):
    _, url = site
    with Terminal([*tandem, "run", "python-coder", "--url", url]) as chat:
        assert "2048 tokens of context" in chat.wait(">>> $")
        chat.type("def read_lines(path):\n")
        chat.wait(r"read_lines\(path\):\n.*\n.*\S")
        chat.type("\x03")
        chat.wait("stopped\n\n>>> $")
        chat.type("/set num_predict 3\n")
        chat.wait("num_predict is 3\n>>> $")
        # A drawn answer may end before its bound; the likeliest one begins with more than three tokens.
        chat.type("/set temperature 0\n")
        chat.wait("temperature is 0.0\n>>> $")
        chat.type("/set verbose\n")
        chat.wait("verbose from now on\n>>> $")
        chat.type('"""import os\ndef walk(top):"""\n')
        chat.wait(r"num_predict is reached.*tokens of prompt, 3 of answer.*>>> $")
        chat.type("/bye\n")
        assert chat.end() == 0


def test_ps_shows_it_and_its_slots_are_free_again(site, tandem):
    _, url = site
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run([*tandem, "ps", "--url", url], capture_output=True, text=True, check=True)
        cells = re.split(r" {3,}", done.stdout.splitlines()[1])
        assert (cells[0], cells[2], cells[3], cells[6]) == ("python-coder", "100% CPU", "2048", "Forever")
        if cells[4:6] == ["0/4", "0"]:
            return
        assert time.monotonic() < deadline, f"the stopped answer still holds its slot: {done.stdout}"


def test_one_answer_through_either_api(site, tandem):
    _, url = site
    ask = [*tandem, "run", "python-coder", "import", "--set", "num_predict=8", "--set", "temperature=0", "--url", url]
    done = subprocess.run(ask, input="os\n", capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    again = subprocess.run([*ask, "--verbose"], input="os\n", capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
    assert "8 of answer" in again.stderr


def test_a_folder_that_nobody_serves_is_served_for_the_chat(tandem):
    with Terminal([*tandem, "run", str(MODEL), "--set", "num_predict=6"], TANDEM_URL="") as chat:
        greeting = chat.wait(">>> $", 90)
        assert "python-coder at http://127.0.0.1:" in greeting
        server = lent_to(chat.process.pid)
        chat.type("import os\n")
        chat.wait(">>> $")  # after its own six tokens, or fewer where the model ends by itself
        chat.type("\x04")
        assert chat.end() == 0
    assert not alive(server), "the server ends with the chat"


def test_the_lent_server_ends_with_a_chat_that_was_killed(tandem):
    with Terminal([*tandem, "run", str(MODEL)], TANDEM_URL="") as chat:
        chat.wait(">>> $", 90)
        server = lent_to(chat.process.pid)
        os.kill(chat.process.pid, signal.SIGKILL)
        chat.process.wait()
        deadline = time.monotonic() + 30
        while alive(server):
            assert time.monotonic() < deadline, "the server outlived its chat"
            time.sleep(0.05)


def lent_to(pid: int) -> int:
    """Process id of the server that a chat started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [int(child) for child in children if b"--lent" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(found) == 1
    return found[0]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
