"""Health, metrics, and the end: unready, linger, open streams finish, and what exceeds its time is cut and told."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tandem_gateway.objects import pod_view
from tandem_gateway.reports import ReportPoller
from tandem_gateway.serve import KEY_OF_GATEWAY


async def get(site: Any, port: int, path: str, **options: Any) -> tuple[int, str]:
    async with site.client.get(f"http://127.0.0.1:{port}{path}", **options) as response:
        return response.status, await response.text()


def streaming(go_on: asyncio.Event) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await go_on.wait()
        await response.write(b"data: two\n\n")
        return response

    return handler


async def test_ready_only_when_both_kinds_were_listed(make_site: Any) -> None:
    async with make_site() as site:
        health = site.gateway.health.port
        assert (await get(site, health, "/readyz"))[0] == 200
        assert (await get(site, health, "/healthz"))[0] == 200
        site.gateway._pods.synced.clear()
        status, said = await get(site, health, "/readyz")
        assert status == 503
        assert said.startswith("Pods have not been listed yet")
        assert "Models: 0, last heard 0 s ago." in said


async def test_ready_only_when_all_pods_that_there_were_have_been_asked(make_site: Any, behave: Any) -> None:
    """Of a pod that has told nothing nobody knows what it holds; later ones make a gateway unready no more."""
    hung = asyncio.Event()
    async with make_site() as other:

        async def report(request: web.Request) -> web.StreamResponse:
            await hung.wait()
            return web.json_response({"pod": "p", "version": "1"})

        pod = await other.pod("127.0.0.2", known=False)
        pod._report = report
        await pod.stop()
        await pod.start()
        poller = ReportPoller(other.gateway.directory, lambda _: "key", other.port)
        other.gateway.directory.follow({}, {"p": pod_view(behave.pod("127.0.0.2"))})
        running = asyncio.create_task(poller.run())
        try:
            assert poller.behind() == 1
            other.gateway.lifecycle.pods_to_ask = poller.behind
            status, said = await get(other, other.gateway.health.port, "/readyz")
            assert (status, said.splitlines()[0]) == (503, "Which models 1 pods hold has not been asked yet.")
            hung.set()
            await other.until(lambda: poller.behind() == 0)
            assert (await get(other, other.gateway.health.port, "/readyz"))[0] == 200
            other.gateway.directory.follow({}, {"q": pod_view(behave.pod("127.0.0.3"))})
            assert poller.behind() == 0
        finally:
            running.cancel()
            await asyncio.wait({running})


async def test_metrics_ask_for_the_gateways_key(make_site: Any, behave: Any) -> None:
    async with make_site() as site:
        await site.model()
        await site.pod("127.0.0.2")
        assert (await site.chat())[0] == 200
        assert (await site.chat("nope"))[0] == 404
        port = site.gateway.internal.port
        assert (await get(site, port, "/metrics"))[0] == 401
        wrong = {"Authorization": f"Bearer {behave.key('uid-default-coder')}"}
        assert (await get(site, port, "/metrics", headers=wrong))[0] == 401
        headers = {"Authorization": f"Bearer {behave.key(KEY_OF_GATEWAY)}"}
        status, text = await get(site, port, "/metrics", headers=headers)
        assert status == 200
        labels = 'model="coder",namespace="default",path="/v1/chat/completions",status="200"'
        assert f"tandem_gateway_requests_total{{{labels}}} 1.0" in text
        assert 'tandem_gateway_objects{kind="Pods"} 1.0' in text
        assert "nope" not in text


async def test_the_end_waits_for_open_streams_and_takes_requests_while_it_lingers(make_site: Any) -> None:
    go_on = asyncio.Event()
    async with make_site(linger_seconds=0.3) as site:
        await site.model()
        await site.pod("127.0.0.2", streaming(go_on))
        async with site.client.post(site.url + "/v1/chat/completions", data=b'{"model": "coder"}') as response:
            assert await response.content.readany() == b"data: one\n\n"
            site.stop.set()
            await site.until(lambda: site.gateway.lifecycle.draining)
            assert (await get(site, site.gateway.health.port, "/readyz"))[0] == 503
            status, headers, _ = await site.chat("nope")
            assert (status, headers["Connection"]) == (404, "close")
            await site.until(lambda: site.gateway.public.should_exit)
            assert not site.running.done()
            go_on.set()
            assert await response.read() == b"data: two\n\n"
        await asyncio.wait_for(site.running, 5)
        with pytest.raises(aiohttp.ClientConnectorError):
            await site.chat()


async def test_streams_that_exceed_the_drain_time_are_cut_with_the_reason(make_site: Any) -> None:
    async with make_site(linger_seconds=0.0, drain_seconds=0.3) as site:
        await site.model()
        await site.pod("127.0.0.2", streaming(asyncio.Event()))
        async with site.client.post(site.url + "/v1/chat/completions", data=b'{"model": "coder"}') as response:
            assert await response.content.readany() == b"data: one\n\n"
            site.stop.set()
            last = (await asyncio.wait_for(response.read(), 5)).decode()
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == (
            "the gateway was told to end and its time is over"
        )
        await asyncio.wait_for(site.running, 5)


async def test_a_piece_that_ends_by_itself_ends_the_gateway(make_site: Any) -> None:
    async def with_a_defect() -> None:
        async with make_site() as site:
            tasks = [task for task in asyncio.all_tasks() if task.get_name() == "polling reports"]
            tasks[0].cancel()
            await asyncio.wait({site.running}, timeout=5)

    with pytest.raises(RuntimeError, match="polling reports ended by itself"):
        await with_a_defect()
