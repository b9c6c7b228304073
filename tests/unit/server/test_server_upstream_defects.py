"""Defects that were found in Ollama, each as a test that would have caught it in this pod.

The list, with the engine's own tests, is docs/upstream-defects.md; a test holds it to those that exist.
"""

import asyncio
import re
import time
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from server_site import REAL, embedding_folder, fake_settings, lines, served, until

from tandem_api.catalog import CatalogModel
from tandem_server.engine import wire
from tandem_server.generation import Ask, Usage, generate
from tandem_server.residency.client import WireClient

ROOT = Path(__file__).resolve().parents[3]
LIST = ROOT / "docs" / "upstream-defects.md"
RAW = {"model": "fake", "raw": True, "stream": False}


def letters(model, count=26):
    """Token ids of the letters a, b, c, ... one each."""
    ids = [model.tokenizer.token_to_id(chr(ord("a") + number)) for number in range(count)]
    assert None not in ids
    return ids


@pytest.fixture
def spelling(make_model):
    """Makes a model that says the alphabet over and over."""

    def make(name="checkpoint", **fields):
        model = make_model(name, **fields)
        model.write(answer=letters(model), **fields)
        return model

    return make


@pytest.mark.process
@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions"])
async def test_one_requests_hard_error_neither_ends_nor_locks_the_others(serve, spelling, path):
    """1a2feb2a9 (deadlock on a hard error) and, unfixed upstream, one hard error that ends the whole runner."""
    model = spelling(context=100_000)
    site = await serve(model.entry(slots=2))
    pid = site.host().runner.pid
    long = {**RAW, "prompt": "x", "max_tokens": 600, "options": {"num_predict": 600}}
    model.hold()
    running = asyncio.create_task(site.client.post(path, json=long))
    await until(lambda: len(model.admitted()) == 1)
    bad = [asyncio.create_task(site.client.post(path, json={**RAW, "prompt": "<|fail|>"})) for _ in range(20)]
    await until(lambda: len(site.host().admission.line.waiting) == 19, "the others to wait behind one slot")
    model.release()
    assert [answer.status_code for answer in await asyncio.gather(*bad)] == [500] * 20
    body = (await running).json()
    text = body["response"] if path.startswith("/api") else body["choices"][0]["text"]
    assert text == ("abcdefghijklmnopqrstuvwxyz" * 24)[:600]
    assert (site.host().runner.pid, site.host().restarts) == (pid, 0)
    assert (
        await site.client.post(path, json={**long, "max_tokens": 2, "options": {"num_predict": 2}})
    ).status_code == 200


async def test_rows_of_an_ended_request_reach_no_other(tmp_path):
    """14072: output of a sequence that was replaced went into the one that replaced it."""
    client = WireClient(f"ipc://{tmp_path}/wire", lambda message: None)
    other = WireClient(f"ipc://{tmp_path}/other", lambda message: None)
    peer = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    peer.connect(f"ipc://{tmp_path}/wire")

    async def tell(*rows):
        await peer.send(wire.encode(wire.Tokens(1, list(rows))))

    async def tokens_of(stream):
        return [row.tokens async for _, row in stream.rows()]

    try:
        first = client.add(wire.Add(0, [1], 5, wire.Sampling()), lambda: None)
        await tell(wire.TokenRow(first.number, [1], "length"))
        assert await tokens_of(first) == [[1]]
        aborted = client.add(wire.Add(0, [1], 5, wire.Sampling()), lambda: None)
        aborted.abort()
        second = client.add(wire.Add(0, [2], 5, wire.Sampling()), lambda: None)
        assert len({first.number, aborted.number, second.number}) == 3
        await tell(wire.TokenRow(first.number, [6], None), wire.TokenRow(aborted.number, [7], "abort"))
        await tell(wire.TokenRow(aborted.number, [8], None), wire.TokenRow(second.number, [2], None))
        await tell(wire.TokenRow(first.number, [9], "length"), wire.TokenRow(second.number, [3], "length"))
        assert await tokens_of(second) == [[2], [3]]
        assert other.add(wire.Add(0, [3], 5, wire.Sampling()), lambda: None).number > second.number, (
            "of another runner too"
        )
    finally:
        peer.close(linger=0)
        await client.close()
        await other.close()


