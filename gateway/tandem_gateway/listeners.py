"""HTTP servers inside one event loop: several uvicorn servers, none of which touches the process's signals."""

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75


class Listener(uvicorn.Server):
    """One application on one port; the port is bound, and its number known, as soon as this is made.

    Args:
        app: what to serve.
        host: address to listen on; empty means every address, of both families where there are two.
        port: 0 takes a free one.
        drain_seconds: how long open requests may go on after `stop`.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, drain_seconds: float = 1.0) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                # uvicorn wants whole seconds.
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
            )
        )
        self._accepting, self._stopping = asyncio.Event(), asyncio.Event()
        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]

    async def run_until_stopped(self) -> None:
        """Serves until `stop` was called and every connection has ended, or the drain time is over."""
        try:
            await self.serve(sockets=[self._socket])
        finally:
            self._socket.close()

    async def wait_started(self) -> None:
        """Returns once connections are accepted."""
        await self._accepting.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets)
        self._accepting.set()

    def stop(self) -> None:
        """Accept no more connections; open requests go on."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Keeps the date header right until `stop`; uvicorn's own loop would wake ten times a second for it."""
        ticks_a_second, tick = 10, 0
        while not await self.on_tick(tick):
            tick = (tick + ticks_a_second) % 864_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to the process, which has several servers."""
        yield


def _bound(host: str, port: int) -> socket.socket:
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    elif socket.has_dualstack_ipv6():
        listening = socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    else:
        listening = socket.create_server(("", port), backlog=BACKLOG)
    # Inherited by every connection. asyncio sets it only on sockets that were made with an explicit protocol number,
    # and without it small answers wait 40 ms for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
