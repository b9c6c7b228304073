"""Requests through a whole gateway to pods on loopback: what passes, what is dropped, what is refused."""

import asyncio
import io
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, GENERATE = "/v1/chat/completions", "/api/generate"


async def test_the_answer_passes_as_the_pod_gave_it(site: Any, behave: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        headers = {
            "x-tandem-load": "busy=1, queued=0, slots=4",
            "x-tandem-context-length": "2048",
            "x-own": "kept",
            "Connection": "keep-alive, x-hop",
            "x-hop": "dropped",
        }
        return web.Response(status=418, body=b"exactly this", headers=headers, content_type="text/x-odd")

    pod = await site.pod("127.0.0.2", handler)
    body = json.dumps({"model": "coder", "x": "ü" * 10}).encode()
    status, headers, data = await site.post(CHAT + "?a=%20b&c", body, headers={"x-custom": "1"})
    assert (status, data) == (418, b"exactly this")
    assert headers["x-tandem-context-length"] == "2048"
    assert headers["x-own"] == "kept"
    assert headers["Content-Type"] == "text/x-odd"
    assert not {"x-tandem-load", "x-hop"} & {name.lower() for name in headers}
    target, sent, received = pod.requests[0]
    assert (target, received) == (CHAT + "?a=%20b&c", body)
    assert sent["x-custom"] == "1"


async def test_no_credential_of_the_client_reaches_a_pod(site: Any, behave: Any) -> None:
    pod = await site.pod("127.0.0.2")
    secret = {
        "Authorization": "Bearer client-secret",
        "x-api-key": "client-secret",
        "Cookie": "s=client-secret",
        "x-tandem-load": "client-secret",
        "x-named": "client-secret",
        "Connection": "x-named",
        "Proxy-Authorization": "client-secret",
    }
    assert (await site.chat(headers=secret))[0] == 200
    _, sent, _ = pod.requests[0]
    assert "client-secret" not in str(sent)
    assert sent["Authorization"] == f"Bearer {behave.key('uid-default-coder')}"


async def test_a_stream_passes_piece_by_piece(site: Any, behave: Any) -> None:
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await go_on.wait()
        await response.write(b"data: two\n\n")
        return response

    await site.pod("127.0.0.2", handler)
    async with site.client.post(site.url + CHAT, data=b'{"model": "coder"}') as response:
        assert await response.content.readany() == b"data: one\n\n"
        go_on.set()
        assert await response.read() == b"data: two\n\n"


async def test_a_slow_client_slows_the_pod(site: Any, behave: Any) -> None:
    written = 0
    stopped = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
                written += 65536
        finally:
            stopped.set()

    await site.pod("127.0.0.2", handler)
    async with site.client.post(site.url + CHAT, data=b'{"model": "coder"}'):
        # Buffers of sockets fill up, then the pod stands still: the same count for a while.
        before = -1
        async with asyncio.timeout(20):
            while before != written or not written:
                before = written
                await asyncio.sleep(0.25)
        assert written < 64 * 1024 * 1024
    await asyncio.wait_for(stopped.wait(), 5)


async def test_a_client_that_leaves_ends_the_pods_work_at_once(site: Any, behave: Any) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return web.Response()

    await site.pod("127.0.0.2", handler)
    request = asyncio.create_task(site.chat())
    await asyncio.wait_for(begun.wait(), 5)
    request.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    await site.until(lambda: site.gateway.lifecycle.requests == 0)
    assert site.gateway.directory.loads.in_flight("uid-pod-127.0.0.2") == 0


async def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_it(site: Any, behave: Any) -> None:
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(b"{}\n")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return response

    await site.pod("127.0.0.2", handler)
    async with site.client.post(site.url + GENERATE, data=b'{"model": "coder"}') as response:
        await response.content.readany()
        response.close()
    await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"{}", "model is required"),
        (b'{"model": ""}', "model is required"),
        (b'{"model": 3}', "model must be a string"),
        (b'{"model": {"a": 1}}', "model must be a string"),
        (b"", "not JSON"),
    ],
)
async def test_a_body_without_a_model_is_refused_in_the_dialects_shape(site: Any, body: bytes, said: str) -> None:
    status, _, data = await site.post(CHAT, body)
    error = json.loads(data)["error"]
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    status, _, data = await site.post(GENERATE, body)
    assert status == 400
    assert said in json.loads(data)["error"]


async def test_a_body_that_is_too_large_is_refused_by_its_declared_and_by_its_real_length(make_site: Any) -> None:
    async with make_site(max_body_bytes=100) as site:

        async def undeclared() -> Any:
            yield b"x" * 60
            yield b"x" * 60

        status, _, data = await site.post(CHAT, b"x" * 101)
        assert status == 413
        assert "at most 100 bytes" in json.loads(data)["error"]["message"]
        async with site.client.post(site.url + GENERATE, data=undeclared()) as response:
            assert response.status == 413
            assert "at most 100 bytes" in (await response.json())["error"]


