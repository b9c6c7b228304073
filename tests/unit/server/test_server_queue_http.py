"""The bounded queue seen by clients: 40 raw connections at once, refusals, order, disconnects."""

import asyncio
import json

import pytest
from server_site import until

pytestmark = pytest.mark.process

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


async def raw(url: str, path: str, body: dict) -> tuple[int, dict[str, str], bytes]:
    """One HTTP/1.1 exchange over a socket of its own, read to its end; any reset is an error."""
    address, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = head_bytes.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    return int(status.split()[1]), headers, rest


@pytest.mark.parametrize(
    ("path", "code"),
    [("/v1/chat/completions", '"code":"queue_full"'), ("/api/chat", "maximum pending requests exceeded")],
)
async def test_forty_at_once_give_twenty_admitted_and_twenty_refused(serve, make_model, path, code):
    model = make_model()
    site = await serve(model.entry(queue={"max": 16}))
    line = site.host().admission.line
    model.hold()
    tasks = []
    for number in range(40):
        body = {"model": "fake", "messages": [{"role": "user", "content": f"number {number:02}"}], "stream": True}
        tasks.append(asyncio.create_task(raw(site.url, path, body)))
        if number < 20:  # those that are admitted come one after the other, so that their order is known
            await until(lambda number=number: len(line.running) + len(line.waiting) == number + 1)
    refused = tasks[20:]
    for status, headers, rest in await asyncio.wait_for(asyncio.gather(*refused), 5):
        assert status == 503
        assert headers["x-tandem-refused"] == "queue_full"
        assert 1 <= int(headers["retry-after"]) <= 60
        assert headers["x-tandem-load"] == "busy=4, queued=16, slots=4"
        assert code in rest.decode()
    assert not any(task.done() for task in tasks[:20])
    model.release()
    for status, _, rest in await asyncio.wait_for(asyncio.gather(*tasks[:20]), 20):
        assert status == 200
        assert "Hello" in rest.decode()
    order = [prompt.partition("number ")[2][:2] for prompt in model.admitted()]
    assert order == [f"{number:02}" for number in range(20)]
    report = site.pod.report().models[0]
    assert (report.admitted_total, report.rejected_total, report.busy, report.queued) == (20, 20, 0, 0)


async def test_an_expired_wait_is_told_with_its_status_even_for_a_stream(serve, model):
    site = await serve(model.entry(slots=1, queue={"max": 4, "timeoutSeconds": 1}))
    model.hold()
    first = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: site.host().admission.line.running)
    late = await site.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert (late.status_code, late.headers["x-tandem-refused"]) == (503, "queue_timeout")
    model.release()
    assert (await first).status_code == 200


async def test_the_wait_for_memory_of_a_shared_pool_has_the_same_deadline(serve, make_model):
    """The runner keeps it until there is memory; it holds its slot, and gives it back when the runner says so."""
    model = make_model(pool_tokens=100)
    site = await serve(model.entry(slots=2, queue={"max": 4, "timeoutSeconds": 1}))
    model.hold()
    late = await site.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert (late.status_code, late.headers["x-tandem-refused"]) == (503, "queue_timeout")
    line = site.host().admission.line
    assert len(line.running) == 1
    assert site.pod.report().models[0].rejected == 1
    model.release()
    await until(lambda: not line.running)
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_embeddings_wait_in_the_same_line(serve, make_model):
    model = make_model(task="Embed")
    site = await serve(model.entry(slots=1, queue={"max": 0}))
    holder = site.host().admission.enter()
    refused = await site.client.post("/api/embed", json={"model": "fake", "input": "x"})
    assert refused.status_code == 503
    holder.leave()
    assert (await site.client.post("/api/embed", json={"model": "fake", "input": "x"})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_its_slot(serve, make_model, path, stream):
    model = make_model(context=100_000, answer=[40, 41, 42])
    site = await serve(model.entry(slots=1))
    body = json.dumps({**CHAT, "stream": stream, "max_tokens": 90_000}).encode()
    address, _, port = site.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await until(lambda: len(model.admitted()) == 1, "the runner's start")
    if stream:
        await reader.readuntil(b"200 OK")
    writer.transport.abort()
    await until(lambda: model.aborted() == 1, "the abort")
    await until(lambda: not site.host().admission.line.running, "the free slot")
    assert site.host().runner.client.streams == {}
    answer = await site.client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3})
    assert answer.json()["usage"]["completion_tokens"] == 3


async def test_a_client_that_goes_away_while_it_waits_is_forgotten(serve, model):
    site = await serve(model.entry(slots=1))
    model.hold()
    first = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    line = site.host().admission.line
    await until(lambda: line.running)
    address, _, port = site.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(address, int(port))
    body = json.dumps(CHAT).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    await until(lambda: line.waiting, "the wait")
    writer.transport.abort()
    await until(lambda: not line.waiting, "the end of the wait")
    model.release()
    assert (await first).status_code == 200
    assert len(model.admitted()) == 1
