"""The report: what a serving pod says of itself at `GET /internal/report` on its internal port.

Polled by the operator (status) and by gateways (routing). Level-triggered: each report stands alone, and a lost one
is made good by the next.
"""

from enum import StrEnum

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.status import Artifact


class ModelState(StrEnum):
    """Where a model stands in one pod."""

    UNLOADED = "Unloaded"
    LOADING = "Loading"
    LOADED = "Loaded"
    FAILED = "Failed"


class Progress(Contract):
    """How far a load is."""

    phase: str = Field("", description="what is being done, as a present participle: downloading, reading, warming up")
    fraction: float = Field(0.0, ge=0.0, le=1.0)
    done_bytes: int = 0
    total_bytes: int = 0
    eta_seconds: float | None = None


class DeviceReport(Contract):
    """Memory of one device, in bytes. On a CPU: of the container's limit, or of the machine."""

    name: str
    kind: str = Field(description="GPU or CPU")
    total_bytes: int
    free_bytes: int
    reserved_bytes: int = Field(0, description="what the pod's runners hold")


class ModelReport(Contract):
    """One model of the catalog as this pod has it."""

    name: str
    state: ModelState
    progress: Progress | None = None
    need_bytes: int = Field(
        0, description="what it would take with all the context that is asked for; 0: not known yet"
    )
    size_bytes: int = Field(0, description="weights, context memory and overhead of the resident copy")
    device: int | None = Field(None, description="which of the pod's devices holds it")
    processor: str = Field("", description="as `ollama ps` prints it, such as 100% CPU")
    context_asked: int | None = Field(None, description="tokens a slot; None: the model's own limit")
    context_given: int = 0
    context_reason: str = Field("", description="why less was given than asked, with numbers; empty when it was not")
    slots: int = 0
    pool_tokens: int = Field(
        0, description="tokens that all slots hold together; less than their contexts where shared"
    )
    prefix_asked: int = Field(0, description="prompt tokens of admitted requests since the runner's start")
    prefix_found: int = Field(0, description="of those, how many the prefix cache had")
    busy: int = Field(0, description="slots in use")
    queued: int = 0
    rejected: int = Field(0, description="requests refused in the last 5 minutes")
    rejected_total: int = 0
    admitted_total: int = 0
    expires_at: str | None = Field(None, description="UTC time at which an idle model is unloaded; None: never")
    step_rate: float = Field(0.0, description="steps a second over the last seconds")
    restarts: int = Field(0, description="how often the runner was started again after it died")
    unloaded_because: str = Field("", description="why the pod unloaded it by itself, as the end of a sentence")
    last_error: str | None = None
    error_reason: str = Field("", description="DoesNotFit where last_error speaks of memory; empty otherwise")
    artifact: Artifact | None = None


class RoomReport(Contract):
    """What a further model would find in the pod: of the device that gives the most."""

    free_bytes: int = Field(description="without unloading anything")
    reach_bytes: int = Field(description="when all models go that have no request and are not pinned")
    free_seats: int = Field(description="models that may be loaded beside those that are")
    reach_seats: int = Field(description="the same when all go that have no request and are not pinned")


class Report(Contract):
    """All that a pod says of itself."""

    pod: str
    version: str
    catalog_revision: str = ""
    ready: bool = False
    draining: bool = False
    devices: list[DeviceReport] = Field(default_factory=list)
    room: RoomReport | None = None
    models: list[ModelReport] = Field(default_factory=list)

    def model(self, name: str) -> ModelReport | None:
        """The entry of the model `name`, or None."""
        return next((entry for entry in self.models if entry.name == name), None)
