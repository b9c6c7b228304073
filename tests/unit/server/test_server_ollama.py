"""Ollama's API over loopback: shapes, streaming, counts, load semantics."""

import math

import pytest
from server_site import ANSWER, lines, sse

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


def test_chat_streams_unless_told_otherwise(site):
    response = site.post("/api/chat", CHAT)
    *pieces, last = lines(response.text)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["x-tandem-context-length"] == "256"
    assert "".join(piece["message"]["content"] for piece in pieces) == ANSWER
    assert all(piece["done"] is False and piece["message"]["role"] == "assistant" for piece in pieces)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert last["eval_count"] == len(site.tokenizer.encode(ANSWER).ids)
    assert last["prompt_eval_count"] > 0
    parts = last["load_duration"] + last["prompt_eval_duration"] + last["eval_duration"]
    assert 0 < parts <= last["total_duration"]


def test_chat_as_one_object(site):
    body = site.post("/api/chat", {**CHAT, "stream": False}).json()
    assert (body["message"]["content"], body["done"], body["done_reason"]) == (ANSWER, True, "stop")


def test_generate_gives_a_context_that_goes_on(site):
    body = site.post("/api/generate", {"model": "fake", "prompt": "Hi", "stream": False}).json()
    assert body["response"] == ANSWER
    assert len(body["context"]) == body["prompt_eval_count"] + body["eval_count"]
    more = {"model": "fake", "prompt": "Hi", "context": body["context"], "stream": False}
    assert site.post("/api/generate", more).json()["prompt_eval_count"] > len(body["context"])


def test_raw_prompts_are_not_templated(site):
    ask = {"model": "fake", "prompt": "x", "stream": False}
    raw = site.post("/api/generate", {**ask, "raw": True}).json()
    assert raw["prompt_eval_count"] == 1
    assert "context" not in raw
    assert site.post("/api/generate", ask).json()["prompt_eval_count"] > 5
    assert site.post("/api/generate", {**ask, "raw": True, "system": "x"}).status_code == 400


def test_a_model_without_template_takes_the_prompt_as_it_is(site):
    body = site.post("/api/generate", {"model": "plain", "prompt": "x", "stream": False}).json()
    assert body["prompt_eval_count"] == 1


def test_options_bound_and_end_the_answer(site):
    ask = {**CHAT, "stream": False}
    short = site.post("/api/chat", {**ask, "options": {"num_predict": 2}}).json()
    assert (short["eval_count"], short["done_reason"]) == (2, "length")
    stopped = site.post("/api/chat", {**ask, "options": {"stop": ["<done>"], "num_predict": -1}}).json()
    assert stopped["message"]["content"] == ANSWER.partition("<done>")[0]
    capped = site.post("/api/chat", {**ask, "shift": False, "options": {"num_ctx": 32, "seed": -1}}).json()
    assert capped["prompt_eval_count"] + capped["eval_count"] == 32
    assert capped["done_reason"] == "length"


def test_old_messages_are_dropped_when_they_do_not_fit(site):
    system = {"role": "system", "content": "Be brief."}
    old = [{"role": "user", "content": f"{number} " + "x" * 60} for number in range(8)]
    last = {"role": "user", "content": "the last"}
    ask = {"model": "fake", "messages": [system, *old, last], "stream": False}
    body = site.post("/api/chat", ask).json()
    kept = site.post("/api/chat", {**ask, "messages": [system, *old[-2:], last]}).json()["prompt_eval_count"]
    assert body["prompt_eval_count"] < 256
    assert body["prompt_eval_count"] >= kept
    refused = site.post("/api/chat", {**ask, "truncate": False})
    assert refused.status_code == 400
    assert "256 tokens" in refused.json()["error"]


def test_a_last_message_that_alone_does_not_fit_is_refused(site):
    response = site.post("/api/chat", {"model": "fake", "messages": [{"role": "user", "content": "x" * 400}]})
    assert response.status_code == 400


