"""What the system answers: the status of `Model` and `ModelPool`.

Last on the path of a reconcile. Everything is optional, and nothing has a default: the API server must not invent
what nobody observed.
"""

from enum import StrEnum
from typing import Any

from pydantic import Field

from tandem_api.base import Contract

MOST_PODS = 50
"""Of a pool that its status lists one by one."""
ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}


class ConditionStatus(StrEnum):
    """Value of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Contract):
    """One entry of `status.conditions`, as the Kubernetes API conventions have it."""

    type: str = Field(max_length=316, description="type of the condition, such as Ready.")
    status: ConditionStatus = Field(description="status is True, False or Unknown.")
    reason: str = Field(
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="reason of the status in one word, for programs.",
    )
    message: str = Field(max_length=32_768, description="message in sentences, for people.")
    last_transition_time: str = Field(
        "", json_schema_extra={"format": "date-time"}, description="lastTransitionTime is when status last changed."
    )
    observed_generation: int | None = Field(
        None, ge=0, description="observedGeneration is the generation that the condition speaks of."
    )


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


class CommonStatus(Contract):
    """What both kinds tell. Gauges are written at most once in 10 seconds, conditions at once."""

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
    queued: int | None = Field(None, description="queued is how many requests wait for a slot.")
    rejected: int | None = Field(None, description="rejected is how many requests were refused in the last 5 minutes.")


class ModelStatus(CommonStatus):
    """What the operator last saw of a Model."""

    size: str | None = Field(None, description="size that one copy takes on its device, weights and context together.")
    processor: str | None = Field(None, description="processor that computes, such as 100% GPU.")
    context: int | None = Field(None, description="context that each slot really has, in tokens.")
    slots: str | None = Field(None, description="slots in use and in all, over all pods.")
    until: str | None = Field(None, description="until says how long the model stays loaded.")
    artifact: Artifact | None = Field(None, description="artifact is what a pod found in the weights.")


class DeviceStatus(Contract):
    """Memory of one device of a pod."""

    name: str = Field(description="name of the device.")
    total: str = Field(description="total that models may take.")
    reserved: str = Field(description="reserved by models that are loaded or being loaded.")
    free: str = Field(description="free for further models.")


class PodStatus(Contract):
    """What one pod of a pool holds."""

    name: str = Field(description="name of the pod.")
    devices: list[DeviceStatus] = Field(
        default_factory=list, max_length=16, description="devices of the pod.", json_schema_extra=ATOMIC
    )
    models: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="models that are loaded, each with the index of its device where there are several.",
        json_schema_extra=ATOMIC,
    )


class ModelPoolStatus(CommonStatus):
    """What the operator last saw of a ModelPool."""

    models: int | None = Field(None, description="models that name this pool.")
    loaded: int | None = Field(None, description="loaded is how many of them at least one pod holds.")
    memory: str | None = Field(
        None, description="memory that models hold and that there is, of the fullest device of the pods."
    )
    pods: list[PodStatus] = Field(
        default_factory=list,
        max_length=MOST_PODS,
        description=f"pods that told what they hold, at most {MOST_PODS}: memory by device, and models.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
