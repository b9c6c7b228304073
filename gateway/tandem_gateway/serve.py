"""The gateway's life: connect, follow, serve, drain, end.

Put together here, and only here, are all of its pieces. On SIGTERM it turns unready and still takes requests for a
moment (proxies elsewhere send on for a second or two), then lets open streams finish and ends when the last one has,
or when its time is over.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tandem_api.keys import pool_key
from tandem_gateway.app import health_app, internal_app, public_app
from tandem_gateway.body import BodyRoom
from tandem_gateway.directory import Directory
from tandem_gateway.informer import Informer, Source
from tandem_gateway.kube import MODELS, PODS, PODS_SELECTOR, KubeApi, KubeSource, collection
from tandem_gateway.lifecycle import Lifecycle
from tandem_gateway.listeners import Listener
from tandem_gateway.loads import Loads
from tandem_gateway.metrics import Metrics
from tandem_gateway.objects import ModelView, PodView, model_view, pod_view
from tandem_gateway.proxy import Proxy
from tandem_gateway.replay import Dispatcher, Patience
from tandem_gateway.reports import ReportPoller
from tandem_gateway.settings import Settings
from tandem_gateway.upstream import Upstream

logger = logging.getLogger(__name__)

KEY_OF_GATEWAY = "gateway"
"""In place of a pool's UID when the key of the gateway's own internal port is derived."""
PATIENCE = Patience()
CUT_SECONDS = 2.0
"""What streams get at the end of the drain time to tell their clients that they are cut."""


class Gateway:
    """One running gateway; made inside an event loop.

    Args:
        settings: what the environment says.
        models: source of Models.
        pods: source of pods.
        patience: how long requests are tried.
    """

    def __init__(self, settings: Settings, models: Source, pods: Source, patience: Patience = PATIENCE) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self.directory = Directory(Loads(), settings.default_namespace)
        self._models: Informer[ModelView] = Informer("Models", models, model_view, self._follow)
        self._pods: Informer[PodView] = Informer("Pods", pods, pod_view, self._follow)
        self._upstream = Upstream(settings.master, settings.pod_http_port)
        self._poller = ReportPoller(self.directory, self._upstream.key_of, settings.pod_internal_port)
        self.lifecycle = Lifecycle((self._models, self._pods), settings.max_requests, self._poller.behind)
        room = BodyRoom(settings.max_buffered_bytes)
        dispatcher = Dispatcher(
            self.directory,
            self._upstream,
            lambda fault: self.metrics.failed_attempts.labels(fault).inc(),
            lambda model: self.metrics.further_copies.labels(model.namespace, model.name).inc(),
            patience,
        )
        self._proxy = Proxy(
            self.directory,
            dispatcher,
            self._upstream.key_of,
            self.lifecycle,
            self.metrics,
            settings.max_body_bytes,
            room,
        )
        key = pool_key(settings.master, KEY_OF_GATEWAY)
        self.public = Listener(
            public_app(self._proxy, self.directory, self.lifecycle, self.metrics),
            settings.host,
            settings.port,
            settings.drain_seconds + CUT_SECONDS,
        )
        self.internal = Listener(
            internal_app(self.metrics, self.lifecycle, lambda: room.held, key), settings.host, settings.internal_port
        )
        self.health = Listener(health_app(self.lifecycle), settings.host, settings.health_port)

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set and what runs has ended.

        Raises:
            RuntimeError: a piece of the gateway ended by itself, which is a defect.
        """
        background = [
            asyncio.create_task(self._models.run(), name="following Models"),
            asyncio.create_task(self._pods.run(), name="following Pods"),
            asyncio.create_task(self._poller.run(), name="polling reports"),
        ]
        listeners = (self.public, self.internal, self.health)
        serving = [asyncio.create_task(listener.run_until_stopped()) for listener in listeners]
        logger.info("Listening for clients on port %d; health on port %d.", self.public.port, self.health.port)
        try:
            await _first_of(stop, [*background, *serving])
            await self._drain()
            self.public.stop()
            done, _ = await asyncio.wait({serving[0]}, timeout=self._settings.drain_seconds)
            if not done:
                self._proxy.cut("the gateway was told to end and its time is over")
                await serving[0]
        finally:
            for listener in listeners:
                listener.stop()
            await asyncio.gather(*serving, return_exceptions=True)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._upstream.close()
        logger.info("Every request has ended; the gateway ends.")

    async def _drain(self) -> None:
        self.lifecycle.draining = True
        logger.info(
            "Asked to end: unready now, taking requests for %.1f s more; %d are in progress and have %.0f s to finish.",
            self._settings.linger_seconds,
            self.lifecycle.requests,
            self._settings.drain_seconds,
        )
        await asyncio.sleep(self._settings.linger_seconds)

    def _follow(self) -> None:
        self.directory.follow(self._models.items, self._pods.items)


async def _first_of(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    for task in done - {stopped}:
        raise RuntimeError(f"{task.get_name()} ended by itself") from (None if task.cancelled() else task.exception())


@asynccontextmanager
async def _signals(stop: asyncio.Event) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def serve(settings: Settings) -> None:
    """Runs the gateway against the Kubernetes API until SIGTERM or SIGINT.

    Raises:
        ConfigError: there is no usable way to the API server.
    """
    stop = asyncio.Event()
    api = KubeApi.from_environment()
    try:
        space = settings.namespace
        gateway = Gateway(
            settings,
            KubeSource(api, collection(MODELS, space)),
            KubeSource(api, collection(PODS, space), PODS_SELECTOR),
        )
        async with _signals(stop):
            await gateway.run(stop)
    finally:
        await api.close()
