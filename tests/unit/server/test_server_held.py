"""What a client sees that is held for long: nothing at first, then what is waited for, then its answer or its error."""

import asyncio

import openai
import pytest
from server_site import ANSWER, lines, sse, until

from tandem_server.http import exchange

pytestmark = pytest.mark.process
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


@pytest.fixture
def impatient(monkeypatch):
    """A hold is told after a moment."""
    monkeypatch.setattr(exchange, "SILENT_SECONDS", 0.05)


async def read_held(site, model, path, body, words=" "):
    """Status and text of a stream that is held until these words were told of it."""
    model.slow_down()
    text = ""
    async with site.client.stream("POST", path, json=body) as response:
        async for piece in response.aiter_text():
            held = words not in text
            text += piece
            if held and words in text:
                model.speed_up()
    return response.status_code, text


async def test_a_load_is_told_in_comments(serve, model, impatient):
    site = await serve(model.entry(), load=False)
    words = ": model fake is loaded first: reading weights, 50% (1 bytes of 2 bytes)\n\n"
    status, text = await read_held(site, model, "/v1/chat/completions", CHAT, words)
    assert status == 200
    assert text.startswith(": model fake is loaded first: ")
    told = "".join(event["choices"][0]["delta"].get("content") or "" for event in sse(text) if event["choices"])
    assert told == ANSWER


async def test_spaces_stand_before_ollamas_first_object(serve, model, impatient):
    site = await serve(model.entry(), load=False)
    status, text = await read_held(site, model, "/api/chat", CHAT)
    assert status == 200
    assert text.startswith(" ")
    assert "".join(line["message"]["content"] for line in lines(text)) == ANSWER


async def test_a_load_that_fails_after_that_is_told_in_the_stream(serve, model, impatient):
    model.write(die_at_load="a tensor is missing")
    site = await serve(model.entry(), load=False, backoff_seconds=0.02)
    status, text = await read_held(site, model, "/v1/chat/completions", CHAT)
    assert status == 200
    assert "a tensor is missing" in sse(text)[-1]["error"]["message"]


async def test_a_wait_for_a_slot_is_told_and_a_short_one_is_not(serve, model, monkeypatch):
    site = await serve(model.entry(slots=1))
    model.hold()
    first = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: site.host().admission.line.running)
    monkeypatch.setattr(exchange, "SILENT_SECONDS", 0.05)
    text = ""
    async with site.client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        async for piece in response.aiter_text():
            if not text:
                assert piece == ": model fake: 1 requests run, 1 wait for a slot\n\n"
                model.release()
            text += piece
    assert (await first).text.startswith("data: ")


async def test_the_official_client_skips_what_is_told(serve, model, impatient):
    site = await serve(model.entry(), load=False)
    model.slow_down()
    client = openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0)
    asking = asyncio.create_task(client.chat.completions.create(**CHAT))
    stream = await asking
    model.speed_up()
    told = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(told) == ANSWER
    await client.close()


async def test_a_client_that_leaves_while_it_is_held_leaves_nothing(serve, model, impatient):
    site = await serve(model.entry(), load=False)
    model.slow_down()
    async with site.client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        await anext(response.aiter_text())
    await until(lambda: not site.host().admission.line.waiting)
    model.speed_up()
    await site.loaded()
