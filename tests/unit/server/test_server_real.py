"""The pod with real runners: a small random Llama and the packaged sentence-embedding model."""

import json
import math
import os
import signal

import httpx
import pytest
from server_site import REAL, TEMPLATE, embedding_folder, fake_settings, served, until

from tandem_api.catalog import CatalogModel

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    """A checkpoint with random weights and this suite's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": TEMPLATE}))
    return folder


async def test_both_kinds_of_models_are_served_by_real_runners(tmp_path, llama):
    entries = [
        CatalogModel.model_validate(
            {
                "name": "chat",
                "source": f"file://{llama}",
                "slots": 2,
                "context": {"length": 128},
                "kvCache": {"policy": "Shared"},
            }
        ),
        CatalogModel(name="vectors", source=f"file://{embedding_folder()}"),
    ]
    async with served(fake_settings(tmp_path, **REAL, stop_seconds=5.0), entries, load=False) as site:
        for host in site.pod.manager.hosts.values():
            host.want()
        await until(lambda: all(host.loaded for host in site.pod.manager.hosts.values()), "the load", 60)
        await check_chat(site.client)
        await check_cut(site.client)
        await check_second_turn(site)
        await check_vectors(site.client)
        await check_death(site)


async def check_chat(client: httpx.AsyncClient) -> None:
    ask = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 20,
        "seed": 7,
        "temperature": 1.5,
    }
    first = (await client.post("/v1/chat/completions", json={**ask, "logprobs": True, "top_logprobs": 3})).json()
    second = (await client.post("/v1/chat/completions", json=ask)).json()
    assert first["choices"][0]["message"] == second["choices"][0]["message"], "one seed, one answer"
    assert 1 <= first["usage"]["completion_tokens"] <= 20
    told = first["choices"][0]["logprobs"]["content"]
    assert len(told) == first["usage"]["completion_tokens"]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3 for entry in told)


async def check_cut(client: httpx.AsyncClient) -> None:
    options = {"seed": 3, "num_predict": 200, "num_ctx": 64, "temperature": 0}
    ask = {"model": "chat", "prompt": "Hi", "raw": True, "stream": False, "options": options}
    cut = (await client.post("/api/generate", json={**ask, "shift": False})).json()
    assert (cut["done"], cut["done_reason"], cut["prompt_eval_count"] + cut["eval_count"]) == (True, "length", 64)
    shifted = (await client.post("/api/generate", json=ask)).json()
    assert 64 < shifted["eval_count"] <= 200, "it goes on where the other one was cut"
    assert shifted["response"].startswith(cut["response"])
    long = await client.post("/v1/completions", json={"model": "chat", "prompt": "x " * 200})
    assert (long.status_code, long.headers["x-tandem-context-length"]) == (400, "128")


async def check_second_turn(site) -> None:
    """What the first turn left is found, told in the answer, in the report and in the metrics."""
    ask = {"model": "chat", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    messages = [{"role": "user", "content": "Tell me about the sea and what lives in it, please."}]
    first = (await site.client.post("/v1/chat/completions", json={**ask, "messages": messages})).json()
    asked = first["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    again = (await site.client.post("/v1/chat/completions", json={**ask, "messages": messages})).json()
    found = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 32 <= found == (asked - 1) // 32 * 32
    assert again["choices"] == first["choices"]
    salted = {**ask, "messages": messages, "cache_salt": "mine"}
    other = (await site.client.post("/v1/chat/completions", json=salted)).json()
    assert other["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    report = lambda: site.pod.report().model("chat")  # noqa: E731
    await until(lambda: report().prefix_found == found, "the runner's figures", 10)
    assert (report().pool_tokens, report().context_given) == (256, 128)
    text = site.pod.metrics.text().decode()
    for name in (
        'tandem_prefix_cache_hits_total{model="chat"}',
        'vllm:prefix_cache_hits_total{engine="0",model_name="chat"}',
    ):
        assert f"{name} {found:.1f}" in text
    assert 'tandem_prefix_cache_evicted_blocks_total{model="chat"} 0.0' in text


async def check_vectors(client: httpx.AsyncClient) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    made = (await client.post("/api/embed", json={"model": "vectors", "input": texts})).json()["embeddings"]
    near = sum(a * b for a, b in zip(made[0], made[1], strict=True))
    far = sum(a * b for a, b in zip(made[0], made[2], strict=True))
    assert math.isclose(math.hypot(*made[0]), 1.0, abs_tol=1e-5)
    assert near > 0.5 > 0.2 > far


async def check_death(site) -> None:
    pid = site.host("chat").runner.pid
    ask = {"model": "chat", "prompt": "Hi", "max_tokens": 120, "ignore_eos": True, "stream": True}
    text = ""
    async with site.client.stream("POST", "/v1/completions", json=ask) as response:
        async for piece in response.aiter_text():
            if not text:
                os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGKILL)
            text += piece
    assert "was killed by signal 9 (SIGKILL)" in text or text.endswith("[DONE]\n\n")
    again = await site.client.post("/v1/completions", json={**ask, "stream": False}, timeout=60)
    assert again.status_code == 200
    assert site.host("chat").restarts == 1
    assert site.host("vectors").restarts == 0
