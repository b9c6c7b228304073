"""The `ModelPool` custom resource: identical serving pods that several Models share.

Beside `model` on the path of a reconcile. A Model without `pool` gets a spec of this type made from its own fields,
so that both kinds of pool are one code path. Whoever may create a ModelPool may choose what runs in a pod: it is
equal to creating pods, and has a ClusterRole of its own.
"""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from tandem_api.base import FORBIDDEN, Spec, rule, rules
from tandem_api.fields import REPLICAS_RULE, Device, ScalingSpec, WhenShort
from tandem_api.names import GROUP
from tandem_api.scalars import Cpu, Duration, Memory, ObjectName, Whole

POOL_KEEP_ALIVE = "5m"
"""Of a pool that says none, as Ollama has it."""
FileRoot = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$", max_length=256)]
Label = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", max_length=63)]
Annotation = Annotated[str, StringConstraints(max_length=4096)]


class PoolResources(Spec):
    """What each pod asks of its node, beside GPUs."""

    cpu: Cpu | None = Field(None, description="cpu each pod asks for, such as 500m or 2.")
    memory: Memory | None = Field(None, description="memory each pod asks for and may not exceed, such as 8Gi.")


class CacheSpec(Spec):
    """Where a pod keeps what it downloads."""

    model_config = rules(
        rule(
            "!(has(self.claim) && has(self.sizeLimit))",
            "sizeLimit is for a cache without a claim: leave out sizeLimit, or claim",
            "sizeLimit",
            FORBIDDEN,
        )
    )

    claim: ObjectName | None = Field(
        None,
        description="claim is a PersistentVolumeClaim that all pods of the pool share (ReadWriteMany for more than one "
        "node). Absent: each pod has an emptyDir.",
    )
    size_limit: Memory | None = Field(None, description="sizeLimit of the emptyDir; absent: the node's.")


class PoolVolume(Spec):
    """One claim that Models of the pool may name in a pvc:// source."""

    claim: ObjectName = Field(description="claim of the pool's namespace; mounted read-only at /models/<claim>.")


class TemplateMetadata(Spec):
    """Labels and annotations that every pod gets."""

    model_config = rules(
        *(
            rule(
                f"!has(self.{field}) || self.{field}.all(key, !key.startsWith('{GROUP}/'))",
                f"{field} that begin with {GROUP}/ are Tandem's own: leave them out",
                field,
                FORBIDDEN,
            )
            for field in ("labels", "annotations")
        )
    )

    labels: dict[str, Label] = Field(default_factory=dict, max_length=32, description="labels of every pod.")
    annotations: dict[str, Annotation] = Field(
        default_factory=dict, max_length=32, description="annotations of every pod."
    )


class PodTemplateSpec(Spec):
    """What is laid over the pod template that Tandem makes, by Kubernetes' own rules for such merges."""

    metadata: TemplateMetadata = Field(
        default=TemplateMetadata(), json_schema_extra={"default": {}}, description="metadata of every pod."
    )
    spec: dict[str, Any] = Field(
        default_factory=dict,
        description="spec is part of a pod's spec: maps are merged; containers, volumes, env, mounts and ports are "
        "merged by name; other lists are replaced; null removes. The server's container is named server.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class RolloutSpec(Spec):
    """How pods are replaced when their template changes."""

    model_config = rules(
        rule("self.maxSurge + self.maxUnavailable > 0", "maxSurge and maxUnavailable must not both be 0", "maxSurge")
    )

    max_surge: Whole = Field(
        1, ge=0, le=100, description="maxSurge is how many new pods may run beside the old ones; each needs its GPUs."
    )
    max_unavailable: Whole = Field(
        0,
        ge=0,
        le=100,
        description="maxUnavailable is how many old pods may end before their successors are ready: 1, with maxSurge "
        "0, where no GPU is free.",
    )


class ModelPoolSpec(Spec):
    """Pods that serve every Model with `pool` set to this name."""

    model_config = rules(REPLICAS_RULE)

    device: Device = Field(
        Device.GPU,
        description="device that the pods compute on. GPU: a pod that sees fewer GPUs than asked for fails, and says "
        "so. CPU: never chosen silently.",
    )
    gpus_per_pod: Whole = Field(
        1, ge=1, le=16, description="gpusPerPod is the number of GPUs of each pod; ignored with device CPU."
    )
    resources: PoolResources = Field(
        default=PoolResources(), json_schema_extra={"default": {}}, description="resources of each pod, beside GPUs."
    )
    replicas: Whole | None = Field(
        None,
        ge=0,
        le=1000,
        description="replicas is the number of pods; absent means 1. Set it once where an HPA or KEDA is to write it: "
        "they cannot read an absent one.",
    )
    scaling: ScalingSpec | None = Field(None, description="scaling of the pods; absent means External.")
    max_loaded_models: Whole = Field(
        0,
        ge=0,
        le=1000,
        description="maxLoadedModels is how many models a pod holds at once; 0 means three times its GPUs.",
    )
    max_queue: Whole = Field(
        512,
        ge=0,
        le=65_536,
        description="maxQueue is how many requests may wait in one pod, over all of its models.",
    )
    keep_alive: Duration | None = Field(
        None,
        description="keepAlive of Models that say none: seconds or a duration such as 5m; 0 unloads at once, -1 never. "
        f"Absent: {POOL_KEEP_ALIVE}.",
    )
    context_policy: WhenShort = Field(
        WhenShort.SHRINK,
        description="contextPolicy is the context.whenShort of Models that say none. Shrink: serve with the largest "
        "context that fits, and tell. Fail: refuse to load, with the numbers.",
    )
    cache: CacheSpec = Field(
        default=CacheSpec(), json_schema_extra={"default": {}}, description="cache of what pods download."
    )
    volumes: list[PoolVolume] = Field(
        default_factory=list,
        max_length=32,
        description="volumes are the claims that pods mount and Models may name.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["claim"]},
    )
    file_roots: list[FileRoot] = Field(
        default_factory=list,
        max_length=16,
        description="fileRoots are folders inside the pods below which file:// sources may lie.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_./:@-]*$",
        description="image of the server; absent: the installation's.",
    )
    pod_template: PodTemplateSpec = Field(
        default=PodTemplateSpec(),
        json_schema_extra={"default": {}},
        description="podTemplate is laid over the pods' template. Host namespaces, hostPath, privileges and another "
        "ServiceAccount are refused unless the installation allows them.",
    )
    rollout: RolloutSpec = Field(
        default=RolloutSpec(), json_schema_extra={"default": {}}, description="rollout of changed pods."
    )