@pytest.mark.process
async def test_nobody_gets_anothers_words(serve, make_model):
    """4767, 17599: content of one request in another's answer; here forty at once, every third of which goes away."""
    model = make_model(echo=True)
    site = await serve(model.entry(slots=4))
    words = [f"{number:02d}word" for number in range(40)]
    asks = [
        asyncio.create_task(
            site.client.post("/api/generate", json={**RAW, "prompt": word, "options": {"num_predict": 60}})
        )
        for word in words
    ]
    await until(lambda: len(model.admitted()) >= 4)
    for ask in asks[::3]:
        ask.cancel()
    for word, ask in zip(words, asks, strict=True):
        if not ask.cancelled() and not ask.cancelling():
            text = (await ask).json()["response"]
            assert text == (word * 60)[: len(text)]
            assert len(text) >= 60


@pytest.mark.process
@pytest.mark.parametrize("count", [1, 2, 3, 17])
async def test_a_token_limit_is_met_exactly(serve, spelling, count):
    """c61023f55: one token too few."""
    site = await serve(spelling().entry())
    ollama = (
        await site.client.post("/api/generate", json={**RAW, "prompt": "x", "options": {"num_predict": count}})
    ).json()
    said = "abcdefghijklmnopqrstuvwxyz"[:count]
    assert (ollama["response"], ollama["eval_count"], ollama["done_reason"]) == (said, count, "length")
    openai = (
        await site.client.post("/v1/completions", json={"model": "fake", "prompt": "x", "max_tokens": count})
    ).json()
    assert (openai["choices"][0]["text"], openai["choices"][0]["finish_reason"]) == (said, "length")
    assert openai["usage"]["completion_tokens"] == count


