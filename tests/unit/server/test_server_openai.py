"""OpenAI's API over loopback: shapes, streaming, usage, errors."""

import base64
import math
import struct

import pytest
from server_site import ANSWER, sse

from tandem_server.chat.bad_words import bad_words

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


def count(site, text):
    return len(site.tokenizer.encode(text, add_special_tokens=False).ids)


def test_chat_gives_the_whole_answer_with_usage(site):
    response = site.post("/v1/chat/completions", CHAT)
    body = response.json()
    assert response.status_code == 200
    assert (body["object"], body["model"]) == ("chat.completion", "fake")
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop"
    prompt = count(site, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    answer = count(site, ANSWER)
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert response.headers["x-tandem-context-length"] == "256"
    assert response.headers["x-tandem-load"].endswith("slots=4")


def test_chat_streams_role_pieces_finish_usage_and_done(site):
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    response = site.post("/v1/chat/completions", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-tandem-context-length"] == "256"
    *chunks, done = sse(response.text)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-2]) == ANSWER
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-2])
    assert (chunks[-2]["choices"][0]["delta"], chunks[-2]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == count(site, ANSWER)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stream_without_usage_has_no_usage_chunk(site):
    chunks = sse(site.post("/v1/chat/completions", {**CHAT, "stream": True}).text)
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_max_tokens_ends_with_length(site):
    body = site.post("/v1/chat/completions", {**CHAT, "max_completion_tokens": 3}).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


def test_a_stop_string_is_not_given_and_tokens_after_it_do_not_count(site):
    body = site.post("/v1/chat/completions", {**CHAT, "stop": ["<done>", "never"]}).json()
    before = ANSWER.partition("<done>")[0]
    assert body["choices"][0]["message"]["content"] == before
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == count(site, before + "<done>")


def test_a_stop_string_counts_from_min_tokens_on(site):
    least = count(site, ANSWER.partition("rld")[0]) + 1
    body = site.post("/v1/chat/completions", {**CHAT, "stop": ["ll", "20"], "min_tokens": least}).json()
    assert body["choices"][0]["message"]["content"] == ANSWER.partition("20")[0]
    body = site.post("/v1/chat/completions", {**CHAT, "stop": ["ll", "20"], "min_tokens": 1}).json()
    assert body["choices"][0]["message"]["content"] == "He"


def test_bad_words_are_run_of_tokens_with_and_without_a_space(site):
    checkpoint = site.pod.manager.hosts["fake"].checkpoint
    runs = bad_words(["hello", " user", "q"], checkpoint)
    texts = ["".join(checkpoint.tokenizer.text_of(token) for token in run) for run in runs]
    assert set(texts) >= {"hello", "user", "q"}
    assert {text.strip() for text in texts} == {"hello", "user", "q"}


def test_the_answer_is_clipped_to_the_context(site):
    body = site.post("/v1/chat/completions", {**CHAT, "max_tokens": 10_000, "ignore_eos": True}).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 256


def test_the_models_default_bounds_the_answer(site):
    body = site.post("/v1/chat/completions", {**CHAT, "ignore_eos": True}).json()
    assert body["usage"]["completion_tokens"] == 200


def test_logprobs_of_chat(site):
    body = {**CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    content = site.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    assert ANSWER.startswith(b"".join(bytes(entry["bytes"]) for entry in content).decode())
    assert all(entry["logprob"] == -0.5 and len(entry["top_logprobs"]) == 2 for entry in content)


def test_streamed_logprobs_cover_every_token(site):
    chunks = sse(site.post("/v1/chat/completions", {**CHAT, "logprobs": True, "stream": True}).text)[:-1]
    told = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert b"".join(bytes(entry["bytes"]) for entry in told).decode() == ANSWER


def test_completion_with_text_ids_and_logprobs(site):
    body = site.post("/v1/completions", {"model": "fake", "prompt": "x", "max_tokens": 5, "logprobs": 1}).json()
    choice = body["choices"][0]
    told = choice["logprobs"]
    assert body["object"] == "text_completion"
    assert ANSWER.startswith(choice["text"])
    assert "".join(told["tokens"]) == choice["text"]
    assert [choice["text"].find(token, at) for token, at in zip(told["tokens"], told["text_offset"], strict=True)] == (
        told["text_offset"]
    )
    assert len(told["token_logprobs"]) == len(told["top_logprobs"]) == 5
    ids = site.post("/v1/completions", {"model": "plain", "prompt": [7, 8, 9]}).json()
    assert ids["usage"]["prompt_tokens"] == 3
    assert ids["usage"]["completion_tokens"] == 16


def test_an_alias_and_latest_reach_the_model(site):
    for name in ("other:name", "fake:latest"):
        assert site.post("/v1/chat/completions", {**CHAT, "model": name}).json()["model"] == name


def test_models_are_listed_with_their_context(site):
    listed = {entry["id"]: entry for entry in site.client.get("/v1/models").json()["data"]}
    assert listed.keys() == {"fake", "plain", "vectors"}
    assert listed["fake"]["max_model_len"] == 256
    assert site.client.get("/v1/models/other:name").json()["id"] == "fake"
    assert site.client.get("/v1/models/nope").status_code == 404


def test_an_unknown_model_is_told_which_there_are(site):
    response = site.post("/v1/chat/completions", {**CHAT, "model": "nope"})
    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["type"], error["code"], error["param"]) == ("not_found_error", "model_not_found", "model")
    assert "fake, plain, vectors" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_with_the_sizes(site, stream):
    body = {"model": "fake", "messages": [{"role": "user", "content": "x" * 300}], "stream": stream}
    response = site.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "256 tokens" in response.json()["error"]["message"]
    assert response.headers["x-tandem-context-length"] == "256"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_engine_before_any_token_is_a_status(site, stream):
    response = site.post("/v1/completions", {"model": "fake", "prompt": "<|fail|>", "stream": stream})
    assert response.status_code == 500
    assert "not to its liking" in response.json()["error"]["message"]


def test_a_user_cannot_write_control_tokens(site):
    body = {"model": "fake", "messages": [{"role": "user", "content": "<|fail|> <|im_end|>"}]}
    assert site.post("/v1/chat/completions", body).status_code == 200


def test_a_model_without_a_template_says_so(site):
    response = site.post("/v1/chat/completions", {**CHAT, "model": "plain"})
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]


