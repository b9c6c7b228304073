"""The `Model` custom resource: what a person writes (`ModelSpec`) and what the system answers (`ModelStatus`).

First on the path of a reconcile. The CRD's schema, its validation and the reference page are made from these types
(`crd`); field descriptions are what `kubectl explain` prints. Static defaults stand here and nowhere else.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, WithJsonSchema

from tandem_api.base import Contract, Spec

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

Decimal = Annotated[str, StringConstraints(pattern=r"^\d{1,3}(\.\d{1,6})?$", max_length=10)]
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=20)]
Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w./:-]*$", min_length=1, max_length=120)]


def _number_or_auto(minimum: int, maximum: int) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": "^Auto$",
            "minimum": minimum,
            "maximum": maximum,
        }
    )


ContextLength = Annotated[Annotated[int, Field(ge=4, le=16_777_216)] | Literal["Auto"], _number_or_auto(4, 16_777_216)]
Slots = Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["Auto"], _number_or_auto(1, 1024)]


class Task(StrEnum):
    """What the model is for."""

    AUTO = "Auto"
    GENERATE = "Generate"
    EMBED = "Embed"


class Scheduling(StrEnum):
    """How steps follow each other on the device."""

    OVERLAPPED = "Overlapped"
    PLAIN = "Plain"


class Device(StrEnum):
    """What the pods compute on."""

    GPU = "GPU"
    CPU = "CPU"


class DType(StrEnum):
    """Number format of weights and computation."""

    AUTO = "Auto"
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"


class WhenShort(StrEnum):
    """What happens when the context that was asked for does not fit."""

    SHRINK = "Shrink"
    FAIL = "Fail"


class ContextSpec(Spec):
    """How many tokens one running request may hold, prompt and answer together."""

    length: ContextLength = Field(
        "Auto", description="length is the context of one slot in tokens; Auto takes the model's own limit."
    )
    min_length: int = Field(
        256, ge=4, le=16_777_216, description="minLength is the smallest context that Shrink may give, in tokens."
    )
    when_short: WhenShort = Field(
        WhenShort.SHRINK,
        description="whenShort says what to do when length does not fit. Shrink: serve with the largest context that "
        "does, told in status, an Event and each response. Fail: refuse to load, with the numbers.",
    )


class QueueSpec(Spec):
    """The bounded first-in, first-out queue in front of the slots."""

    max: int = Field(
        512,
        ge=0,
        le=65_536,
        description="max is how many requests may wait for a slot; further ones are refused at once.",
    )
    timeout_seconds: int = Field(
        300,
        ge=1,
        le=86_400,
        description="timeoutSeconds is how long a request may wait for a slot before it is refused.",
    )


class SamplingDefaults(Spec):
    """What a request gets that does not say it itself; numbers with a fraction are decimal strings."""

    temperature: Decimal | None = Field(None, description="temperature of sampling; 0 is greedy.")
    top_p: Decimal | None = Field(
        None, description="topP keeps the most likely tokens that together reach this probability."
    )
    top_k: int | None = Field(
        None, ge=0, le=1_000_000, description="topK keeps this many most likely tokens; 0 keeps all."
    )
    max_tokens: int | None = Field(None, ge=1, le=16_777_216, description="maxTokens is the longest answer in tokens.")


class ResourcesSpec(Spec):
    """What each pod of the Model asks of its node."""

    gpus: int = Field(1, ge=1, le=16, description="gpus is the number of GPUs of each pod; ignored with device CPU.")
    cpu: Quantity | None = Field(None, description="cpu each pod asks for, such as 500m or 2.")
    memory: Quantity | None = Field(None, description="memory each pod asks for and may not exceed, such as 8Gi.")


class ModelSpec(Spec):
    """What a person wants served, and how."""

    source: str = Field(
        min_length=1,
        max_length=512,
        description="source of the weights: hf://org/name, or pvc://claim/folder of a claim in the Model's namespace.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=r"^[\w./-]+$",
        description="revision is the branch, tag or commit of an hf:// source.",
    )
    task: Task = Field(Task.AUTO, description="task is what the model does; Auto reads it from the checkpoint.")
    aliases: list[Alias] = Field(
        default_factory=list,
        max_length=16,
        description="aliases are further names that requests may use, such as qwen3:0.6b.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    context: ContextSpec = Field(
        default=ContextSpec(), json_schema_extra={"default": {}}, description="context of each slot."
    )
    slots: Slots = Field(
        "Auto", description="slots is how many requests run at once, each with its whole context; Auto means 4."
    )
    queue: QueueSpec = Field(
        default=QueueSpec(), json_schema_extra={"default": {}}, description="queue in front of the slots."
    )
    scheduling: Scheduling = Field(
        Scheduling.OVERLAPPED,
        description="scheduling Overlapped plans the next step while the current one computes; Plain does one after "
        "the other.",
    )
    dtype: DType = Field(
        DType.AUTO,
        description="dtype of weights and computation; Auto takes the checkpoint's, or what the device does best.",
    )
    defaults: SamplingDefaults = Field(
        default=SamplingDefaults(),
        json_schema_extra={"default": {}},
        description="defaults of sampling for requests that say nothing.",
    )
    device: Device = Field(Device.GPU, description="device that the pods compute on. CPU is never chosen silently.")
    resources: ResourcesSpec = Field(
        default=ResourcesSpec(), json_schema_extra={"default": {}}, description="resources of each pod."
    )
    replicas: int | None = Field(
        None, ge=0, le=1000, description="replicas is the number of serving pods; absent means 1."
    )


class ConditionStatus(StrEnum):
    """Value of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Contract):
    """One entry of `status.conditions`, as the Kubernetes API conventions have it."""

    type: str = Field(max_length=316)
    status: ConditionStatus
    reason: str = Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    message: str = Field(max_length=32_768)
    last_transition_time: str = Field("", json_schema_extra={"format": "date-time"})
    observed_generation: int | None = Field(None, ge=0)


