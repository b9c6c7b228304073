"""What one serving pod is made of; every router gets it.

Made once at the start by `serve`; holds no logic of its own beyond the report.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fastapi import Request

from tandem_api import __version__
from tandem_api.fields import Device
from tandem_api.report import DeviceReport, ModelReport, Report
from tandem_api.status import Artifact
from tandem_server.config import Settings
from tandem_server.devices import Devices
from tandem_server.line import Refusal
from tandem_server.metrics import Metrics
from tandem_server.metrics_report import ModelFigures
from tandem_server.residency.host import ModelHost
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
        self.manager = Manager(self.settings, self._refused, self.metrics.loaded)
        self.devices = Devices(self.settings.device, self.settings.device_memory)
        self.metrics.watch(self.report, self.figures)

    def serving(self, request: Request, name: str) -> ModelHost:
        """The host of the model that a request names; its headers then go with the answer, errors too.

        Raises ApiError 404.
        """
        host = self.manager.find(name)
        request.state.host = host
        return host

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
            devices=with_reserved(self.devices.now(), self.manager.hosts.values()),
            models=models,
        )

    def figures(self) -> dict[str, ModelFigures]:
        """What metrics tell of each model that has a runner, beyond the report."""
        return {host.entry.name: model_figures(host) for host in self.manager.hosts.values() if host.runner is not None}

    def _refused(self, model: str, reason: Refusal) -> None:
        self.metrics.refused(model, reason.value)


def size_of(host: ModelHost) -> int:
    """Bytes that the resident copy takes; 0 when there is none."""
    loaded = host.loaded
    return 0 if loaded is None else loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes


def with_reserved(devices: Sequence[DeviceReport], hosts: Iterable[ModelHost]) -> list[DeviceReport]:
    """The devices with what runners hold there.

    On a CPU that is measured (shared pages divided), as soon as it was; on GPUs it is each load's own account, and a
    model lies on the first one.
    """
    held = {Device.CPU.value: 0, Device.GPU.value: 0}
    for host in hosts:
        if host.runner is None:
            continue
        measured, counted = host.runner.memory, size_of(host)
        on_gpu = host.loaded is not None and host.loaded.device_kind == Device.GPU.value
        held[Device.GPU.value] += counted if on_gpu else 0
        held[Device.CPU.value] += measured.pss if measured is not None else 0 if on_gpu else counted
    told = []
    for number, device in enumerate(devices):
        share = held[device.kind] if number == 0 else 0
        told.append(device.model_copy(update={"reserved_bytes": share}))
    return told


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
        size_bytes=size_of(host),
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
        step_rate=stats.step_rate if stats is not None and line.running else 0.0,
        restarts=host.restarts,
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
