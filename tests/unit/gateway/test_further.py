"""A further copy through the whole gateway: what the pods are sent, what is counted and what is told."""

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import web

from tandem_api import placement
from tandem_gateway import placing

pytestmark = pytest.mark.asyncio(loop_scope="module")

LABELS = {"tandem.dev/pool-uid": "uid-shared", "tandem.dev/pool": "shared", "tandem.dev/pool-kind": "ModelPool"}
IPS = placement.order("uid-default-pooled", [f"uid-pod-127.0.0.{number}" for number in (2, 3, 4)])
HOLDER, NEXT, LAST = (uid.removeprefix("uid-pod-") for uid in IPS)
ROOM = {"freeBytes": 100, "reachBytes": 100, "freeSeats": 1, "reachSeats": 1}


async def join(site: Any, behave: Any, ip: str, handler: Any, reach: int = 100, **entry: Any) -> Any:
    """A pod of the shared pool with this room and this entry in its report."""
    pod = await site.pod(ip, handler, known=False)
    model = {"name": "pooled", "needBytes": 60, **entry}
    pod.report = {"pod": ip, "version": "1", "room": {**ROOM, "reachBytes": reach}, "models": [model]}
    item = behave.pod(ip)
    await site.show({**item, "metadata": {**item["metadata"], "labels": LABELS}})
    await site.until(lambda: f"uid-pod-{ip}" in site.gateway.directory.loads.reports)
    return pod


def opened(site: Any) -> float:
    return float(site.gateway.metrics.further_copies.labels("default", "pooled")._value.get())


async def crowded(request: web.Request) -> web.StreamResponse:
    return web.Response(headers={"x-tandem-load": "busy=2, queued=9, slots=2"})


async def ask(site: Any, path: str = "/v1/chat/completions") -> int:
    return int((await site.post(path, {"model": "pooled"}))[0])


async def test_a_lasting_queue_opens_a_further_copy_which_gets_its_share(
    site: Any, behave: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await site.model(behave.model("pooled", pool="shared", slots=2, copies={"max": 2}))
    loaded = asyncio.Event()

    async def loading(request: web.Request) -> web.StreamResponse:
        await loaded.wait()
        return web.Response(headers={"x-tandem-load": "busy=0, queued=0, slots=2"})

    holder = await join(site, behave, HOLDER, crowded, state="Loaded", busy=2, queued=9, slots=2)
    further = await join(site, behave, NEXT, loading, state="Unloaded")
    last = await join(site, behave, LAST, loading, state="Unloaded")
    assert [await ask(site) for _ in range(5)] == [200] * 5
    assert (len(holder.requests), opened(site)) == (5, 0), "a burst opens nothing"
    monkeypatch.setattr(placing, "CROWDED_SECONDS", 0.001)
    assert await ask(site, "/api/show") == 200
    assert (len(holder.requests), opened(site)) == (6, 0), "a question loads nothing"
    with caplog.at_level(logging.INFO, "tandem_gateway.replay"):
        waiting = []
        for number in range(1, 4):
            waiting.append(asyncio.create_task(ask(site)))
            await site.until(lambda number=number: len(further.requests) == number)
    assert opened(site) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Pod default/pod-{NEXT} is to load a further copy of model pooled: where it is loaded ")
    assert f"(default/pod-{HOLDER}) more requests than slots have waited for 0 s" in line
    assert await ask(site) == 200
    assert (len(holder.requests), len(further.requests)) == (7, 3), "it has one, and as many more as slots"
    loaded.set()
    assert await asyncio.gather(*waiting) == [200] * 3
    assert await ask(site) == 200
    assert (len(holder.requests), len(further.requests), len(last.requests)) == (7, 4, 0)


async def test_a_second_cold_request_follows_the_first(site: Any, behave: Any) -> None:
    """Before any report tells of the load."""
    await site.model(behave.model("pooled", pool="shared", slots=2))
    loaded = asyncio.Event()

    async def loading(request: web.Request) -> web.StreamResponse:
        await loaded.wait()
        return web.Response()

    before = opened(site)
    first = await join(site, behave, HOLDER, loading, reach=59, state="Unloaded")
    second = await join(site, behave, NEXT, loading, state="Unloaded")
    third = await join(site, behave, LAST, loading, state="Unloaded")
    waiting = [asyncio.create_task(ask(site)) for _ in range(9)]
    await site.until(lambda: len(second.requests) == 9)
    loaded.set()
    assert await asyncio.gather(*waiting) == [200] * 9
    assert (len(first.requests), len(third.requests), opened(site)) == (0, 0, before)
