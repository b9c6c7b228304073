"""Bad input gets the dialect's 4xx naming the field and the limit; the runner lives on."""

import pytest

MESSAGES = [{"role": "user", "content": "Hi"}]
SAMPLED = [
    ("temperature", "NaN"), ("temperature", "Infinity"), ("temperature", "-0.1"), ("temperature", '"hot"'),
    ("temperature", "true"), ("top_p", "0"), ("top_p", "1.01"), ("top_k", "1.5"), ("top_k", "-2"), ("top_k", '"40"'),
    ("min_p", "-0.1"), ("min_p", "1.1"), ("presence_penalty", "2.1"), ("frequency_penalty", "-2.1"),
    ("repetition_penalty", "0"), ("repetition_penalty", "NaN"), ("seed", "1.5"), ("seed", "1e400"),
    ("max_tokens", "0"), ("max_tokens", "-1"), ("max_tokens", "true"), ("max_tokens", "1.5"), ("stop", '""'),
    ("stop", '["a", ""]'), ("stop", "[" + ",".join(['"x"'] * 17) + "]"), ("stop", "3"), ("n", "2"), ("n", "0"),
    ("logit_bias", '{"five": 1}'), ("logit_bias", '{"-5": 1}'), ("logit_bias", '{"5": 101}'), ("logit_bias", "[5]"),
    ("logit_bias", '{"5": "much"}'), ("logit_bias", '{"999999": 1}'), ("logit_bias", '{"5": NaN}'),
    ("logit_bias", '{"' + "0" * 30 + '5": 1}'),
    ("logit_bias", "{" + ",".join(f'"{number}": 1' for number in range(301)) + "}"), ("typical_p", "0"),
    ("typical_p", "1.1"), ("bad_words", '[""]'), ("bad_words", '"x"'), ("bad_words", '["' + "x y " * 9 + '"]'),
    ("bad_words", '[" "]'), ("bad_words", "[" + ",".join(['"x"'] * 65) + "]"),
    ("stop_token_ids", "[-1]"), ("stop_token_ids", "[999999]"), ("min_tokens", "-1"), ("min_tokens", "1.5"),
    ("stream", '"yes"'), ("stream_options", "3"), ("best_of", "2"),
]  # fmt: skip
CHAT_ONLY = [
    ("messages", "[]"), ("messages", '"Hi"'), ("messages", "[3]"), ("messages", "null"),
    ("messages", '[{"role": "robot", "content": "x"}]'), ("messages", '[{"role": "user"}]'),
    ("messages", '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]'),
    ("messages", '[{"role": "tool", "content": "x"}]'),
    ("top_logprobs", "21"), ("top_logprobs", "3"), ("tools", '[{"type": "function"}]'), ("tool_choice", '"required"'),
    ("response_format", '{"type": "grammar"}'), ("response_format", '"json"'),
    ("response_format", '{"type": "json_schema"}'), ("response_format", '{"type": "json_schema", "json_schema": {}}'),
    ("response_format", '{"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}'),
    ("response_format", '{"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x/y"}}}'),
    ("model", "null"), ("model", '""'), ("model", "7"),
]  # fmt: skip
COMPLETION_ONLY = [
    ("prompt", '""'), ("prompt", "[]"), ("prompt", "[[]]"), ("prompt", '["a", "b"]'), ("prompt", "[999999]"),
    ("prompt", "[-1]"), ("prompt", "null"), ("prompt", "3"), ("logprobs", "21"), ("logprobs", "-1"), ("echo", "true"),
    ("suffix", '"x"'),
]  # fmt: skip
OPTIONS = [
    ("num_predict", "0"), ("num_predict", "-3"), ("num_ctx", "3"), ("num_ctx", "1.5"), ("temperature", "NaN"),
    ("temperature", "-1"), ("top_p", "0"), ("top_k", "2.5"), ("min_p", "2"), ("repeat_penalty", "0"),
    ("presence_penalty", "3"), ("frequency_penalty", "-3"), ("stop", '[""]'), ("seed", '"a"'), ("typical_p", "0"),
]  # fmt: skip
OLLAMA = [
    ("format", '"yaml"'), ("format", '{"type": "nothing"}'), ("format", "[]"), ("format", "3"),
    ("think", "true"), ("keep_alive", '"soon"'),
    ("keep_alive", "true"), ("options", "3"), ("top_logprobs", "2"), ("stream", '"no"'), ("model", "null"),
]  # fmt: skip


