"""Between an operator and a real API server: a proxy that counts what is written, cuts watches, and holds answers."""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from tandem_testing.kube import Kube

_LEASES = "/apis/coordination.k8s.io/"
"""Renewals of a Lease go on for ever and change nothing else: they are not counted."""
_DROPPED = {"host", "connection", "transfer-encoding", "content-encoding", "content-length", "accept-encoding"}


@dataclass(frozen=True)
class Write:
    """One call that may change something, how it was answered, and when (in seconds of this process's own clock).

    `changed` is False when the API server took it and nothing became different: a needless one.
    """

    method: str
    path: str
    code: int
    changed: bool = True
    at: float = field(default_factory=time.monotonic, compare=False)


def is_watch(request: web.Request) -> bool:
    """Whether a request asks for a watch."""
    return request.query.get("watch", "") not in ("", "false", "0")


def nothing(_: web.Request) -> bool:
    """Holds no request."""
    return False


@dataclass
class Proxy:
    """Passes calls on to the API server: as the administrator, or with the caller's own token.

    With `compare` each PATCH is preceded by a GET of the object, which tells whether the PATCH changed anything.
    """

    kube: Kube
    as_caller: bool = False
    compare: bool = False
    writes: list[Write] = field(default_factory=list)
    lists: Counter[str] = field(default_factory=Counter)
    expired: int = 0
    refused: list[str] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    """All that was asked for, reads too."""
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """Writes are carried out at once and answered while this is set, as it is after `start`."""
    on_write: Callable[[int], None] = lambda _: None
    hold: Callable[[web.Request], bool] = nothing
    """Which requests wait; asked again and again until it says no."""
    port: int = 0

    async def start(self) -> None:
        """Listens on loopback; after `stop` on the same port again."""
        self._stopping = False
        self.answering.set()
        trust = self.kube.trust if self.as_caller else self.kube.admin
        self._sockets: set[socket.socket] = set()
        connector = aiohttp.TCPConnector(ssl=trust, limit=0, socket_factory=self._socket)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        self._watches: set[aiohttp.ClientResponse] = set()
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stops to listen, ending every watch; what was held is refused, and what is under way comes to its end.

        When it returns no connection is left, so that none outlives its test's event loop.
        """
        self._stopping = True
        self.cut_watches()
        self.hold = nothing
        self.answering.set()
        await self._runner.cleanup()
        await self._session.close()
        await self._hang_up()

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Makes the socket of one connection to the API server, and remembers it until it is closed."""
        made = socket.socket(*address[:3])
        self._sockets = {one for one in self._sockets if one.fileno() >= 0} | {made}
        return made

    @property
    def watches(self) -> int:
        """Watches that are passed on now."""
        return len(self._watches)

    @property
    def connections(self) -> int:
        """Connections to the API server that are not closed yet, forgotten by the session or not."""
        return sum(one.fileno() >= 0 for one in self._sockets)

    async def _hang_up(self) -> None:
        """Ends what the session no longer knows: whom a killed caller left with an answer half read says farewell by
        TLS in the background, for as long as the API server takes to return it."""
        for one in self._sockets:
            with contextlib.suppress(OSError):  # closed meanwhile, by either side
                one.shutdown(socket.SHUT_RDWR)
        async with asyncio.timeout(10):
            while self.connections:  # noqa: ASYNC110 - no event tells of a closed socket
                await asyncio.sleep(0.005)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        kept = {key: value for key, value in request.headers.items() if key.lower() not in _DROPPED}
        if not self.as_caller:
            kept.pop("Authorization", None)
        url = URL(f"{self.kube.server}{request.path}").with_query(request.query)
        while self.hold(request):  # noqa: ASYNC110 - the test may exchange the predicate at any time
            await asyncio.sleep(0.02)
        if self._stopping:
            raise web.HTTPServiceUnavailable
        watch = is_watch(request)
        before = await self._revision(url, kept) if self.compare and request.method == "PATCH" else ""
        async with self._session.request(
            request.method, url, headers=kept, data=await request.read() or None
        ) as answer:
            self.paths.add(request.path)
            if answer.status in (401, 403):
                self.refused.append(f"{request.method} {request.path}: {answer.status}")
            if request.method != "GET" and not request.path.startswith(_LEASES):
                changed = not before or (await answer.json())["metadata"].get("resourceVersion") != before
                self.writes.append(Write(request.method, request.path, answer.status, changed))
                # The API server has done it, and the operator does not know yet: the worst moment to die.
                self.on_write(len(self.writes))
                await self.answering.wait()
            elif not watch:
                self.lists[request.path] += 1
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            with contextlib.suppress(ConnectionResetError):  # the operator has been killed
                await response.prepare(request)
                whole = True
                if watch:
                    whole = await self._stream(answer, response)
                else:
                    await response.write(await answer.read())
                if whole:
                    await response.write_eof()
                elif request.transport is not None:
                    request.transport.abort()
            return response

    async def _stream(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> bool:
        """Passes a watch on to its end; False when that is in the middle of an event.

        No API server ends a stream in good order there: kopf, which takes half an event for a whole one, would end.
        """
        self._watches.add(answer)
        last = b"\n"
        if self._stopping:
            _cut(answer)
        try:
            async for part in answer.content.iter_any():
                self.expired += part.count(b'"code":410')
                last = part[-1:] or last
                await response.write(part)
        except aiohttp.ClientError:
            pass  # cut off below, or by the API server: the caller sees the end of its stream
        finally:
            self._watches.discard(answer)
        return last == b"\n"

    async def _revision(self, url: URL, headers: dict[str, str]) -> str:
        plain = {key: value for key, value in headers.items() if key.lower() != "content-type"}
        async with self._session.get(url.with_query(None), headers=plain) as answer:
            return str((await answer.json())["metadata"].get("resourceVersion", "")) if answer.ok else ""

    def cut_watches(self) -> None:
        """Ends every watch; those that are asked for from now on wait until `hold` is set back."""
        self.hold = is_watch
        for answer in self._watches:
            _cut(answer)

    def clear(self) -> None:
        """Forgets what was counted."""
        self.writes.clear()

    @property
    def effective(self) -> list[Write]:
        """Writes that the API server took, without Events."""
        return [one for one in self.writes if one.code < 300 and "/events" not in one.path]

    @property
    def needless(self) -> list[Write]:
        """Writes that the API server took and that changed nothing; known only with `compare`."""
        return [one for one in self.writes if one.code < 300 and not one.changed]


def _cut(answer: aiohttp.ClientResponse) -> None:
    """Ends an answer at once: the farewell of TLS would take longer than some test's event loop lives."""
    if answer.connection is not None and answer.connection.transport is not None:
        answer.connection.transport.abort()
    answer.close()
