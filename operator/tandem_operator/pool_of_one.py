"""A Model without a pool as a ModelPool of its own, so that everything after this knows one kind of pool only.

First thing that `observe` does with such a Model. Pure.
"""

from tandem_api.fields import Device
from tandem_api.model import ModelSpec, ResourcesSpec
from tandem_api.pool import ModelPoolSpec, PoolVolume
from tandem_api.scalars import FOREVER

_QUEUE_BOUND = 65_536
"""The pod's own bound; the Model's queue is the one that counts, and changing it must not replace pods."""


def claim_of(source: str) -> str | None:
    """The PersistentVolumeClaim that a `pvc://claim/folder` source names; None for other sources."""
    return source.removeprefix("pvc://").split("/", 1)[0] if source.startswith("pvc://") else None


def pool_of_one(spec: ModelSpec) -> ModelPoolSpec:
    """The pods that serve this Model alone."""
    resources = spec.resources or ResourcesSpec()
    claim = claim_of(spec.source)
    return ModelPoolSpec(
        device=spec.device or Device.GPU,
        gpus_per_pod=resources.gpus,
        resources=resources,
        replicas=spec.replicas,
        scaling=spec.scaling,
        max_queue=_QUEUE_BOUND,
        keep_alive=FOREVER,
        volumes=[PoolVolume(claim=claim)] if claim is not None else [],
    )
