"""The small pure pieces on a request's path: settings, bodies, headers, lines, errors inside streams, tries."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_api.dialects import ApiError, Dialect
from tandem_api.logs import JsonFormatter
from tandem_gateway.access import Record
from tandem_gateway.body import model_field, with_model
from tandem_gateway.headers import to_pod
from tandem_gateway.objects import PodView
from tandem_gateway.relay import MAX_HELD_BYTES, NDJSON, SSE, error_piece, whole_lines
from tandem_gateway.replay import Patience, Tries
from tandem_gateway.settings import SettingsError, from_environment
from tandem_gateway.upstream import AttemptFailed, Fault

POD = PodView("default", "a", "a", "pool", "10.0.0.1", ready=True)
OTHER = PodView("default", "b", "b", "pool", "10.0.0.2", ready=True)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "key").write_bytes(b"0123456789abcdef\n")
    return {"TANDEM_MASTER_SECRET_FILE": str(tmp_path / "key")}


def test_settings_have_defaults(environment: dict[str, str]) -> None:
    read = from_environment(environment)
    assert (read.master, read.port, read.internal_port, read.health_port) == (b"0123456789abcdef", 8080, 8081, 8082)
    assert read.default_namespace == "default"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEM_GATEWAY_PORT", "http"),
        ("TANDEM_GATEWAY_PORT", "70000"),
        ("TANDEM_MAX_BODY_BYTES", "0"),
        ("TANDEM_LINGER_SECONDS", "-1"),
        ("TANDEM_DRAIN_SECONDS", "soon"),
        ("TANDEM_DRAIN_SECONDS", "nan"),
        ("TANDEM_LOG_FORMAT", "xml"),
        ("TANDEM_LOG_LEVEL", "loud"),
    ],
)
def test_settings_that_cannot_be_are_named(environment: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        from_environment({**environment, name: value})


def test_in_one_namespace_bare_names_mean_its_models(environment: dict[str, str]) -> None:
    assert from_environment(environment).namespace == ""
    read = from_environment({**environment, "TANDEM_NAMESPACE": "team"})
    assert (read.namespace, read.default_namespace) == ("team", "team")
    with pytest.raises(SettingsError, match="only Models of 'team' are served"):
        from_environment({**environment, "TANDEM_NAMESPACE": "team", "TANDEM_DEFAULT_NAMESPACE": "other"})


def test_a_missing_or_short_master_secret_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="TANDEM_MASTER_SECRET_FILE"):
        from_environment({"TANDEM_MASTER_SECRET_FILE": str(tmp_path / "none")})
    (tmp_path / "short").write_text("short")
    with pytest.raises(SettingsError, match="has 5 bytes"):
        from_environment({"TANDEM_MASTER_SECRET_FILE": str(tmp_path / "short")})


def test_the_models_name_is_found_wherever_it_stands() -> None:
    assert model_field(b'{"messages": [{"model": "no"}], "model": "caf\\u00e9"}', "/v1/chat/completions") == "café"
    assert model_field(b'{"name": "old"}', "/api/show") == "old"
    with pytest.raises(ApiError, match="model is required"):
        model_field(b'{"name": "old"}', "/api/chat")


def test_deep_nesting_is_a_400() -> None:
    with pytest.raises(ApiError) as caught:
        model_field(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "model": "a"}', "/api/chat")
    assert caught.value.status == 400


def test_another_model_is_written_and_the_rest_stays() -> None:
    body = json.dumps({"model": "ns/a", "big": 2**70, "text": "ü\u2028", "f": 0.1}).encode()
    assert json.loads(with_model(body, "/api/chat", "a")) == {**json.loads(body), "model": "a"}
    assert json.loads(with_model(b'{"name": "ns/a"}', "/api/show", "a")) == {"name": "a"}


names = st.sampled_from(["Authorization", "x-api-key", "X-Tandem-Load", "connection", "te", "x-a", "Accept", "x-named"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.sampled_from(["close", "x-named", "secret"])), max_size=8))
def test_only_the_pool_key_is_a_credential(headers: list[tuple[str, str]]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    sent = to_pod(raw, "key", "10.0.0.7")
    assert sent.getall("x-tandem-caller") == ["10.0.0.7"]
    assert sent.getall("authorization") == ["Bearer key"]
    dropped = {"x-api-key", "x-tandem-load", "connection", "te"}
    if any(name == "connection" and value == "x-named" for name, value in headers):
        dropped.add("x-named")
    assert not dropped & {name.lower() for name in sent}
    for kept in ("x-a", "Accept"):
        assert sent.getall(kept, []) == [value for name, value in headers if name == kept]


async def pieces(chunks: list[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error:
        raise error


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"\n", b"bc\n", b"\n\n", b"d\ne"]), max_size=12))
async def test_lines_stay_whole_and_nothing_is_lost(chunks: list[bytes]) -> None:
    out = [piece async for piece in whole_lines(pieces(chunks))]
    assert b"".join(out) == b"".join(chunks)
    assert all(piece.endswith(b"\n") for piece in out[:-1])
    assert all(out)


async def test_an_unfinished_line_is_dropped_when_the_stream_breaks_and_passed_on_when_long() -> None:
    seen: list[bytes] = []

    async def collect(chunks: AsyncIterator[bytes]) -> None:
        async for piece in whole_lines(chunks):
            seen.append(piece)

    with pytest.raises(OSError, match="gone"):
        await collect(pieces([b"a\nb"], OSError("gone")))
    assert seen == [b"a\n"]
    seen.clear()
    await collect(pieces([b"x" * (MAX_HELD_BYTES + 1), b"y"]))
    assert seen == [b"x" * (MAX_HELD_BYTES + 1), b"y"]


@pytest.mark.parametrize(
    ("kind", "dialect", "last", "start"),
    [
        (SSE, Dialect.OPENAI, b"\n\n", b'data: {"error":{"message":"why"'),
        (SSE, Dialect.OPENAI, b"}\n", b'\ndata: {"error":{"message":"why"'),
        (SSE, Dialect.OPENAI, b"x}", b'\n\ndata: {"error":{"message":"why"'),
        (SSE, Dialect.ANTHROPIC, b"\n\n", b'event: error\ndata: {"type":"error","error":{'),
        (NDJSON, Dialect.OLLAMA, b"}\n", b'{"error":"why"}\n'),
        (NDJSON, Dialect.OLLAMA, b"x}", b'\n{"error":"why"}\n'),
    ],
)
def test_errors_inside_streams_stand_on_lines_of_their_own(
    kind: str, dialect: Dialect, last: bytes, start: bytes
) -> None:
    piece = error_piece(kind, dialect, "why", last)
    assert piece.startswith(start)
    assert piece.endswith(b"\n\n" if kind == SSE else b"\n")


def attempt(tries: Tries, fault: Fault, now: float = 0.0, pod: PodView = POD) -> bool:
    return tries.failed(pod, AttemptFailed(fault, "cause"), now)


def test_each_fault_has_its_own_patience() -> None:
    patience = Patience(unanswered=10, draining=30, resets=2, stale=3)
    assert [attempt(tries, Fault.RESET) for tries in [Tries(patience)] for _ in range(3)] == [True, True, False]
    assert [attempt(tries, Fault.STALE) for tries in [Tries(patience)] for _ in range(4)] == [True, True, True, False]
    assert not attempt(Tries(patience), Fault.SILENT)
    assert all(attempt(tries, Fault.CONNECT) for tries in [Tries(patience)] for _ in range(50))


def test_a_pod_that_failed_is_asked_again_after_a_growing_pause_and_a_draining_one_never() -> None:
    tries = Tries(Patience(first_pause=1, last_pause=3, unanswered=100, draining=30))
    assert tries.wait([POD], 0) is None, "nothing was tried: nothing to wait for"
    attempt(tries, Fault.CONNECT, 0)
    assert tries.choose([POD, OTHER], 0.5) is OTHER
    assert tries.choose([POD], 0.5) is None
    assert tries.wait([POD], 0.5) == 0.5
    assert tries.choose([POD], 1) is POD
    attempt(tries, Fault.CONNECT, 1)
    assert tries.wait([POD], 1) == 2
    attempt(tries, Fault.CONNECT, 3)
    assert tries.wait([POD], 3) == 3
    attempt(tries, Fault.DRAINING, 6)
    assert tries.choose([POD], 29) is None
    assert tries.wait([POD], 6) == 24
    assert tries.wait([POD], 30) is None
    assert tries.story() == "pod a: cause"


def test_the_log_line_is_a_sentence_and_in_json_an_object() -> None:
    record = Record("POST", "/api/chat", namespace="default", model="coder", pod="p-1", status=200, sent_bytes=12)
    record.replays = 1
    sentence = record.sentence(0.25)
    assert sentence == (
        "POST /api/chat, model default/coder: pod p-1 answered 200, 12 bytes in 0.250 s after 1 failed attempt"
    )
    line = logging.LogRecord("access", logging.INFO, "", 0, sentence, (), None)
    vars(line).update(record._fields(0.25))
    decoded = json.loads(JsonFormatter().format(line))
    assert (decoded["message"], decoded["status"], decoded["replays"]) == (sentence, 200, 1)
