"""A client that goes away: in every dialect and phase its work ends at once, and nothing of it is left."""

import asyncio
import json
import logging

import pytest
from server_site import until

pytestmark = pytest.mark.process

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"prompt": "Hi"}
LONG = {"max_tokens": 90_000, "options": {"num_predict": 90_000}}
GENERATING = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT), ("/api/chat", CHAT), ("/api/generate", TEXT)]
EMBEDDING = [
    ("/v1/embeddings", {"input": "Hi"}),
    ("/api/embed", {"input": "Hi"}),
    ("/api/embeddings", {"prompt": "Hi"}),
]


class Caller:
    """One request over a socket of its own, which can vanish at any moment."""

    @classmethod
    async def call(cls, site, path, body, cut=None):
        """Sends the request, or its first `cut` bytes of body."""
        self = cls()
        address, _, port = site.url.removeprefix("http://").partition(":")
        self.reader, self.writer = await asyncio.open_connection(address, int(port))
        data = json.dumps({"model": "fake", **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data[:cut])
        await self.writer.drain()
        return self

    def vanish(self):
        self.writer.transport.abort()


def idle(site):
    line = site.host().admission.line
    streams = site.host().runner.client.streams if site.host().runner else {}
    return not line.running and not line.waiting and not streams and not site.pod.answering


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_while_it_is_answered_and_in_the_prompt(serve, make_model, path, body, stream):
    model = make_model(context=100_000, answer=[40, 41, 42])
    site = await serve(model.entry(slots=1))
    model.hold()  # the runner took the prompt and has made nothing yet
    prompt = await Caller.call(site, path, {**body, **LONG, "stream": stream})
    await until(lambda: len(model.admitted()) == 1, "the runner to take the prompt")
    prompt.vanish()
    await until(lambda: model.aborted() == 1, "the abort while the prompt is read")
    model.release()
    await until(lambda: idle(site), "the free slot")
    answered = await Caller.call(site, path, {**body, **LONG, "stream": stream})
    await until(lambda: len(model.admitted()) == 2, "the second start")
    if stream:
        await answered.reader.readuntil(b"200 OK")
    answered.vanish()
    await until(lambda: model.aborted() == 2, "the abort while it is answered")
    await until(lambda: idle(site), "the free slot")


@pytest.mark.parametrize(("path", "body"), [*GENERATING, *EMBEDDING])
async def test_while_it_waits(serve, make_model, path, body):
    model = make_model(task="Embed" if (path, body) in EMBEDDING else "Generate")
    site = await serve(model.entry(slots=1))
    holder = site.host().admission.enter()
    caller = await Caller.call(site, path, body)
    await until(lambda: site.host().admission.line.waiting, "the wait")
    caller.vanish()
    await until(lambda: not site.host().admission.line.waiting and not site.pod.answering, "the end of the wait")
    holder.leave()
    assert site.pod.manager._bound.waiting == 0
    assert model.admitted() == []


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_while_it_waits_for_a_load_alone(serve, model, path):
    model.slow_down()
    site = await serve(model.entry(), load=False)
    caller = await Caller.call(site, path, {})
    await until(lambda: site.host().progress, "the load")
    caller.vanish()
    await until(lambda: idle(site), "the end of the wait")
    model.speed_up()
    await site.loaded()
    assert site.host().loads == 1, "the load goes on"


@pytest.mark.parametrize(("path", "body"), [GENERATING[0], GENERATING[2], EMBEDDING[0]])
async def test_while_it_still_sends(serve, model, path, body, caplog):
    caplog.set_level(logging.INFO)
    site = await serve(model.entry())
    caller = await Caller.call(site, path, body, cut=5)
    await until(lambda: site.pod.answering == 1, "the request's beginning")
    caller.vanish()
    await until(lambda: idle(site), "its end")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "no fault of the server"


async def test_a_hundred_at_once_leave_nothing(serve, make_model):
    model = make_model(context=100_000, answer=[40, 41, 42])
    site = await serve(model.entry(slots=2, queue={"max": 500}))
    callers = [
        await Caller.call(site, *GENERATING[index % 4][:1], {**GENERATING[index % 4][1], **LONG})
        for index in range(100)
    ]
    line = site.host().admission.line
    await until(lambda: len(line.running) + len(line.waiting) == 100, "all of them")
    for caller in callers:
        caller.vanish()
    await until(lambda: idle(site), "the end of all")
    assert site.pod.manager._bound.waiting == 0
    answer = await site.client.post("/v1/chat/completions", json={"model": "fake", **CHAT, "max_tokens": 3})
    assert answer.json()["usage"]["completion_tokens"] == 3
