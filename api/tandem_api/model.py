"""The `Model` custom resource: what a person writes to have a model served.

First on the path of a reconcile. The CRD's schema, its validation and the reference page are made from these types
(`crd`). Static defaults stand here and nowhere else.
"""

from pydantic import Field

from tandem_api.base import Spec, rule, rules
from tandem_api.fields import (
    AdapterSpec,
    Alias,
    ContextSpec,
    CopiesSpec,
    Device,
    DType,
    Duration,
    EngineArgument,
    EngineName,
    KVCacheSpec,
    Name,
    Quantity,
    Quantization,
    QueueSpec,
    Residency,
    Revision,
    SamplingDefaults,
    ScalingSpec,
    Scheduling,
    SecretReference,
    Slots,
    Source,
    Task,
    TopologySpec,
)


class ModelSettings(Spec):
    """The part of a Model that serving pods read: the catalog holds it as it stands."""

    source: Source = Field(
        description="source of the weights: hf://org/name, pvc://claim/folder of a claim in the Model's namespace, "
        "file:///folder below one of the pool's fileRoots, s3://bucket/folder, gs://bucket/folder, or "
        "oci://registry/repository:tag.",
    )
    revision: Revision | None = Field(None, description="revision is the branch, tag or commit of an hf:// source.")
    task: Task = Field(Task.AUTO, description="task is what the model does; Auto reads it from the checkpoint.")
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
        description="residency Evictable lets an idle model go when another needs its room. Pinned: it is loaded at "
        "the start and stays.",
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
    quantization: Quantization = Field(
        Quantization.NONE, description="quantization packs the weights at load; None leaves them as they are."
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


class ResourcesSpec(Spec):
    """What each pod of a Model asks of its node."""

    gpus: int = Field(1, ge=1, le=16, description="gpus is the number of GPUs of each pod; ignored with device CPU.")
    cpu: Quantity | None = Field(None, description="cpu each pod asks for, such as 500m or 2.")
    memory: Quantity | None = Field(None, description="memory each pod asks for and may not exceed, such as 8Gi.")


_NO_DOTS = "!self.source.matches('/[.][.]?(/|$)')"
SOURCE_RULES = (
    rule(
        "self.source.matches('^(hf|s3|gs|oci|pvc|file)://.+')",
        "source must begin with hf://, pvc://, file://, s3://, gs:// or oci://",
        "source",
    ),
    rule(
        r"!self.source.startsWith('hf://') || self.source.matches('^hf://[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$')",
        "an hf:// source is hf://organisation/name",
        "source",
    ),
    rule(
        "!self.source.startsWith('pvc://') || "
        f"(self.source.matches('^pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?(/[A-Za-z0-9_.-]+)*$') && {_NO_DOTS})",
        "a pvc:// source is pvc://claim or pvc://claim/folder, without . or .. in its path",
        "source",
    ),
    rule(
        f"!self.source.startsWith('file://') || (self.source.matches('^file://(/[A-Za-z0-9_.-]+)+$') && {_NO_DOTS})",
        "a file:// source is file:///folder, an absolute path without . or ..",
        "source",
    ),
    rule(
        "!self.source.matches('^(s3|gs)://') || "
        f"(self.source.matches('^(s3|gs)://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9_.=-]+)*$') && {_NO_DOTS})",
        "an s3:// or gs:// source is scheme://bucket/folder, without . or .. in its path",
        "source",
    ),
    rule(
        "!self.source.startsWith('oci://') || self.source.matches("
        "'^oci://[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9_.-]+|@sha256:[0-9a-f]{64})$')",
        "an oci:// source is oci://registry/repository:tag or oci://registry/repository@sha256:digest",
        "source",
    ),
    rule("!has(self.revision) || self.source.startsWith('hf://')", "revision is for hf:// sources only", "revision"),
    rule(
        "!self.source.startsWith('file://') || has(self.pool)",
        "a file:// source needs a pool, whose fileRoots say which folders may be read",
        "source",
    ),
)
POOL_RULES = tuple(
    rule(
        f"!has(self.pool) || !has(self.{field})",
        f"{field} belongs to the pods, which spec.pool has: leave it out, or set it in the ModelPool",
        field,
    )
    for field in ("device", "resources", "scaling", "topology", "replicas")
)
_SECONDS = "(type(self.{0}) == int ? self.{0} : duration(self.{0}).getSeconds())"
SPEC_RULES = (
    rule(
        "!has(self.copies) || has(self.pool)", "copies are for a Model with a pool; without one, set replicas", "copies"
    ),
    rule(
        "!has(self.scaling) || self.scaling.mode != 'Auto' || !has(self.replicas)",
        "with scaling.mode Auto Tandem decides on replicas: leave replicas out",
        "replicas",
    ),
    rule(
        "!has(self.keepAlive) || !has(self.keepAliveMax) || self.keepAliveMax == -1 || (self.keepAlive != -1 && "
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
        None, description="device that the pods compute on; absent means GPU. CPU is never chosen silently."
    )
    resources: ResourcesSpec | None = Field(None, description="resources of each pod; absent means one GPU.")
    scaling: ScalingSpec | None = Field(None, description="scaling of the pods; absent means External.")
    topology: TopologySpec | None = Field(None, description="topology of one copy; absent means one node.")
    replicas: int | None = Field(
        None, ge=0, le=1000, description="replicas is the number of serving pods; absent means 1."
    )
