"""Requests whose first pod does not answer: what is sent again, to whom, how often, and what never is."""

import asyncio
import json
import random
import socket
from typing import Any

import pytest
from aiohttp import web

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM = b"".join(b"data: %d\n\n" % number for number in range(5))


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(5):
        await response.write(b"data: %d\n\n" % number)
        await asyncio.sleep(0)
    return response


def failed(site: Any, fault: str) -> float:
    """How many attempts have failed so since the gateway started."""
    return float(site.gateway.metrics.failed_attempts.labels(fault)._value.get())


@pytest.mark.parametrize("fault", ["connect", "reset", "draining", "key"])
async def test_another_pod_answers_when_one_fails(site: Any, behave: Any, fault: str) -> None:
    async def unauthorized(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401)

    handlers = {"reset": behave.reset, "draining": behave.refuse("draining"), "key": unauthorized}
    if fault == "connect":
        await site.show(behave.pod("127.0.0.2"))
    else:
        await site.pod("127.0.0.2", handlers[fault])
    good = await site.pod("127.0.0.3")
    before = failed(site, fault)
    statuses = [(await site.chat())[0] for _ in range(20)]
    assert statuses == [200] * 20
    assert len(good.requests) == 20
    # The first failure makes the pod the second choice, so that not every request pays for it.
    assert failed(site, fault) - before <= 1


