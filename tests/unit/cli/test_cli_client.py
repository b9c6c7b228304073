"""The client of `tandem run` and `tandem ps` against a real HTTP server: both dialects, and every way to fail."""

import socket

import pytest
from cli_fake import BREAK, PAUSE, SILENCE, ollama_lines, openai_lines

from tandem_api.dialects import OLLAMA_QUEUE_FULL
from tandem_cli.chat.client import Server, is_local
from tandem_cli.chat.trouble import NoServer, Trouble, UnknownModel

ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture
def server(fake):
    made = Server(fake.url, key="secret", patience=5.0)
    yield made
    made.close()


def text_of(server, model="coder", **settings) -> str:
    return "".join(piece.text for piece in server.answer(model, ASK, settings))


def test_ollama_streams_and_tells_counts(fake, server):
    pieces = list(server.answer("coder", ASK, {"seed": 1}))
    assert [piece.text for piece in pieces] == ["Hello", " there", "\n", ""]
    assert (pieces[-1].finish, pieces[-1].prompt_tokens, pieces[-1].answer_tokens) == ("stop", 7, 3)
    assert fake.asked("/api/chat") == {"model": "coder", "messages": ASK, "stream": True, "options": {"seed": 1}}
    assert all(headers["authorization"] == "Bearer secret" for _, headers, _ in fake.seen)


def test_openai_is_spoken_where_there_is_nothing_else(fake, server):
    fake.only = {"/v1/models", "/v1/chat/completions"}
    fake.lines = openai_lines("Hel", "lo")
    pieces = list(server.answer("coder", ASK, {"num_predict": 3}))
    assert "".join(piece.text for piece in pieces) == "Hello"
    assert (pieces[-1].finish, pieces[-1].prompt_tokens, pieces[-1].answer_tokens) == ("length", 7, 3)
    asked = fake.asked("/v1/chat/completions")
    assert (asked["max_tokens"], asked["stream_options"]) == (3, {"include_usage": True})
    assert server.describe("coder").context is None
    assert server.names() == ["coder", "vectors"]
    with pytest.raises(UnknownModel, match="has no model 'x'; it has coder, vectors"):
        server.describe("x")


def test_a_model_is_described(fake, server):
    fake.shown["tandem"]["context_reason"] = "memory is short"
    found = server.describe("coder")
    assert (found.context, found.slots, found.context_reason) == (4096, 4, "memory is short")
    assert (found.embeds, found.source) == (False, "file:///models/coder")
    fake.shown = {"capabilities": ["embedding"]}
    assert server.describe("coder").embeds


def test_an_unknown_model_is_told_with_those_there_are(fake, server):
    with pytest.raises(UnknownModel, match=r"has no model 'x'; it has coder, vectors"):
        server.describe("x")
    fake.status, fake.models = 404, []
    with pytest.raises(UnknownModel, match="it has none"):
        text_of(server)


@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (503, {"Retry-After": "7", "x-tandem-refused": "queue_full"}, {"error": OLLAMA_QUEUE_FULL},
         "the queue of coder is full; try again in 7 s"),
        (503, {}, {"error": OLLAMA_QUEUE_FULL}, "the queue of coder is full; try again soon"),
        (503, {"Retry-After": "9", "x-tandem-refused": "queue_timeout"}, {"error": OLLAMA_QUEUE_FULL},
         "coder was busy for as long as a request may wait; try again in 9 s"),
        (503, {"Retry-After": "1", "x-tandem-refused": "draining"}, {"error": "x"},
         "the server is shutting down; try again in 1 s"),
        (503, {"Retry-After": "3"}, {"error": {"message": "model 'coder' cannot be loaded: no disk."}},
         "model 'coder' cannot be loaded: no disk; try again in 3 s"),
        (401, {}, {"error": "who are you"}, r"wants a key that allows this \(who are you\); set TANDEM_API_KEY"),
        (400, {}, {"error": "temperature: too high"}, "cannot take this request: temperature: too high"),
        (500, {}, b"<html>oops</html>", "answered 500: <html>oops</html>"),
        (502, {}, b"", "answered 502: without a word"),
    ],
)  # fmt: skip
def test_refusals_become_sentences(fake, server, status, headers, body, told):
    fake.status, fake.headers, fake.error = status, headers, body
    with pytest.raises(Trouble, match=told):
        text_of(server)


def test_an_error_midway_is_told_after_what_came(fake, server):
    fake.lines = [*ollama_lines("Hello")[:1], '{"error": "the runner died"}\n']
    pieces = server.answer("coder", ASK, {})
    assert next(pieces).text == "Hello"
    with pytest.raises(Trouble, match="the answer ended with an error: the runner died"):
        next(pieces)


@pytest.mark.parametrize("end", [[BREAK], []], ids=["cut", "ended early"])
def test_an_answer_that_breaks_off_is_told(fake, server, end):
    fake.lines = [*ollama_lines("Hello")[:1], *end]
    with pytest.raises(Trouble, match="broke in the middle of coder's answer"):
        text_of(server)


def test_what_is_no_json_is_told(fake, server):
    fake.lines = ["<html>\n"]
    with pytest.raises(Trouble, match="a line that is no JSON"):
        text_of(server)


def test_closing_the_answer_aborts_it(fake, server):
    fake.lines = [*ollama_lines("Hello")[:1], PAUSE]
    pieces = server.answer("coder", ASK, {})
    assert next(pieces).text == "Hello"
    assert fake.paused.wait(5)
    pieces.close()
    assert fake.gone.wait(5), "the server did not see the client go"


def test_a_silent_server_is_given_up(fake):
    fake.lines = [SILENCE]
    server = Server(fake.url, patience=0.2)
    with pytest.raises(Trouble, match="did not answer in time"):
        text_of(server)
    server.close()


def test_no_server_is_told_with_what_to_do():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    server = Server(url)
    with pytest.raises(
        NoServer, match=rf"no server answers at {url} \(Connection refused\); start one with 'tandem serve"
    ):
        server.names()
    server.close()


def test_another_kind_of_server_is_told(fake, server):
    fake.only = set()
    with pytest.raises(Trouble, match="speaks neither Ollama's API nor OpenAI's"):
        server.names()


def test_a_proxy_is_for_the_world_outside():
    assert all(is_local(url) for url in ("http://127.0.0.2:1", "http://localhost", "http://[::1]:1"))
    assert not is_local("http://example.org")
