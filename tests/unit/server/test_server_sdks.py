"""The official clients of OpenAI and Ollama against the pod."""

import ollama
import openai
import pytest
from server_site import ANSWER

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def openai_client(site):
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ollama_client(site):
    client = ollama.Client(host=site.url)
    yield client
    client._client.close()


def test_openai_chat(openai_client):
    whole = openai_client.chat.completions.create(model="fake", messages=MESSAGES, logprobs=True, top_logprobs=1)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].logprobs.content[0].top_logprobs[0].logprob == -2.0
    stream = openai_client.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_completions_embeddings_models(openai_client):
    assert (
        openai_client.completions.create(model="plain", prompt="x", max_tokens=3).choices[0].finish_reason == "length"
    )
    made = openai_client.embeddings.create(model="vectors", input=["a", "b"])
    assert [len(entry.embedding) for entry in made.data] == [8, 8]
    assert {model.id for model in openai_client.models.list()} == {"fake", "plain", "vectors"}
    assert openai_client.models.retrieve("fake").id == "fake"


def test_openai_errors(openai_client):
    with pytest.raises(openai.NotFoundError, match="fake, plain, vectors"):
        openai_client.chat.completions.create(model="nope", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        openai_client.chat.completions.create(model="fake", messages=MESSAGES, temperature=-1)


def test_ollama_chat_and_generate(ollama_client):
    assert ollama_client.chat("fake", MESSAGES).message.content == ANSWER
    pieces = list(ollama_client.chat("fake", MESSAGES, stream=True, keep_alive="5m"))
    assert "".join(piece.message.content for piece in pieces) == ANSWER
    assert pieces[-1].done_reason == "stop"
    made = ollama_client.generate("fake", "Hi", options={"num_predict": 3})
    assert (made.eval_count, made.done_reason) == (3, "length")


def test_ollama_embed_and_lists(ollama_client):
    assert len(ollama_client.embed("vectors", ["a", "b"]).embeddings) == 2
    assert len(ollama_client.embeddings("vectors", "a").embedding) == 8
    assert {entry.model for entry in ollama_client.list().models} == {"fake", "plain", "vectors"}
    assert {entry.name for entry in ollama_client.ps().models} == {"fake", "plain", "vectors"}
    assert ollama_client.show("fake").capabilities == ["completion"]
    assert ollama_client.generate("fake").done_reason == "load"


def test_ollama_errors(ollama_client):
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        ollama_client.chat("nope", MESSAGES)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="temperature"):
        list(ollama_client.chat("fake", MESSAGES, stream=True, options={"temperature": -1}))
