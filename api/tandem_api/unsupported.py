"""What a Model or a ModelPool may say and this version cannot do yet. Pure.

Asked by the operator before it plans; the reference page lists it. Such a field exists and is validated, so that
manifests need not change later; until then it is answered, never ignored.
"""

from collections.abc import Callable
from typing import TypeVar

from tandem_api.fields import EngineName, Quantization, ScalingMode
from tandem_api.model import ModelSpec
from tandem_api.pool import ModelPoolSpec

S = TypeVar("S", ModelSpec, ModelPoolSpec)
Entry = tuple[str, Callable[[S], bool], str]
"""A field, whether it asks for what cannot be done, and what can be done instead."""

_REPLICAS = "the number of pods is what replicas says. Leave scaling out, or set its mode to External"

_MODEL: tuple[Entry[ModelSpec], ...] = (
    (
        "source",
        lambda spec: spec.source.startswith(("s3://", "gs://", "oci://")),
        "weights come from hf://, pvc:// or file:// sources. Copy them to a volume and use pvc://claim/folder",
    ),
    (
        "engine",
        lambda spec: spec.engine == EngineName.VLLM,
        "models are computed by the native engine. Set it to Auto or Native",
    ),
    (
        "quantization",
        lambda spec: spec.quantization == Quantization.FP8,
        "weights are held as the checkpoint has them, or in 8 or 4 bits. Set it to None, Int8 or Int4",
    ),
    ("adapters", lambda spec: bool(spec.adapters), "adapters are not loaded. Leave them out"),
    ("engineArgs", lambda spec: bool(spec.engine_args), "they are for the vLLM engine only. Leave them out"),
    ("scaling.mode", lambda spec: spec.scaling is not None and spec.scaling.mode == ScalingMode.AUTO, _REPLICAS),
    (
        "topology.nodes",
        lambda spec: spec.topology is not None and spec.topology.nodes > 1,
        "a copy lies on one node. Set it to 1",
    ),
)
_POOL: tuple[Entry[ModelPoolSpec], ...] = (
    ("scaling.mode", lambda spec: spec.scaling is not None and spec.scaling.mode == ScalingMode.AUTO, _REPLICAS),
)


def _asked(spec: S, table: tuple[Entry[S], ...]) -> str:
    found = [f"spec.{field}: {instead}." for field, asks, instead in table if asks(spec)]
    return f"This version cannot do what is asked for. {' '.join(found)}" if found else ""


def unsupported(spec: ModelSpec) -> str:
    """A sentence for each field of a Model that cannot be honoured; "" when there is none."""
    return _asked(spec, _MODEL)


def unsupported_pool(spec: ModelPoolSpec) -> str:
    """A sentence for each field of a ModelPool that cannot be honoured; "" when there is none."""
    return _asked(spec, _POOL)


def limits(kind: str) -> list[tuple[str, str]]:
    """Of the kind `Model` or `ModelPool`: each field that asks for too much, and what there is instead."""
    table = _MODEL if kind == "Model" else _POOL
    return [(field, f"{instead[:1].upper()}{instead[1:]}.") for field, _, instead in table]