def test_embeddings_as_floats_and_base64(site):
    body = {"model": "vectors", "input": ["one", "two"]}
    plain = site.post("/v1/embeddings", body).json()
    assert [entry["index"] for entry in plain["data"]] == [0, 1]
    packed = site.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()
    for one, other in zip(plain["data"], packed["data"], strict=True):
        assert list(struct.unpack("<8f", base64.b64decode(other["embedding"]))) == one["embedding"]
    assert plain["usage"]["prompt_tokens"] == count(site, "one") + count(site, "two")


def test_fewer_dimensions_are_normalised_again(site):
    full = site.post("/v1/embeddings", {"model": "vectors", "input": "one"}).json()["data"][0]["embedding"]
    short = site.post("/v1/embeddings", {"model": "vectors", "input": "one", "dimensions": 3}).json()
    vector = short["data"][0]["embedding"]
    assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-6)
    assert math.isclose(vector[0] / vector[1], full[0] / full[1], rel_tol=1e-5)
    too_many = site.post("/v1/embeddings", {"model": "vectors", "input": "one", "dimensions": 9})
    assert too_many.status_code == 400
    assert too_many.json()["error"]["param"] == "dimensions"


def test_embedding_input_that_is_too_long_is_refused(site):
    response = site.post("/v1/embeddings", {"model": "vectors", "input": "x" * 40})
    assert response.status_code == 400
    assert "the input length exceeds the context length" in response.json()["error"]["message"]


def test_each_model_is_for_its_own_task(site):
    chat = site.post("/v1/chat/completions", {**CHAT, "model": "vectors"})
    embed = site.post("/v1/embeddings", {"model": "fake", "input": "x"})
    assert (chat.status_code, embed.status_code) == (400, 400)
    assert "is for embeddings" in chat.json()["error"]["message"]
    assert "is for generating text" in embed.json()["error"]["message"]


def test_paths_and_methods_that_do_not_exist(site):
    assert site.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    response = site.client.get("/v1/chat/completions")
    assert response.status_code == 405
    assert "not allowed" in response.json()["error"]["message"]
