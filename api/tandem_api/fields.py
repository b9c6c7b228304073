"""Enumerations and small groups of fields that `Model` and `ModelPool` are made of.

Below `model` and `pool` on the path of a reconcile. Field descriptions are what `kubectl explain` and the reference
page print; they begin with the field's name and say what each value does.
"""

from enum import StrEnum

from pydantic import Field

from tandem_api.base import FORBIDDEN, Spec, rule, rules
from tandem_api.scalars import (
    DECIMAL_PATTERN,
    LARGEST_CONTEXT,
    LONGEST_SECONDS,
    ContextLength,
    Decimal,
    Name,
    ObjectName,
    Whole,
)
from tandem_api.source import SOURCE_RULES, Revision, Source


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
            "context.minLength (256 when left out) must not be larger than context.length",
            "minLength",
        )
    )

    length: ContextLength = Field(
        "Auto", description="length is the context of one slot in tokens; Auto takes the model's own limit."
    )
    min_length: Whole = Field(
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

    max: Whole = Field(
        512,
        ge=0,
        le=65_536,
        description="max is how many requests may wait for a slot; further ones are refused at once.",
    )
    timeout_seconds: Whole = Field(
        300,
        ge=1,
        le=86_400,
        description="timeoutSeconds is how long a request may wait for a slot before it is refused.",
    )


class KVCacheSpec(Spec):
    """The memory of keys and values."""

    policy: CachePolicy = Field(
        CachePolicy.GUARANTEED,
        description="policy of sharing. Guaranteed: each slot has memory for its whole context. Shared: slots draw on "
        "one pool of blocks, and a request waits until its worst case fits, so that context.length may be longer, or "
        "slots more, than there is memory for at once.",
    )
    dtype: CacheDType = Field(
        CacheDType.AUTO,
        description="dtype of keys and values. Auto: that of the computation. FP8: 8 bits, so that twice as much "
        "context fits, with slightly different answers; needs a GPU of compute capability 8.9 or later.",
    )


# The schema refuses other text already; without this the refusal would speak of a type conversion as well.
_IS_DECIMAL = f"self.{{0}}.matches('{DECIMAL_PATTERN.replace('{', '{{').replace('}', '}}')}')"


class SamplingDefaults(Spec):
    """What a request gets that does not say it itself; numbers with a fraction are decimal strings."""

    model_config = rules(
        rule(
            f"!has(self.temperature) || !{_IS_DECIMAL.format('temperature')} || double(self.temperature) <= 100.0",
            "defaults.temperature is at most 100",
            "temperature",
        ),
        rule(
            f"!has(self.topP) || !{_IS_DECIMAL.format('topP')} || "
            "(double(self.topP) > 0.0 && double(self.topP) <= 1.0)",
            "defaults.topP is above 0 and at most 1",
            "topP",
        ),
    )

    temperature: Decimal | None = Field(None, description='temperature of sampling, such as "0.7"; 0 is greedy.')
    top_p: Decimal | None = Field(
        None, description='topP keeps the most likely tokens that together reach this probability, such as "0.95".'
    )
    top_k: Whole | None = Field(
        None, ge=0, le=1_000_000, description="topK keeps this many most likely tokens; 0 keeps all."
    )
    max_tokens: Whole | None = Field(
        None, ge=1, le=LARGEST_CONTEXT, description="maxTokens is the longest answer in tokens."
    )


class AdapterSpec(Spec):
    """One LoRA adapter; requests call it `<model>:<name>`."""

    model_config = rules(*SOURCE_RULES)

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

    min: Whole = Field(
        0, ge=0, le=1000, description="min is in how many pods it is loaded before anybody asks for it; 0: in none."
    )
    max: Whole | None = Field(
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
            "(has(self.min) ? self.min : 1) <= (has(self.max) ? self.max : 1)",
            "scaling.max (1 when left out) must not be smaller than scaling.min",
            "max",
        ),
        rule(
            "self.mode != 'Auto' || !has(self.idleSecondsToZero) || (has(self.min) && self.min == 0)",
            "idleSecondsToZero needs scaling.min 0: with more, some pod is always kept",
            "idleSecondsToZero",
            FORBIDDEN,
        ),
    )

    mode: ScalingMode = Field(
        description="mode of scaling. Auto: Tandem scales by load between min and max. External: the number of pods "
        "is spec.replicas, which you, an HPA or KEDA write."
    )
    min: Whole | None = Field(None, ge=0, le=1000, description="min is the least number of pods; absent means 1.")
    max: Whole | None = Field(None, ge=1, le=1000, description="max is the largest number of pods; absent means 1.")
    target_utilization: Whole | None = Field(
        None,
        ge=1,
        le=100,
        description="targetUtilization is how many of the slots should be busy, in percent; absent means 70.",
    )
    idle_seconds_to_zero: Whole | None = Field(
        None,
        ge=1,
        le=LONGEST_SECONDS,
        description="idleSecondsToZero is how many seconds without a request may pass before the last pod goes, where "
        "min is 0; absent means 600.",
    )


REPLICAS_RULE = rule(
    "!has(self.scaling) || self.scaling.mode != 'Auto' || !has(self.replicas)",
    "with scaling.mode Auto Tandem decides on replicas: leave replicas out",
    "replicas",
    FORBIDDEN,
)
"""Of both kinds' spec."""


class TopologySpec(Spec):
    """How one copy of a Model is spread."""

    nodes: Whole = Field(1, ge=1, le=64, description="nodes is over how many nodes one copy is spread.")
