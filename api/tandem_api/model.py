"""The `Model` custom resource: what a person writes to have a model served.

First on the path of a reconcile. The CRD's schema, its validation and the reference page are made from these types
(`crd`). Static defaults stand here and nowhere else.
"""

from pydantic import Field

from tandem_api.base import FORBIDDEN, REQUIRED, Spec, rule, rules
from tandem_api.fields import (
    REPLICAS_RULE,
    AdapterSpec,
    ContextSpec,
    CopiesSpec,
    Device,
    DType,
    EngineArgument,
    EngineName,
    KVCacheSpec,
    Quantization,
    QueueSpec,
    Residency,
    SamplingDefaults,
    ScalingSpec,
    Scheduling,
    SecretReference,
    Task,
    TopologySpec,
)
from tandem_api.pool import PoolResources
from tandem_api.scalars import DURATION_PATTERN, Alias, Duration, Name, Slots, Whole
from tandem_api.source import SOURCE_RULES, Revision, Source


class ModelSettings(Spec):
    """The part of a Model that serving pods read: the catalog holds it as it stands."""

    source: Source = Field(
        description="source of the weights: hf://org/name, pvc://claim/folder of a claim in the Model's namespace, "
        "file:///folder below one of the pool's fileRoots, s3://bucket/folder, gs://bucket/folder, or "
        "oci://registry/repository:tag.",
    )
    revision: Revision | None = Field(None, description="revision is the branch, tag or commit of an hf:// source.")
    task: Task = Field(
        Task.AUTO,
        description="task of the model. Generate: it writes text. Embed: it turns texts into vectors. Auto: as its "
        "checkpoint says.",
    )
    engine: EngineName = Field(
        EngineName.AUTO,
        description="engine that computes. Native: Tandem's own. VLLM: vLLM, for what Native does not know. Auto: the "
        "pod decides by the checkpoint, and says why in status.artifact.",
    )
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
    kv_cache: KVCacheSpec = Field(
        default=KVCacheSpec(), json_schema_extra={"default": {}}, description="kvCache of the slots."
    )
    queue: QueueSpec = Field(
        default=QueueSpec(), json_schema_extra={"default": {}}, description="queue in front of the slots."
    )
    keep_alive: Duration | None = Field(
        None,
        description="keepAlive is how long the model stays loaded without a request: seconds or a duration such as 5m; "
        "0 unloads at once, -1 never. Absent: the pool's, which is -1 for a Model with a pool of its own.",
    )
    keep_alive_max: Duration | None = Field(
        None, description="keepAliveMax is the longest that a request may ask for; absent: keepAlive."
    )
    residency: Residency = Field(
        Residency.EVICTABLE,
        description="residency in a pod. Evictable: an idle model goes when another needs its room. Pinned: it is "
        "loaded at the start and stays.",
    )
    scheduling: Scheduling = Field(
        Scheduling.OVERLAPPED,
        description="scheduling of steps. Overlapped: the next step is planned while the current one computes. Plain: "
        "one after the other, with the same tokens; to compare, or to look for a fault.",
    )
    dtype: DType = Field(
        DType.AUTO,
        description="dtype of weights and computation. Float32: 4 bytes a weight. BFloat16 and Float16: 2 bytes. Auto: "
        "the checkpoint's, or what the device does best.",
    )
    quantization: Quantization = Field(
        Quantization.NONE,
        description="quantization of the weights at load. None: as the checkpoint has them. Int8 and FP8: 1 byte a "
        "weight. Int4: 5 bits a weight, scales included, and answers that differ visibly. Computed in BFloat16.",
    )
    adapters: list[AdapterSpec] = Field(
        default_factory=list,
        max_length=64,
        description="adapters that requests may choose.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    engine_args: list[EngineArgument] = Field(
        default_factory=list,
        max_length=64,
        description="engineArgs are settings of the vLLM engine.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    defaults: SamplingDefaults = Field(
        default=SamplingDefaults(),
        json_schema_extra={"default": {}},
        description="defaults of sampling for requests that say nothing.",
    )


