"""Runs a serving pod in this process: listeners, catalog, signals, drain, end.

`run_pod` is what `python -m tandem_server` and `tandem serve` call. Reads top to bottom: start, serve, shut down.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from tandem_api import __version__
from tandem_api.catalog import Catalog
from tandem_server import app
from tandem_server.catalog import CatalogWatcher
from tandem_server.config import Settings, SettingsError
from tandem_server.drain import Drain
from tandem_server.http.guard import KeyFile
from tandem_server.pod import Pod

_log = logging.getLogger(__name__)
CLOSE_SECONDS = 3
"""For answers that are already made to reach their clients."""
Companion = Callable[[Pod, int], Awaitable[None]]


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to `run_pod`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


@dataclass
class _Bound:
    """A listener with its socket, open before anything else starts."""

    name: str
    server: _Listener
    socket: socket.socket

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])


def _bind(name: str, application: ASGIApp, host: str, port: int) -> _Bound:
    """Raises SettingsError when the port is taken or not allowed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise SettingsError(f"the port {host}:{port} for {name} cannot be used: {error.strerror}.") from error
    config = uvicorn.Config(
        application,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        timeout_keep_alive=75,
    )
    return _Bound(name, _Listener(config), sock)


def _listeners(pod: Pod, one_port: bool) -> list[_Bound]:
    settings = pod.settings
    if one_port:
        return [_bind("everything", app.whole_app(pod), settings.host, settings.http_port)]
    try:
        key = KeyFile(settings.pool_key_file) if settings.pool_key_file is not None else None
    except OSError as error:
        raise SettingsError(f"TANDEM_POOL_KEY_FILE: the pool key cannot be read: {error}.") from error
    return [
        _bind("clients", app.client_app(pod, key), settings.host, settings.http_port),
        _bind("report and metrics", app.internal_app(pod, key), settings.host, settings.internal_port),
        _bind("health", app.health_app(pod), settings.host, settings.health_port),
    ]


@contextlib.asynccontextmanager
async def _serving(bound: list[_Bound]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.server.serve(sockets=[each.socket])) for each in bound]
    try:
        yield
    finally:
        for each in bound:
            each.server.should_exit = True
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def _catalog(pod: Pod, fixed: Catalog | None) -> AsyncIterator[None]:
    """The models of the fixed catalog, or of the file for as long as it is watched."""
    if fixed is not None:
        pod.manager.apply(fixed)
        yield
        return
    watching = asyncio.create_task(CatalogWatcher(pod.settings.catalog, pod.manager.apply).run())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def run_pod(settings: Settings, fixed: Catalog | None = None, companion: Companion | None = None) -> None:
    """Serves until SIGTERM or SIGINT, and returns when all is ended in order.

    Args:
        fixed: the catalog, where there is no file to watch; everything is then on one port.
        companion: runs beside the pod, given it and the clients' port (`tandem serve` shows the loading so).

    Raises SettingsError or DeviceError when it cannot start.
    """
    pod = Pod(settings)
    bound = _listeners(pod, one_port=fixed is not None)
    await pod.devices.start()
    drain = Drain(pod)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain.ask, f"Got {number.name}")
    pod.manager.launcher.warm_up()
    _log.info(
        "Tandem %s serves as pod %s on %s: %s.",
        __version__,
        settings.pod_name,
        settings.device.value,
        ", ".join(f"{each.name} on port {each.port}" for each in bound),
    )
    beside = asyncio.create_task(_beside(companion, pod, bound[0].port))
    try:
        async with _serving(bound):
            async with _catalog(pod, fixed):
                await drain.asked()
                await drain.run()
            beside.cancel()
            await pod.manager.close()
    finally:
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
        await pod.devices.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    _log.info("Shut down in order.")


async def _beside(companion: Companion | None, pod: Pod, port: int) -> None:
    if companion is not None:
        await companion(pod, port)
