"""What one serving pod is made of; every router gets it.

Made once at the start by `serve`; holds no logic of its own beyond the report.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fastapi import Request

from tandem_api import __version__, names
from tandem_api.fields import Device
from tandem_api.report import DeviceReport, ModelReport, Report, RoomReport
from tandem_api.status import Artifact
from tandem_server.config import Settings
from tandem_server.devices import Devices
from tandem_server.line import Refusal
from tandem_server.metrics import Metrics
from tandem_server.metrics_report import ModelFigures
from tandem_server.residency.holds import Wish
from tandem_server.residency.host import ModelHost
from tandem_server.residency.ledger import Ledger, Phase, Why
from tandem_server.residency.manager import Manager


@dataclass
class Pod:
    """One pod. Make it inside the running event loop."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    answering: int = 0
    """Requests of clients that are being answered, to their last byte."""
    started: int = field(default_factory=lambda: int(time.time()))
    manager: Manager = field(init=False)
    devices: Devices = field(init=False)

    def __post_init__(self) -> None:
        self.devices = Devices(self.settings.device, self.settings.device_memory)
        self.manager = Manager(self.settings, self._refused, self.metrics.loaded, self._unloaded, self.devices.now)
        self.metrics.watch(self.report, self.figures)

    def serving(self, request: Request, name: str) -> ModelHost:
        """The host of the model that a request names; its headers then go with the answer, errors too.

        Raises ApiError 404.
        """
        host = self.manager.find(name)
        request.state.host = host
        return host

    def wish(self, request: Request, keep_alive: float | None = None) -> Wish:
        """What a request says of how long its model is kept: seconds, negative for ever, None for nothing."""
        return Wish(request.headers.get(names.CALLER_HEADER, ""), keep_alive, self.settings.one_user)

    def report(self) -> Report:
        """All that the pod says of itself."""
        catalog = self.manager.catalog
        models = [model_report(host) for host in self.manager.hosts.values()]
        return Report(
            pod=self.settings.pod_name,
            version=__version__,
            catalog_revision=catalog.revision if catalog is not None else "",
            ready=self.manager.ready and not self.draining,
            draining=self.draining,
            devices=with_reserved(self.devices.now(), self.manager.ledger),
            room=room_report(self.manager.ledger),
            models=models,
        )

    def figures(self) -> dict[str, ModelFigures]:
        """What metrics tell of each model that has a runner, beyond the report."""
        return {host.entry.name: model_figures(host) for host in self.manager.hosts.values() if host.runner is not None}

    def _unloaded(self, model: str, why: Why) -> None:
        self.metrics.unloads.labels(model, why.name.lower()).inc()

    def _refused(self, model: str, reason: Refusal) -> None:
        self.metrics.refused(model, reason.value)


def utc_text(seconds: float) -> str:
    """A time of the wall clock in RFC 3339, to the second."""
    return datetime.fromtimestamp(round(seconds), UTC).isoformat().replace("+00:00", "Z")


def size_of(host: ModelHost) -> int:
    """Bytes that the resident copy takes; 0 when there is none."""
    loaded = host.loaded
    return 0 if loaded is None else loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes


def with_reserved(devices: Sequence[DeviceReport], ledger: Ledger | None) -> list[DeviceReport]:
    """The devices with what is promised to models there, and what they may take in all where it is less than all."""
    if ledger is None:
        return list(devices)
    return [
        device.model_copy(
            update={
                "reserved_bytes": ledger.held(number),
                "total_bytes": min(device.total_bytes, ledger.capacity[number]),
            }
        )
        for number, device in enumerate(devices[: len(ledger.capacity)])
    ]


def room_report(ledger: Ledger | None) -> RoomReport | None:
    """What a further model would find; None before the first catalog."""
    if ledger is None:
        return None
    devices = range(len(ledger.capacity))
    going = sum(one.evictable or one.phase is Phase.LEAVING for one in ledger.residents.values())
    return RoomReport(
        free_bytes=max(0, *(ledger.free(device) for device in devices)),
        reach_bytes=max(0, *(ledger.reach(device) for device in devices)),
        free_seats=ledger.most - ledger.count,
        reach_seats=ledger.most - ledger.count + going,
    )


def model_figures(host: ModelHost) -> ModelFigures:
    """One model's memory, and how full its contexts are."""
    line, runner, loaded = host.admission.line, host.runner, host.loaded
    stats = runner.stats if runner is not None else None
    told = stats.cache_used if stats is not None else None
    memory = runner.memory if runner is not None else None
    return ModelFigures(
        cache_used=told if told is not None else len(line.running) / loaded.slots if loaded is not None else 0.0,
        rss=memory.rss if memory is not None else None,
        pss=memory.pss if memory is not None else None,
        device=size_of(host) if loaded is not None and loaded.device_kind == Device.GPU.value else 0,
        waiting=stats.waiting if stats is not None else 0,
        prefix_evicted=stats.prefix_evicted if stats is not None else 0,
    )


def model_report(host: ModelHost) -> ModelReport:
    """One model's entry of the report."""
    line, loaded = host.admission.line, host.loaded
    asked = host.entry.context.length
    stats = host.runner.stats if host.runner is not None else None
    return ModelReport(
        name=host.entry.name,
        state=host.state,
        progress=host.progress,
        need_bytes=host.stay.sized.need.wanted,
        size_bytes=size_of(host),
        device=host.stay.device if loaded is not None else None,
        processor="" if loaded is None else f"100% {loaded.device_kind}",
        context_asked=asked if isinstance(asked, int) else None,
        context_given=0 if loaded is None else loaded.context,
        context_reason="" if loaded is None else loaded.context_reason,
        slots=0 if loaded is None else loaded.slots,
        pool_tokens=0 if loaded is None else loaded.pool_tokens,
        prefix_asked=0 if stats is None else stats.prefix_asked,
        prefix_found=0 if stats is None else stats.prefix_found,
        busy=len(line.running),
        queued=len(line.waiting),
        rejected=host.admission.rejected_recently(),
        rejected_total=host.admission.rejected_total,
        admitted_total=host.admission.admitted_total,
        expires_at=None if host.stay.expires_at is None or loaded is None else utc_text(host.stay.expires_at),
        step_rate=stats.step_rate if stats is not None and line.running else 0.0,
        restarts=host.restarts,
        unloaded_because=host.stay.because,
        last_error=host.last_error,
        error_reason=host.error_reason,
        artifact=_artifact(host),
    )


def _artifact(host: ModelHost) -> Artifact | None:
    loaded, checkpoint = host.last_loaded, host.checkpoint
    if loaded is None or checkpoint is None:
        return None
    return Artifact(
        architecture=loaded.architecture,
        parameters=loaded.parameters,
        weight_bytes=loaded.weight_bytes,
        context_limit=loaded.context_limit,
        config_digest=checkpoint.config_digest,
        dtype=loaded.dtype,
        engine="Native",
        engine_reason=loaded.engine_reason,
        task=loaded.task,
    )
