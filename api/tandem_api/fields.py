"""Scalars, enumerations and small groups of fields that `Model` and `ModelPool` are made of.

Below `model` and `pool` on the path of a reconcile. Field descriptions are what `kubectl explain` and the reference
page print; they begin with the field's name and say what each value does.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, WithJsonSchema

from tandem_api.base import Spec, rule, rules

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
FOREVER = -1

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=40)]
"""Of a Model, a ModelPool or an adapter."""
ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)
]
"""Of a Secret or a PersistentVolumeClaim."""
Decimal = Annotated[str, StringConstraints(pattern=r"^\d{1,3}(\.\d{1,6})?$", max_length=10)]
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=20)]
Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w./:-]*$", min_length=1, max_length=120)]
Revision = Annotated[str, StringConstraints(pattern=r"^[\w./-]+$", min_length=1, max_length=128)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=512)]


def _int_or_string(pattern: str, minimum: int, maximum: int) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": pattern,
            "minimum": minimum,
            "maximum": maximum,
        }
    )


LARGEST_CONTEXT = 16_777_216
LONGEST_SECONDS = 31_536_000
_DURATION = r"^([0-9]{1,9}(ms|s|m|h))+$"

ContextLength = Annotated[
    Annotated[int, Field(ge=4, le=LARGEST_CONTEXT)] | Literal["Auto"], _int_or_string("^Auto$", 4, LARGEST_CONTEXT)
]
Slots = Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["Auto"], _int_or_string("^Auto$", 1, 1024)]
Duration = Annotated[
    Annotated[int, Field(ge=FOREVER, le=LONGEST_SECONDS)]
    | Annotated[str, StringConstraints(pattern=_DURATION, max_length=32)],
    _int_or_string(_DURATION, FOREVER, LONGEST_SECONDS),
]
"""Seconds as a number, or a duration such as 5m or 1h30m; -1 is for ever."""


class Task(StrEnum):
    """What the model is for."""

    AUTO = "Auto"
    GENERATE = "Generate"
    EMBED = "Embed"


class EngineName(StrEnum):
    """What computes the model. Auto: the pod decides by the checkpoint, and says why in the status."""

    AUTO = "Auto"
    NATIVE = "Native"
    VLLM = "VLLM"


class Scheduling(StrEnum):
    """How steps follow each other on the device."""

    OVERLAPPED = "Overlapped"
    PLAIN = "Plain"


class Residency(StrEnum):
    """Whether a resident model may be unloaded to make room."""

    EVICTABLE = "Evictable"
    PINNED = "Pinned"


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


class Quantization(StrEnum):
    """Number format that weights are packed into at load. None: as the checkpoint has them."""

    NONE = "None"
    INT8 = "Int8"
    INT4 = "Int4"
    FP8 = "FP8"


class CachePolicy(StrEnum):
    """How slots share the memory of keys and values."""

    GUARANTEED = "Guaranteed"
    SHARED = "Shared"


class CacheDType(StrEnum):
    """Number format of keys and values."""

    AUTO = "Auto"
    FP8 = "FP8"


class WhenShort(StrEnum):
    """What happens when the context that was asked for does not fit."""

    SHRINK = "Shrink"
    FAIL = "Fail"


class ScalingMode(StrEnum):
    """Who decides how many pods there are."""

    AUTO = "Auto"
    EXTERNAL = "External"


class ContextSpec(Spec):
    """How many tokens one running request may hold, prompt and answer together."""

    model_config = rules(
        rule(
            "type(self.length) != int || self.minLength <= self.length",
            "context.minLength must not be larger than context.length",
            "minLength",
        )
    )

    length: ContextLength = Field(
        "Auto", description="length is the context of one slot in tokens; Auto takes the model's own limit."
    )
    min_length: int = Field(
        256,
        ge=4,
        le=LARGEST_CONTEXT,
        description="minLength is the smallest context that Shrink may give, in tokens.",
    )
    when_short: WhenShort | None = Field(
        None,
        description="whenShort says what to do when length does not fit. Shrink: serve with the largest context that "
        "does, told in status, an Event and each response. Fail: refuse to load, with the numbers. Absent: as the "
        "pool's contextPolicy says, which is Shrink for a Model with a pool of its own.",
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


class KVCacheSpec(Spec):
    """The memory of keys and values."""

    policy: CachePolicy = Field(
        CachePolicy.GUARANTEED,
        description="policy Guaranteed gives each slot its whole context. Shared: slots draw on one pool of blocks, "
        "and a request waits until its worst case fits.",
    )
    dtype: CacheDType = Field(
        CacheDType.AUTO, description="dtype of keys and values; Auto takes the computation's, FP8 needs half of it."
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
    max_tokens: int | None = Field(
        None, ge=1, le=LARGEST_CONTEXT, description="maxTokens is the longest answer in tokens."
    )


class AdapterSpec(Spec):
    """One LoRA adapter; requests call it `<model>:<name>`."""

    name: Name = Field(description="name that requests add to the Model's, as in model:name.")
    source: Source = Field(description="source of the adapter's weights, as the Model's own source.")
    revision: Revision | None = Field(None, description="revision of an hf:// source.")


class EngineArgument(Spec):
    """One setting of the vLLM engine."""

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9-]*$", description="name as vLLM's command line has it."
    )
    value: str = Field("", max_length=1024, description="value of the argument; empty for a switch.")


class SecretReference(Spec):
    """A Secret of the Model's own namespace."""

    name: ObjectName = Field(
        description='name of a Secret that bears the label tandem.dev/model-credentials: "true"; others are not read.'
    )


class CopiesSpec(Spec):
    """In how many pods of its pool a Model is loaded."""

    model_config = rules(
        rule("!has(self.max) || self.max >= self.min", "copies.max must not be smaller than copies.min", "max")
    )

    min: int = Field(
        0, ge=0, le=1000, description="min is in how many pods it is loaded before anybody asks for it; 0: in none."
    )
    max: int | None = Field(
        None, ge=1, le=1000, description="max is the most pods that may hold it; absent: as many as there are."
    )


class ScalingSpec(Spec):
    """Who decides how many pods there are, and within which bounds."""

    model_config = rules(
        rule(
            "self.mode == 'Auto' || !(has(self.min) || has(self.max) || has(self.targetUtilization) || "
            "has(self.idleSecondsToZero))",
            "min, max, targetUtilization and idleSecondsToZero are for mode Auto; with External, replicas says it all",
            "mode",
        ),
        rule(
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            "scaling.max must not be smaller than scaling.min",
            "max",
        ),
    )

    mode: ScalingMode = Field(
        description="mode Auto lets Tandem scale by load between min and max. External: spec.replicas is what you, an "
        "HPA or KEDA write there."
    )
    min: int | None = Field(None, ge=0, le=1000, description="min is the least number of pods; absent means 1.")
    max: int | None = Field(None, ge=1, le=1000, description="max is the largest number of pods; absent means 1.")
    target_utilization: int | None = Field(
        None, ge=1, le=100, description="targetUtilization of the slots in percent; absent means 70."
    )
    idle_seconds_to_zero: int | None = Field(
        None,
        ge=1,
        le=LONGEST_SECONDS,
        description="idleSecondsToZero without a request after which no pod is left, if min is 0; absent means 600.",
    )


class TopologySpec(Spec):
    """How one copy of a Model is spread."""

    nodes: int = Field(1, ge=1, le=64, description="nodes is over how many nodes one copy is spread.")