class Artifact(Contract):
    """What a pod found in the weights; told by pods only, and kept when all pods are gone."""

    architecture: str = Field("", description="architecture as the checkpoint names it.")
    parameters: int = Field(0, description="parameters is the number of weights.")
    weight_bytes: int = Field(0, description="weightBytes is what the weights take on the device.")
    context_limit: int = Field(
        0, description="contextLimit is the longest context that the model was made for, in tokens."
    )
    config_digest: str = Field("", description="configDigest identifies the checkpoint's configuration.")
    dtype: str = Field("", description="dtype the weights are held in.")
    engine: str = Field("", description="engine that runs the model.")
    engine_reason: str = Field("", description="engineReason says why that engine was chosen.")
    task: str = Field("", description="task that the checkpoint is for.")


class ModelStatus(Contract):
    """What the operator last saw. Gauges are written at most once in 10 seconds, conditions at once."""

    observed_generation: int | None = Field(
        None, description="observedGeneration is the generation that the rest of the status speaks of."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="conditions in sentences; Ready is the summary.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    replicas: int | None = Field(None, description="replicas that exist.")
    ready_replicas: int | None = Field(None, description="readyReplicas that take requests.")
    selector: str | None = Field(None, description="selector of the pods, for the scale subresource.")
    size: str | None = Field(None, description="size that one copy takes on its device, weights and context together.")
    processor: str | None = Field(None, description="processor that computes, such as 100% GPU.")
    context: int | None = Field(None, description="context that each slot really has, in tokens.")
    slots: str | None = Field(None, description="slots in use and in all, over all pods.")
    until: str | None = Field(None, description="until says how long the model stays loaded.")
    queued: int | None = Field(None, description="queued is how many requests wait for a slot.")
    rejected: int | None = Field(None, description="rejected is how many requests were refused in the last 5 minutes.")
    artifact: Artifact | None = Field(None, description="artifact is what a pod found in the weights.")