async def test_an_address_that_swallows_connections_costs_one_connect_timeout(
    site: Any, behave: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pod is gone, packets to its address vanish; here a full accept queue drops them."""
    with socket.create_server(("127.0.0.4", site.port), backlog=0) as full, socket.socket() as filler:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        await site.show(behave.pod("127.0.0.4"))
        good = await site.pod("127.0.0.3")
        before, load = failed(site, "connect"), site.gateway.directory.loads
        load.begin("uid-pod-127.0.0.3", "coder")
        try:
            began = asyncio.get_running_loop().time()
            assert (await site.chat())[0] == 200
            assert 0.9 <= asyncio.get_running_loop().time() - began < 3
        finally:
            load.end("uid-pod-127.0.0.3", "coder")
        assert failed(site, "connect") - before == 1
        assert len(good.requests) == 1


@pytest.mark.parametrize("reason", ["queue_full", "queue_timeout"])
async def test_a_full_queue_is_an_answer(site: Any, behave: Any, reason: str) -> None:
    pods = [await site.pod(f"127.0.0.{number}", behave.refuse(reason)) for number in (2, 3)]
    status, headers, _ = await site.chat()
    assert (status, headers["x-tandem-refused"], headers["Retry-After"]) == (503, reason, "7")
    assert sum(len(pod.requests) for pod in pods) == 1


async def test_a_request_that_kills_pods_does_not_visit_them_all(site: Any, behave: Any) -> None:
    pods = [await site.pod(f"127.0.0.{number}", behave.reset) for number in range(2, 8)]
    status, _, data = await site.chat()
    error = json.loads(data)["error"]
    assert (status, error["code"]) == (502, "pod_died")
    assert "the connection broke before an answer" in error["message"]
    assert sum(len(pod.requests) for pod in pods) == 3


async def test_pods_that_cannot_be_reached_are_told_with_their_causes_after_a_bounded_time(
    site: Any, behave: Any
) -> None:
    await site.show(behave.pod("127.0.0.2"))
    began = asyncio.get_running_loop().time()
    status, headers, data = await site.post("/api/chat", {"model": "coder"})
    assert 0.3 <= asyncio.get_running_loop().time() - began < 3
    assert (status, headers["Retry-After"]) == (503, "5")
    assert "pod pod-127.0.0.2: no connection to 127.0.0.2 (" in json.loads(data)["error"]


async def test_when_the_only_pod_drains_its_successor_is_waited_for(site: Any, behave: Any) -> None:
    old = await site.pod("127.0.0.2", behave.refuse("draining"))
    request = asyncio.create_task(site.chat())
    await site.until(lambda: len(old.requests) == 1)
    new = await site.pod("127.0.0.3")
    assert (await asyncio.wait_for(request, 5))[0] == 200
    assert (len(old.requests), len(new.requests)) == (1, 1)


async def test_when_the_model_is_deleted_nothing_is_waited_for(site: Any, behave: Any) -> None:
    old = await site.pod("127.0.0.2", behave.refuse("draining"))
    began = asyncio.get_running_loop().time()
    request = asyncio.create_task(site.chat())
    await site.until(lambda: len(old.requests) == 1)
    site.models.remove(behave.model())
    status, _, data = await asyncio.wait_for(request, 5)
    assert (status, json.loads(data)["error"]["code"]) == (503, "model_deleted")
    assert asyncio.get_running_loop().time() - began < 1


async def test_a_lingering_pod_serves_when_there_is_no_other(site: Any, behave: Any) -> None:
    leaving = await site.pod("127.0.0.2", known=False)
    item = behave.pod("127.0.0.2", ready=False)
    item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    await site.show(item)
    assert (await site.chat())[0] == 200
    fresh = await site.pod("127.0.0.3")
    assert [(await site.chat())[0] for _ in range(5)] == [200] * 5
    assert (len(leaving.requests), len(fresh.requests)) == (1, 5)


async def test_kept_connections_that_the_pod_closed_are_no_error(site: Any, behave: Any) -> None:
    """The pod closes its kept connection exactly when the next request is on its way."""
    close_next = False

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal close_next
        if close_next:
            close_next = False
            assert request.transport
            request.transport.abort()
        return web.Response()

    pod = await site.pod("127.0.0.2", handler)
    assert (await site.chat())[0] == 200
    before, close_next = failed(site, "stale"), True
    assert (await site.chat())[0] == 200
    assert failed(site, "stale") - before == 1
    assert len(pod.requests) == 3


async def test_load_decides_and_the_pods_own_word_counts(site: Any, behave: Any) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"x-tandem-load": "busy=4, queued=9, slots=4"})

    async def idle(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"x-tandem-load": "busy=0, queued=0, slots=4"})

    loaded, free = await site.pod("127.0.0.2", busy), await site.pod("127.0.0.3", idle)
    for _ in range(30):
        assert (await site.chat())[0] == 200
    assert len(loaded.requests) <= 1
    assert len(free.requests) >= 29


async def test_reports_are_polled_and_count(site: Any, behave: Any) -> None:
    pod = await site.pod("127.0.0.2", known=False)
    pod.report = {
        "pod": "pod-127.0.0.2",
        "version": "1",
        "models": [{"name": "coder", "state": "Loaded", "busy": 4, "queued": 3, "slots": 4, "contextGiven": 512}],
    }
    await site.show(behave.pod("127.0.0.2"))
    await site.until(lambda: "uid-pod-127.0.0.2" in site.gateway.directory.loads.reports)
    free = await site.pod("127.0.0.3")
    for _ in range(10):
        assert (await site.chat())[0] == 200
    assert len(free.requests) == 10
    async with site.client.get(site.url + "/api/ps") as response:
        assert [entry["context_length"] for entry in (await response.json())["models"]] == [512]


async def test_no_request_fails_while_all_pods_are_replaced(site: Any, behave: Any) -> None:
    """At least 500 streams while pods come and go as in a rolling update; the gateway learns of each step too late."""
    chance = random.Random(7)
    living = [await site.pod(f"127.0.0.{number}", stream) for number in (2, 3)]
    rolled = asyncio.Event()
    answers: list[tuple[int, bytes]] = []

    async def client() -> None:
        while len(answers) < 500 or not rolled.is_set():
            status, _, data = await site.chat()
            answers.append((status, data))

    async def replace(old: Any, new: Any) -> None:
        # First the pod refuses, then (in half of the cases) the gateway hears that it ends, then its address answers
        # no more, and only at last the object goes: under load all the time.
        refused = len(old.requests)
        old.handler = behave.refuse("draining")
        await site.until(lambda: len(old.requests) > refused)
        item = behave.pod(old.ip)
        if chance.random() < 0.5:
            item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            await site.show(item)
        await old.stop()
        served = len(new.requests)
        await site.until(lambda: len(new.requests) > served + 20)
        site.pods.remove(item)

    async def roll() -> None:
        for number in range(4, 12):
            new = await site.pod(f"127.0.0.{number}", stream)
            await replace(living.pop(0), new)
            living.append(new)
        rolled.set()

    before = failed(site, "draining")
    await asyncio.gather(roll(), *(client() for _ in range(16)))
    assert [answer for answer in answers if answer != (200, STREAM)] == []
    assert len(answers) >= 500
    assert failed(site, "draining") - before >= 8