def test_logprobs(site):
    body = site.post("/api/chat", {**CHAT, "stream": False, "logprobs": True, "top_logprobs": 3}).json()
    assert len(body["logprobs"]) == body["eval_count"]
    assert len(body["logprobs"][0]["top_logprobs"]) == 3


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_nothing_to_say_loads(site, path):
    body = site.post(path, {"model": "fake", "stream": False}).json()
    assert (body["done"], body["done_reason"]) == (True, "load")
    assert lines(site.post(path, {"model": "fake", "keep_alive": "10m"}).text)[-1]["done_reason"] == "load"


@pytest.mark.parametrize("value", [-1, 300, "5m", "1h30m", "-1m", "1.5s", 0])
def test_keep_alive_in_every_form_goes_with_a_prompt(site, value):
    assert site.post("/api/chat", {**CHAT, "keep_alive": value, "stream": False}).status_code == 200


def test_embed(site):
    body = site.post("/api/embed", {"model": "vectors", "input": ["one", "two"]}).json()
    assert len(body["embeddings"]) == 2
    assert all(math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-6) for vector in body["embeddings"])
    assert body["prompt_eval_count"] > 0
    assert body["total_duration"] > 0
    single = site.post("/api/embed", {"model": "vectors", "input": "one"}).json()
    assert single["embeddings"][0] == body["embeddings"][0]
    old = site.post("/api/embeddings", {"model": "vectors", "prompt": "one"}).json()
    assert old["embedding"] == body["embeddings"][0]
    assert site.post("/api/embed", {"model": "vectors", "input": []}).json()["embeddings"] == []


def test_embed_cuts_unless_told_otherwise(site):
    ask = {"model": "vectors", "input": "x" * 40}
    assert site.post("/api/embed", ask).json()["prompt_eval_count"] == 16
    response = site.post("/api/embed", {**ask, "truncate": False})
    assert response.status_code == 400
    assert response.json()["error"].startswith("the input length exceeds the context length")


def test_an_unknown_model(site):
    response = site.post("/api/chat", {**CHAT, "model": "nope"})
    assert response.status_code == 404
    assert "model 'nope' not found" in response.json()["error"]


def test_what_is_told(site):
    client = site.client
    assert client.get("/").text == "Ollama is running"
    assert client.head("/").status_code == 200
    assert client.get("/api/version").json()["version"]
    tags = {entry["name"]: entry for entry in client.get("/api/tags").json()["models"]}
    assert tags.keys() == {"fake", "plain", "vectors"}
    assert len(tags["fake"]["digest"]) == 64
    ps = {entry["name"]: entry for entry in client.get("/api/ps").json()["models"]}
    assert (ps["fake"]["size"], ps["fake"]["context_length"], ps["fake"]["size_vram"]) == (1230, 256, 0)
    assert ps["fake"]["expires_at"].startswith("23")


def test_show(site):
    shown = site.post("/api/show", {"model": "fake"}).json()
    assert shown["capabilities"] == ["completion"]
    assert shown["tandem"]["context_length"] == 256
    assert "<|im_start|>" in shown["template"]
    assert site.post("/api/show", {"name": "vectors"}).json()["capabilities"] == ["embedding"]
    assert site.post("/api/show", {}).status_code == 400


def test_report_metrics_and_health(site):
    report = site.client.get("/internal/report").json()
    fake = next(entry for entry in report["models"] if entry["name"] == "fake")
    assert (report["ready"], report["draining"], fake["state"]) == (True, False, "Loaded")
    assert (fake["contextGiven"], fake["slots"], fake["sizeBytes"], fake["busy"]) == (256, 4, 1230, 0)
    assert fake["artifact"]["architecture"] == "FakeForCausalLM"
    assert report["devices"][0]["totalBytes"] > 0
    before = site.client.get("/metrics").text
    sse(site.post("/v1/chat/completions", {**CHAT, "stream": True}).text)
    after = site.client.get("/metrics").text

    def value(text, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    ok = 'tandem_requests_total{dialect="openai",model="fake",outcome="ok"}'
    assert value(after, ok) == value(before, ok) + 1
    assert value(after, 'tandem_num_requests_running{model="fake"}') == 0
    assert value(after, 'tandem_time_to_first_token_seconds_count{model="fake"}') > 0
    assert site.client.get("/healthz").text == "ok\n"
    assert site.client.get("/readyz").text == "ready\n"