class ResourcesSpec(PoolResources):
    """What each pod of a Model asks of its node."""

    gpus: Whole = Field(1, ge=1, le=16, description="gpus is the number of GPUs of each pod; ignored with device CPU.")


POOL_RULES = tuple(
    rule(
        f"!has(self.pool) || !has(self.{field})",
        f"{field} is for a Model with pods of its own; with pool set, the ModelPool's pods serve it: leave out "
        f"{field}, or pool",
        field,
        FORBIDDEN,
    )
    for field in ("device", "resources", "scaling", "topology", "replicas")
)
# The schema refuses other text already; without this the refusal would speak of a type conversion as well.
_IS_DURATION = (
    f"(type(self.{{0}}) == int || self.{{0}}.matches('{DURATION_PATTERN.replace('{', '{{').replace('}', '}}')}'))"
)
_SECONDS = "(type(self.{0}) == int ? duration(string(self.{0}) + 's') : duration(self.{0}))"
_FILES_NEED_A_POOL = "a file:// source needs a pool, whose fileRoots say which folders may be read"
SPEC_RULES = (
    rule("!self.source.startsWith('file://') || has(self.pool)", _FILES_NEED_A_POOL, "pool", REQUIRED),
    rule(
        "!has(self.adapters) || has(self.pool) || self.adapters.all(one, !one.source.startsWith('file://'))",
        f"{_FILES_NEED_A_POOL}; an adapter has one",
        "pool",
        REQUIRED,
    ),
    rule(
        "!has(self.copies) || has(self.pool)",
        "copies are for a Model with a pool; without one, set replicas",
        "copies",
        FORBIDDEN,
    ),
    rule(
        "!has(self.engineArgs) || self.engineArgs.size() == 0 || self.engine != 'Native'",
        "engineArgs are for vLLM: leave them out, or let engine be VLLM or Auto",
        "engineArgs",
        FORBIDDEN,
    ),
    REPLICAS_RULE,
    rule(
        f"!has(self.keepAlive) || !has(self.keepAliveMax) || !{_IS_DURATION.format('keepAlive')} || "
        f"!{_IS_DURATION.format('keepAliveMax')} || self.keepAliveMax == -1 || (self.keepAlive != -1 && "
        f"{_SECONDS.format('keepAliveMax')} >= {_SECONDS.format('keepAlive')})",
        "keepAliveMax must not be shorter than keepAlive",
        "keepAliveMax",
    ),
)


class ModelSpec(ModelSettings):
    """What a person wants served, and how."""

    model_config = rules(*SOURCE_RULES, *POOL_RULES, *SPEC_RULES)

    secret_ref: SecretReference | None = Field(
        None, description="secretRef names the credentials for the source, such as a token of the hub (key: token)."
    )
    pool: Name | None = Field(
        None,
        description="pool is the ModelPool of the same namespace whose pods serve the Model, with others. Absent: it "
        "has pods of its own.",
    )
    copies: CopiesSpec | None = Field(None, description="copies is in how many pods of its pool the Model is loaded.")
    device: Device | None = Field(
        None,
        description="device that the pods compute on. GPU, also when absent: a pod that sees fewer GPUs than asked for "
        "fails, and says so. CPU: never chosen silently.",
    )
    resources: ResourcesSpec | None = Field(None, description="resources of each pod; absent means one GPU.")
    scaling: ScalingSpec | None = Field(None, description="scaling of the pods; absent means External.")
    topology: TopologySpec | None = Field(None, description="topology of one copy; absent means one node.")
    replicas: Whole | None = Field(
        None,
        ge=0,
        le=1000,
        description="replicas is the number of serving pods; absent means 1. Set it once where an HPA or KEDA is to "
        "write it: they cannot read an absent one.",
    )
