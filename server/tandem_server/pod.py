"""What one serving pod is made of; every router gets it.

Made once at the start by `serve`; holds no logic of its own beyond the report.
"""

import time
from dataclasses import dataclass, field

from fastapi import Request

from tandem_api import __version__
from tandem_api.report import DeviceReport, ModelReport, Report
from tandem_api.status import Artifact
from tandem_server.config import Settings
from tandem_server.devices import Devices
from tandem_server.line import Refusal
from tandem_server.metrics import Metrics
from tandem_server.residency.host import ModelHost
from tandem_server.residency.manager import Manager


@dataclass
class Pod:
    """One pod. Make it inside the running event loop."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))
    manager: Manager = field(init=False)
    devices: Devices = field(init=False)

    def __post_init__(self) -> None:
        self.manager = Manager(self.settings, self._refused)
        self.devices = Devices(self.settings.device)
        self.metrics.watch(self.report)

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
        reserved = sum(model.size_bytes for model in models)
        return Report(
            pod=self.settings.pod_name,
            version=__version__,
            catalog_revision=catalog.revision if catalog is not None else "",
            ready=self.manager.ready and not self.draining,
            draining=self.draining,
            devices=[self._with_reserved(device, reserved) for device in self.devices.now()],
            models=models,
        )

    def _with_reserved(self, device: DeviceReport, reserved: int) -> DeviceReport:
        return device.model_copy(update={"reserved_bytes": reserved})

    def _refused(self, model: str, reason: Refusal) -> None:
        self.metrics.refused(model, reason.value)


def size_of(host: ModelHost) -> int:
    """Bytes that the resident copy takes; 0 when there is none."""
    loaded = host.loaded
    return 0 if loaded is None else loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes


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