@pytest.mark.process
@pytest.mark.parametrize(("shift", "counted"), [(False, 24), (True, 244), (None, 244)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_context_that_is_full_cuts_behind_the_last_token(serve, spelling, shift, counted, stream):
    """Unfixed upstream: with `shift: false` the cut loses the last token, which is not sampled yet.

    With it, as upstream by default, the answer goes on, to ten contexts at most.
    """
    site = await serve(spelling(context=24).entry())
    answer = await site.client.post("/api/generate", json={**RAW, "prompt": "xxxx", "shift": shift, "stream": stream})
    *pieces, last = lines(answer.text)
    assert (last["done_reason"], last["prompt_eval_count"] + last["eval_count"]) == ("length", counted)
    text = "".join(piece["response"] for piece in [*pieces, last])
    assert text == ("abcdefghijklmnopqrstuvwxyz" * 10)[: last["eval_count"]]


@pytest.mark.process
async def test_durations_leave_out_the_wait_in_line(serve, spelling):
    """967a82f52: times in which a request did nothing were counted as its own."""
    model = spelling()
    site = await serve(model.entry(slots=1))
    holder = site.host().admission.enter()
    began = time.monotonic()
    ask = asyncio.create_task(
        site.client.post("/api/generate", json={**RAW, "prompt": "x", "options": {"num_predict": 3}})
    )
    await until(lambda: site.host().admission.line.waiting)
    waited = 2.0
    await until(lambda: time.monotonic() > began + waited)
    holder.leave()
    body = (await ask).json()
    load, prompt, making = (body[f"{name}_duration"] for name in ("load", "prompt_eval", "eval"))
    assert load > 0.8 * waited * 1e9
    assert 0 < prompt + making < waited * 1e9
    assert load + prompt + making <= body["total_duration"]


@pytest.mark.process
async def test_durations_leave_out_a_client_that_reads_slowly(serve, spelling):
    """967a82f52 again: the time in which the client did not take its tokens is no time of the model."""
    model = spelling()
    site = await serve(model.entry())
    usage = Usage()
    ask = Ask("ollama", lambda checkpoint, room: [1], lambda checkpoint: wire.Sampling(), False, 1, max_tokens=20)
    pieces = generate(site.host(), ask, site.pod.metrics, usage)
    await anext(pieces)
    await until(lambda: not site.host().admission.line.running, "the runner's last token")
    done, slow = time.monotonic(), 1.0
    await until(lambda: time.monotonic() > done + slow)
    async for _ in pieces:
        pass
    assert usage.completion_tokens == 20
    assert usage.first < usage.last <= done


@pytest.mark.process
async def test_what_a_model_cannot_do_is_refused_and_hurts_nobody(serve, spelling, make_model):
    """9714e38dd: a model without a cache was asked for one."""
    vectors = make_model("vectors", task="Embed")
    site = await serve(spelling().entry(), vectors.entry("vectors"))
    for path, body in (
        ("/api/generate", {**RAW, "model": "vectors", "prompt": "x"}),
        ("/api/embed", {"model": "fake", "input": "x"}),
        ("/v1/embeddings", {"model": "fake", "input": "x"}),
    ):
        answer = await site.client.post(path, json=body)
        assert answer.status_code == 400, answer.text
        assert "is for" in answer.text
    assert all(host.restarts == 0 for host in site.pod.manager.hosts.values())


@pytest.mark.process
async def test_many_embeddings_at_once_are_all_answered(serve, make_model):
    """13170: concurrent embeddings were answered with 500."""
    site = await serve(make_model(task="Embed").entry(slots=2))
    texts = [f"text {number}" for number in range(80)]
    made = await asyncio.gather(
        *(site.client.post("/api/embed", json={"model": "fake", "input": text}) for text in texts)
    )
    together = (await site.client.post("/api/embed", json={"model": "fake", "input": texts})).json()["embeddings"]
    assert [answer.json()["embeddings"][0] for answer in made] == together


@pytest.mark.torch
async def test_many_and_long_inputs_are_embedded_as_each_alone(tmp_path):
    """13429: embeddings that were split over several batches crashed."""
    entry = CatalogModel(name="vectors", source=f"file://{embedding_folder()}")
    texts = [" ".join(["word", "cat", "river"][number % 3] for number in range(1 + 17 * index)) for index in range(36)]
    async with served(fake_settings(tmp_path, **REAL), [entry], load=False) as site:
        site.host("vectors").want()
        await until(lambda: site.host("vectors").loaded, "the load", 60)
        both = (await site.client.post("/api/embed", json={"model": "vectors", "input": texts})).json()["embeddings"]
        for index in (0, 1, 7, 20, 35):
            alone = (await site.client.post("/api/embed", json={"model": "vectors", "input": texts[index]})).json()
            assert max(abs(a - b) for a, b in zip(alone["embeddings"][0], both[index], strict=True)) < 1e-4
        assert site.host("vectors").restarts == 0


@pytest.mark.process
async def test_every_wait_is_bounded_for_loaded_models_and_for_loads(serve, spelling):
    """7758: requests for a loaded model waited without a bound; so did those that only load."""
    model = spelling()
    model.slow_down()
    site = await serve(model.entry(slots=1, queue={"max": 2}), load=False)
    loads = [asyncio.create_task(site.client.post("/api/generate", json={"model": "fake"})) for _ in range(2)]
    line = site.host().admission.line
    await until(lambda: len(line.waiting) == 2)
    assert (await site.client.post("/api/generate", json={"model": "fake"})).status_code == 503
    model.speed_up()
    assert [answer.status_code for answer in await asyncio.gather(*loads)] == [200, 200]
    model.hold()
    asks = [asyncio.create_task(site.client.post("/api/generate", json={**RAW, "prompt": "x"})) for _ in range(3)]
    await until(lambda: (len(line.running), len(line.waiting)) == (1, 2))
    refused = await site.client.post("/api/generate", json={**RAW, "prompt": "x"})
    assert (refused.status_code, refused.json()["error"]) == (
        503,
        "server busy, please try again.  maximum pending requests exceeded",
    )
    model.release()
    assert [answer.status_code for answer in await asyncio.gather(*asks)] == [200] * 3


def test_the_list_names_tests_that_exist():
    rows = [line for line in LIST.read_text().splitlines() if line.startswith("| ") and "::" in line]
    named = [match for row in rows for match in re.findall(r"`([\w/]+\.py)::(\w+)`", row)]
    assert len(rows) >= 15
    assert all("`" in row for row in rows)
    for file, name in named:
        assert re.search(rf"def {name}\(", (ROOT / "tests" / "unit" / file).read_text()), f"{file}::{name}"
    for file in (Path(__file__), ROOT / "tests" / "unit" / "engine" / "test_engine_upstream_defects.py"):
        there = set(re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE))
        unlisted = there - {name for _, name in named} - {"test_the_list_names_tests_that_exist"}
        assert not unlisted, f"{file.name} has tests that the list does not name"