def ask(site, path, given, field, raw):
    """Posts `given` with one field replaced by a piece of JSON text."""
    import json

    body = json.dumps({**given, field: "@@"}).replace('"@@"', raw)
    return site.client.post(path, content=body, headers={"content-type": "application/json"})


def check_openai(site, response, field):
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]
    assert site.pod.manager.hosts["fake"].restarts == 0


@pytest.mark.parametrize(("field", "raw"), SAMPLED + CHAT_ONLY)
def test_chat_fields(site, field, raw):
    check_openai(site, ask(site, "/v1/chat/completions", {"model": "fake", "messages": MESSAGES}, field, raw), field)


@pytest.mark.parametrize(("field", "raw"), SAMPLED + COMPLETION_ONLY)
def test_completion_fields(site, field, raw):
    check_openai(site, ask(site, "/v1/completions", {"model": "fake", "prompt": "x"}, field, raw), field)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_wanted_at_least_than_at_most(site, field):
    body = {"model": "fake", "messages": MESSAGES, field: 4}
    response = ask(site, "/v1/chat/completions", body, "min_tokens", "5")
    check_openai(site, response, "min_tokens: must be at most max_tokens, which is 4 (got 5)")


@pytest.mark.parametrize(("field", "raw"), OPTIONS)
def test_ollama_options(site, field, raw):
    response = ask(site, "/api/chat", {"model": "fake", "messages": MESSAGES}, "options", f'{{"{field}": {raw}}}')
    assert response.status_code == 400, response.text
    assert field in response.json()["error"]


@pytest.mark.parametrize(("field", "raw"), OLLAMA)
def test_ollama_fields(site, field, raw):
    for path, more in (("/api/chat", {"messages": MESSAGES}), ("/api/generate", {"prompt": "x"})):
        response = ask(site, path, {"model": "fake", **more}, field, raw)
        assert response.status_code == 400, response.text
        assert field in response.json()["error"]


@pytest.mark.parametrize(
    ("field", "raw"),
    [("images", '["aGk="]'), ("template", '"x"'), ("suffix", '"x"'), ("context", "[999999]"), ("context", '["a"]')],
)
def test_generate_fields(site, field, raw):
    response = ask(site, "/api/generate", {"model": "fake", "prompt": "x"}, field, raw)
    assert response.status_code == 400, response.text
    assert field in response.json()["error"]


@pytest.mark.parametrize(
    ("field", "raw"), [("input", "[]"), ("input", '[""]'), ("input", "3"), ("dimensions", "0"), ("input", "[99999]")]
)
def test_embedding_fields(site, field, raw):
    response = ask(site, "/v1/embeddings", {"model": "vectors", "input": "x"}, field, raw)
    assert response.status_code == 400, response.text
    assert field in response.json()["error"]["message"]


BODIES = [
    b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b'{"model": "fake"', b"[" * 3_000,
    b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "fake", "seed": ' + b"9" * 5000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/api/chat", "/api/embed"]
)
def test_bodies_that_are_no_request(site, path, body):
    response = site.client.post(path, content=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_bound_is_refused(site, chunked):
    body = b" " * 100_001
    response = site.client.post("/v1/chat/completions", content=iter([body]) if chunked else body)
    assert response.status_code == 413
    assert "100000 bytes" in response.json()["error"]["message"]
