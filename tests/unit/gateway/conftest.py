"""A gateway inside the test: its Kubernetes API is scripted, its pods are small servers on loopback addresses."""

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tandem_api.keys import pool_key
from tandem_gateway.informer import Expired, Listing, WatchEvent
from tandem_gateway.replay import Patience
from tandem_gateway.routing import Table
from tandem_gateway.serve import Gateway
from tandem_gateway.settings import Settings

MASTER = b"a master secret of a test"


def model_object(name: str = "coder", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    """A Model as the API server gives it; its UID follows from its name."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"source": "hf://org/name", **spec},
    }


def pod_object(ip: str, *, model: str = "coder", namespace: str = "default", ready: bool = True) -> dict[str, Any]:
    """A serving pod of a Model's own pool; its name and UID follow from its address."""
    return {
        "metadata": {
            "name": f"pod-{ip}",
            "namespace": namespace,
            "uid": f"uid-pod-{ip}",
            "labels": {"tandem.dev/pool-uid": f"uid-{namespace}-{model}"},
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


class ScriptedSource:
    """Lists and watches objects that the test puts and removes; can break a watch or forget old versions."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.lists = 0
        self.watched_from: list[str] = []
        self._version = itertools.count(1)
        self._now = 0
        self._log: list[tuple[int, WatchEvent]] = []
        self._oldest = 0
        self._news = asyncio.Event()
        self._broken: BaseException | None = None

    def put(self, item: dict[str, Any]) -> None:
        """Adds or replaces an object."""
        uid = item["metadata"]["uid"]
        kind = "MODIFIED" if uid in self.objects else "ADDED"
        self.objects[uid] = item
        self._tell(kind, item)

    def remove(self, item: dict[str, Any], *, silently: bool = False) -> None:
        """Removes an object; silently: no watch ever hears of it."""
        del self.objects[item["metadata"]["uid"]]
        if not silently:
            self._tell("DELETED", item)

    def bookmark(self) -> str:
        """Sends a bookmark and returns its version."""
        self._tell("BOOKMARK", {"metadata": {}})
        return str(self._now)

    def forget(self) -> None:
        """From now on every older version is answered 410 Gone."""
        self._now = next(self._version)
        self._oldest = self._now

    def break_watch(self, error: BaseException) -> None:
        """Ends the open watches with `error`."""
        self._broken = error
        self._wake()

    async def list(self) -> Listing:
        self.lists += 1
        return Listing(list(self.objects.values()), str(self._now))

    async def watch(self, version: str) -> AsyncIterator[WatchEvent]:
        self.watched_from.append(version)
        seen = int(version)
        while True:
            if seen < self._oldest:
                raise Expired("too old resource version")
            for number, event in [entry for entry in self._log if entry[0] > seen]:
                seen = number
                yield event
            if self._broken:
                error, self._broken = self._broken, None
                raise error
            await self._news.wait()

    def _tell(self, kind: str, item: dict[str, Any]) -> None:
        self._now = next(self._version)
        stamped = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._now)}}
        self._log.append((self._now, WatchEvent(kind, stamped)))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakePod:
    """A serving pod on a loopback address; answers as `handler` says and keeps what it was sent."""

    ip: str
    port: int
    handler: Handler
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    report: dict[str, Any] | None = None
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/internal/report", self._report)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.ip, self.port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _report(self, request: web.Request) -> web.StreamResponse:
        if self.report is None:
            return web.Response(status=404)
        return web.json_response(self.report)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.raw_path, dict(request.headers), await request.read()))
        return await self.handler(request)


async def answer_ok(request: web.Request) -> web.StreamResponse:
    return web.json_response({"ok": True})


def refusal(reason: str) -> Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"error": {"code": reason}}, status=503, headers={"x-tandem-refused": reason, "Retry-After": "7"}
        )

    return refuse


async def reset(request: web.Request) -> web.StreamResponse:
    """Breaks the connection before any answer."""
    assert request.transport
    request.transport.abort()
    return web.Response()


@dataclass
class Site:
    """One gateway with its scripted cluster."""

    gateway: Gateway
    models: ScriptedSource
    pods: ScriptedSource
    port: int
    client: aiohttp.ClientSession
    stop: asyncio.Event
    running: asyncio.Task[None]
    fakes: dict[str, FakePod] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.public.port}"

    async def pod(self, ip: str, handler: Handler = answer_ok, *, known: bool = True, model: str = "coder") -> FakePod:
        """A pod that serves at `ip`; known: the gateway's API has it, Ready."""
        fake = FakePod(ip, self.port, handler)
        await fake.start()
        self.fakes[ip] = fake
        if known:
            await self.show(pod_object(ip, model=model))
        return fake

    async def show(self, item: dict[str, Any]) -> None:
        """Puts a pod into the API and waits until the gateway has it."""
        self.pods.put(item)
        await self.until(lambda: self.gateway._pods.items.keys() == self.pods.objects.keys())

    async def model(self, item: dict[str, Any] | None = None) -> None:
        """Puts a Model into the API and waits until the gateway has it."""
        item = item or model_object()
        self.models.put(item)
        await self.until(lambda: item["metadata"]["uid"] in self.gateway._models.items)

    async def clear(self) -> None:
        """Ends every pod and removes every object."""
        await asyncio.gather(*(fake.stop() for fake in self.fakes.values()))
        self.fakes.clear()
        for source in (self.models, self.pods):
            for item in list(source.objects.values()):
                source.remove(item)
        await self.until(lambda: not self.gateway._models.items and not self.gateway._pods.items)
        await self.until(lambda: self.gateway.lifecycle.requests == 0)
        # No connection to a pod is still in use: every answer was read to its end or closed.
        await self.until(lambda: not self.gateway._upstream._session.connector._acquired)
        assert self.gateway.directory.table == Table()

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Returns when `condition` holds; fails after `seconds`."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - conditions of all kinds, few of which have an event
                await asyncio.sleep(0.002)

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and whole body of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(self.url + path, data=data, **options) as response:
            return response.status, dict(response.headers), await response.read()

    async def chat(self, model: str = "coder", **options: Any) -> tuple[int, dict[str, str], bytes]:
        """A chat request in OpenAI's dialect."""
        return await self.post("/v1/chat/completions", {"model": model, "messages": []}, **options)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


PATIENCE = Patience(unanswered=0.4, draining=5.0, first_pause=0.01, last_pause=0.05)


@asynccontextmanager
async def running_site(patience: Patience = PATIENCE, **settings: Any) -> AsyncIterator[Site]:
    """A gateway that follows an empty scripted cluster; everything ends with the block."""
    port = free_port()
    base = Settings(
        master=MASTER,
        host="127.0.0.1",
        port=0,
        internal_port=0,
        health_port=0,
        pod_http_port=port,
        pod_internal_port=port,
        linger_seconds=0.05,
        drain_seconds=5.0,
    )
    models, pods, stop = ScriptedSource(), ScriptedSource(), asyncio.Event()
    gateway = Gateway(replace(base, **settings), models, pods, patience)
    running = asyncio.create_task(gateway.run(stop))
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        site = Site(gateway, models, pods, port, client, stop, running)
        try:
            for listener in (gateway.public, gateway.internal, gateway.health):
                await listener.wait_started()
            await site.until(lambda: gateway.lifecycle.unready() is None)
            yield site
        finally:
            await client.close()
            await asyncio.gather(*(fake.stop() for fake in site.fakes.values()))
            running.cancel()
            await asyncio.wait({running}, timeout=10)
            if not running.cancelled():
                running.result()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_site() -> AsyncIterator[Site]:
    """One gateway for a whole file: starting and ending one costs more than most tests."""
    async with running_site() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def site(module_site: Site) -> AsyncIterator[Site]:
    """A gateway with one Model, `coder` in the default namespace, and no pod yet.

    Test files that use it run in one event loop: `pytestmark = pytest.mark.asyncio(loop_scope="module")`.
    """
    await module_site.model()
    yield module_site
    await module_site.clear()


@pytest.fixture
def make_site() -> Callable[..., Any]:
    """Makes gateways with settings of the test's own."""
    return running_site


@pytest.fixture
def behave() -> Any:
    """What a fake pod can do, and the objects that tell of it."""

    class Behave:
        ok = staticmethod(answer_ok)
        reset = staticmethod(reset)
        refuse = staticmethod(refusal)
        pod = staticmethod(pod_object)
        model = staticmethod(model_object)
        source = ScriptedSource
        key = staticmethod(lambda uid: pool_key(MASTER, uid))

    return Behave