async def test_bodies_together_are_bounded_and_given_back(make_site: Any, behave: Any) -> None:
    async with make_site(max_buffered_bytes=100) as site:
        await site.model()
        release = asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            await release.wait()
            return web.Response()

        pod = await site.pod("127.0.0.2", handler)
        first = asyncio.create_task(site.post(CHAT, {"model": "coder", "fill": "x" * 40}))
        await site.until(lambda: len(pod.requests) == 1)
        status, headers, data = await site.post(CHAT, {"model": "coder", "fill": "x" * 40})
        assert (status, json.loads(data)["error"]["code"], headers["Retry-After"]) == (503, "gateway_busy", "1")
        release.set()
        assert (await first)[0] == 200
        assert (await site.post(CHAT, {"model": "coder", "fill": "x" * 40}))[0] == 200


async def test_requests_in_progress_are_bounded(make_site: Any, behave: Any) -> None:
    async with make_site(max_requests=1) as site:
        await site.model()
        release = asyncio.Event()

        async def handler(request: web.Request) -> web.StreamResponse:
            await release.wait()
            return web.Response()

        pod = await site.pod("127.0.0.2", handler)
        first = asyncio.create_task(site.chat())
        await site.until(lambda: len(pod.requests) == 1)
        assert (await site.chat())[0] == 503
        release.set()
        assert (await first)[0] == 200


async def test_an_unknown_model_is_told_which_models_there_are(site: Any, behave: Any) -> None:
    for number in range(25):
        await site.model(behave.model(f"m{number:02}", "other"))
    status, _, data = await site.chat("nope")
    error = json.loads(data)["error"]
    assert (status, error["type"], error["code"]) == (404, "not_found_error", "model_not_found")
    assert error["message"].startswith("model 'nope' not found, models that exist: coder, other/m00, other/m01")
    assert error["message"].endswith("other/m18 and 6 more")
    status, _, data = await site.post(GENERATE, {"model": "nope"})
    assert status == 404
    assert json.loads(data)["error"].startswith("model 'nope' not found, ")


async def test_a_model_without_a_ready_pod_says_why_not(site: Any, behave: Any) -> None:
    item = behave.model()
    condition = {"type": "Ready", "status": "False", "reason": "LoadFailed", "message": "No such file: weights."}
    await site.model({**item, "status": {"conditions": [condition]}})
    await site.until(lambda: site.gateway.directory.resolve("coder").ready is not None)
    status, headers, data = await site.chat()
    error = json.loads(data)["error"]
    assert (status, headers["Retry-After"], error["type"], error["code"]) == (503, "5", "server_error", "no_ready_pod")
    assert "LoadFailed: No such file: weights" in error["message"]
    status, headers, data = await site.post(GENERATE, {"model": "coder"})
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "LoadFailed: No such file: weights" in json.loads(data)["error"]


async def test_a_model_of_another_namespace_is_named_with_it_and_the_pod_gets_the_bare_name(
    site: Any, behave: Any
) -> None:
    await site.model(behave.model("coder", "team", aliases=["c:1b"]))
    pod = await site.pod("127.0.0.3", known=False)
    await site.show(behave.pod("127.0.0.3", namespace="team"))
    for asked, got in (("team/coder", "coder"), ("team/c:1b", "c:1b"), ("team/coder:latest", "coder:latest")):
        assert (await site.chat(asked))[0] == 200
        assert json.loads(pod.requests[-1][2]) == {"model": got, "messages": []}
    assert (await site.chat("c:1b"))[0] == 404


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/api/pull", "/v1/models/no-such", "/api/chat/"])
async def test_what_is_not_there_is_404_in_the_dialects_shape(site: Any, path: str) -> None:
    async with site.client.get(site.url + path) as response:
        assert response.status == 404
        error = (await response.json())["error"]
    assert isinstance(error, str if path.startswith("/api/") else dict)


async def test_the_wrong_method_is_405(site: Any) -> None:
    async with site.client.get(site.url + CHAT) as response:
        assert response.status == 405
        assert "takes POST, not GET" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("path", "kind", "head", "tail"),
    [
        (CHAT, "text/event-stream", b"data: {}\n\n", b'data: {"error":{'),
        (GENERATE, "application/x-ndjson", b"{}\n", b'{"error":"'),
    ],
)
async def test_a_pod_that_dies_midway_ends_the_stream_with_an_error_line(
    site: Any, path: str, kind: str, head: bytes, tail: bytes
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        await response.write(head + b'{"half": ')
        request.transport.abort()
        return response

    await site.pod("127.0.0.2", handler)
    status, _, data = await site.post(path, {"model": "coder"})
    assert status == 200
    assert data.startswith(head + tail)
    last = data.removeprefix(head).removeprefix(b"data: ")
    assert "pod pod-127.0.0.2 broke off in the middle of its answer" in str(json.loads(last)["error"])


async def test_a_pod_that_dies_in_an_answer_without_lines_cuts_the_client_off(site: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"half": ')
        request.transport.abort()
        return response

    await site.pod("127.0.0.2", handler)
    with pytest.raises(aiohttp.ClientPayloadError):
        await site.chat()
    assert site.gateway.directory.loads.in_flight("uid-pod-127.0.0.2") == 0


async def test_large_bodies_arrive_whole(site: Any) -> None:
    pod = await site.pod("127.0.0.2")
    body = json.dumps({"model": "coder", "image": "x" * 5_000_000}).encode()
    async with site.client.post(site.url + CHAT, data=io.BytesIO(body)) as response:
        assert response.status == 200
    assert pod.requests[0][2] == body
