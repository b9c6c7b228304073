"""Which models this pod has: the catalog turned into hosts.

The only one that makes and ends `ModelHost`s. Told of a new catalog by the watcher, asked for models by the routers.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from tandem_api.catalog import ALL_PODS, Catalog
from tandem_api.dialects import ApiError
from tandem_api.fit import reserve_bytes
from tandem_api.report import DeviceReport, ModelState
from tandem_server.admission import Admission, PodBound
from tandem_server.config import Settings
from tandem_server.line import Gate, Refusal
from tandem_server.logs import Summary
from tandem_server.residency.host import ModelHost, not_here
from tandem_server.residency.ledger import Ledger, Why
from tandem_server.residency.need import Sizes
from tandem_server.residency.process import Launcher
from tandem_server.residency.room import Room

_log = logging.getLogger(__name__)
UNBOUNDED = 1 << 62
"""Bytes of a device that does not tell its memory."""
_WHY = {
    Refusal.QUEUE_FULL: "its queue is full",
    Refusal.QUEUE_TIMEOUT: "it waited for longer than queue.timeoutSeconds",
    Refusal.DRAINING: "this pod is shutting down",
}


def capacity_of(device: DeviceReport, budgeted: bool) -> int:
    """Bytes for the models of the pod: a budget to the last, of a whole device not what others may need."""
    if not device.total_bytes:
        return UNBOUNDED
    return device.free_bytes if budgeted else device.free_bytes - reserve_bytes(device.free_bytes)


class Manager:
    """All models of the pod.

    Args:
        on_refused: told of (model, reason) of each refusal, for metrics.
        on_load: told of (model, whether it worked, seconds, bytes of weights) of each load, for metrics.
        on_unload: told of (model, why) when the pod unloads one by itself, for metrics.
        devices: what the pod computes on; asked when the first catalog comes, before any runner.
    """

    def __init__(
        self,
        settings: Settings,
        on_refused: Callable[[str, Refusal], None] = lambda model, reason: None,
        on_load: Callable[[str, bool, float, int], None] = lambda model, worked, seconds, size: None,
        on_unload: Callable[[str, Why], None] = lambda model, why: None,
        devices: Callable[[], Sequence[DeviceReport]] = lambda: (),
    ) -> None:
        self.settings = settings
        self.catalog: Catalog | None = None
        self.hosts: dict[str, ModelHost] = {}
        self.loaded_once: set[str] = set()
        self._tried: set[str] = set()
        self._preloaded: set[str] = set()
        beat = min(1.0, settings.heartbeat_seconds / 8)
        self.launcher = Launcher(settings.runner_entry, settings.runner_preload, settings.log_format, beat)
        self._on_refused = on_refused
        self._on_load = on_load
        self._on_unload = on_unload
        self._bound = PodBound(settings.max_queued)
        self._closing: set[asyncio.Task[None]] = set()
        self._leaving: set[ModelHost] = set()
        self._devices = devices
        self._sizes = Sizes()
        self._room: Room | None = None
        self._ready = False
        self._gate = Gate.OPEN

    def apply(self, catalog: Catalog) -> None:
        """Makes the pod's models those of `catalog`; returns at once, loads go on in the background."""
        wanted = {model.name: model for model in catalog.models}
        for name in [name for name in self.hosts if name not in wanted]:
            _log.info("Model %s left the catalog; it takes no further requests here and is unloaded.", name)
            self._remove(self.hosts.pop(name))
        for name, entry in wanted.items():
            if name in self.hosts:
                self.hosts[name].update(entry)
            else:
                self.hosts[name] = self._host(name, catalog)
        self.catalog = catalog
        preload = {name for name in catalog.preload_of(self.settings.pod_name) if name in self.hosts}
        for name, host in self.hosts.items():
            # Once: a later catalog must not load again what its keep-alive ended.
            host.stay.preloaded = ALL_PODS in catalog.preload and name in preload
            if name in preload - self._preloaded or (host.stay.pinned and host.loaded is None):
                host.want()
        self._preloaded = preload

    @property
    def room(self) -> Room:
        """What the pod's models share."""
        if self._room is None:
            budgeted = bool(self.settings.device_memory)
            capacity = [capacity_of(device, budgeted) for device in self._devices()] or [UNBOUNDED]
            most = self.settings.max_loaded or 3 * len(capacity)
            self._room = Room(capacity, most, asyncio.get_running_loop().call_later)
        return self._room

    @property
    def ledger(self) -> Ledger | None:
        """Who holds how much of which device; None before the first catalog."""
        return self._room.ledger if self._room is not None else None

    def find(self, name: str) -> ModelHost:
        """The host of the model that a request means. Raises ApiError 404 naming those that exist."""
        model = self.catalog.find(name) if self.catalog is not None else None
        host = self.hosts.get(model.name) if model is not None else None
        if host is None:
            known = ", ".join(sorted(self.hosts)[:20]) or "none"
            raise ApiError(
                404, f"model '{name}' not found; this server has: {known}", code="model_not_found", param="model"
            )
        return host

    @property
    def ready(self) -> bool:
        """Whether the catalog is read and every model to be preloaded was loaded once; never turns back."""
        self._ready = self._ready or not self.missing()
        return self._ready

    def missing(self) -> list[str]:
        """What readiness waits for, as words: a pod of one model for its load, a shared one for a try of each."""
        if self.catalog is None:
            return ["the catalog"]
        wanted = self.catalog.preload_of(self.settings.pod_name)
        done = self.loaded_once if ALL_PODS in self.catalog.preload else self.loaded_once | self._tried
        return [f"model {name}" for name in wanted if name in self.hosts and name not in done]

    def set_gate(self, gate: Gate) -> None:
        """What every model's line, and that of models to come, does with newcomers."""
        self._gate = gate
        for host in self.hosts.values():
            host.admission.line.gate = gate

    def hand_back(self) -> int:
        """Sends everyone who waits elsewhere; returns how many there were."""
        return sum(host.admission.hand_back() for host in self.hosts.values())

    @property
    def busy(self) -> int:
        """Requests that hold a slot, over all models."""
        return sum(len(host.admission.line.running) for host in [*self.hosts.values(), *self._leaving])

    async def close(self) -> None:
        """Ends every model and waits until all runner processes are gone."""
        for closing in self._closing:
            closing.cancel()
        if self._room is not None:
            self._room.close()
        await asyncio.gather(*(host.close() for host in [*self.hosts.values(), *self._leaving]))
        self.hosts = {}

    def _host(self, name: str, catalog: Catalog) -> ModelHost:
        entry = next(model for model in catalog.models if model.name == name)
        summary = Summary(
            lambda count, seconds, detail: self._tell_refused(name, count, seconds, detail),
            asyncio.get_running_loop().call_later,
        )

        def refused(reason: Refusal) -> None:
            self._on_refused(name, reason)
            line = self.hosts[name].admission.line if name in self.hosts else None
            where = (
                f" ({len(line.running)} run, {len(line.waiting)} wait, queue.max is {line.queue_max})" if line else ""
            )
            summary.add(_WHY[reason] + where)

        admission = Admission(name, entry.queue.max, float(entry.queue.timeout_seconds), self._bound, refused)

        admission.line.gate = self._gate

        def changed() -> None:
            host = self.hosts.get(name)
            if host is not None and host.state is ModelState.LOADED:
                self.loaded_once.add(name)
            if host is not None and host.last_error is not None:
                self._tried.add(name)

        return ModelHost(
            entry,
            self.settings,
            self.launcher,
            admission,
            self.room,
            self._sizes,
            changed,
            partial(self._on_load, name),
            partial(self._on_unload, name),
        )

    def _remove(self, host: ModelHost) -> None:
        self._leaving.add(host)
        closing = asyncio.create_task(self._let_run_and_close(host))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _let_run_and_close(self, host: ModelHost) -> None:
        """Lets what runs end within the drain's bound, then ends the model."""
        host.admission.resize(0)
        host.admission.hand_back(not_here(host.entry.name))
        try:
            await asyncio.wait_for(host.admission.idle(), self.settings.drain_seconds)
        except TimeoutError:
            _log.warning("Requests of model %s still ran at its removal's deadline; they fail.", host.entry.name)
        await host.close()
        self._leaving.discard(host)
        if host.entry.name not in self.hosts:
            self._bound.leave(host.entry.name)

    def _tell_refused(self, name: str, count: int, seconds: float, detail: str) -> None:
        if seconds:
            _log.warning(
                "Refused %d more requests for model %s in %.0f s, the last since %s.", count, name, seconds, detail
            )
        else:
            _log.warning("Refused a request for model %s since %s.", name, detail)
