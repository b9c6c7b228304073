"""Makes the CustomResourceDefinitions of `Model` and `ModelPool` from their types.

Runs at development time (`make generate`); the YAML is committed in the chart and a test fails when the two differ.
"""

from dataclasses import dataclass
from typing import Any

import yaml

from tandem_api.base import Contract, rule
from tandem_api.model import ModelSpec
from tandem_api.names import GROUP, MAX_NAME_LENGTH, VERSION
from tandem_api.pool import ModelPoolSpec
from tandem_api.scalars import NAME_PATTERN
from tandem_api.schema import schema_of, without_defaults
from tandem_api.status import ModelPoolStatus, ModelStatus


def _column(name: str, path: str, description: str, kind: str = "string", wide: bool = False) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "jsonPath": path, "type": kind, "description": description}
    return {**column, "priority": 1} if wide else column


_READY = _column("Ready", ".status.conditions[?(@.type=='Ready')].status", "whether a request sent now is served")
_REPLICAS = _column("Replicas", ".status.readyReplicas", "pods that take requests", "integer")
_QUEUE = _column("Queue", ".status.queued", "requests that wait for a slot", "integer", wide=True)
_REJECTED = _column("Rejected", ".status.rejected", "requests refused in the last 5 minutes", "integer", wide=True)
_REASON = _column("Reason", ".status.conditions[?(@.type=='Ready')].reason", "why Ready is what it is", wide=True)
_AGE = _column("Age", ".metadata.creationTimestamp", "time since it was created", "date")

MODEL_COLUMNS = (
    _READY,
    _REPLICAS,
    _column("Size", ".status.size", "weights and context of one copy"),
    _column("Processor", ".status.processor", "what computes, as ollama ps prints it"),
    _column("Context", ".status.context", "tokens that each slot really has", "integer"),
    _column("Slots", ".status.slots", "in use / in all"),
    _column("Until", ".status.until", "how long the model stays loaded"),
    _QUEUE,
    _REJECTED,
    _column("Pool", ".spec.pool", "the ModelPool that serves it; empty: it has its own pods", wide=True),
    _REASON,
    _AGE,
)
POOL_COLUMNS = (
    _READY,
    _REPLICAS,
    _column("Device", ".spec.device", "what its pods compute on"),
    _column("Models", ".status.models", "Models that name this pool", "integer"),
    _column("Loaded", ".status.loaded", "of them, how many at least one pod holds", "integer"),
    _column("Memory", ".status.memory", "held by models / in all, of the fullest device"),
    _QUEUE,
    _REJECTED,
    _REASON,
    _AGE,
)


@dataclass(frozen=True, eq=False)
class CustomKind:
    """One custom resource: its types, columns and what `kubectl explain` says of it."""

    name: str
    plural: str
    spec: type[Contract]
    status: type[Contract]
    columns: tuple[dict[str, Any], ...]
    description: str


KINDS = (
    CustomKind(
        "Model",
        "models",
        ModelSpec,
        ModelStatus,
        MODEL_COLUMNS,
        "Model is a named set of weights that Tandem serves over OpenAI- and Ollama-compatible HTTP.",
    ),
    CustomKind(
        "ModelPool",
        "modelpools",
        ModelPoolSpec,
        ModelPoolStatus,
        POOL_COLUMNS,
        "ModelPool is a set of identical pods that serve every Model whose spec.pool is its name.",
    ),
)


def _name_rules(kind: str) -> list[dict[str, str]]:
    return [
        rule(
            f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
            f"a {kind}'s name has at most {MAX_NAME_LENGTH} characters, so that the names of its objects fit",
            "metadata",
        ),
        rule(
            f"self.metadata.name.matches('{NAME_PATTERN}')",
            f"a {kind}'s name has lower-case letters, digits and '-' only, with a letter or digit at both ends",
            "metadata",
        ),
    ]


def crd_of(kind: CustomKind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    schema = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": schema_of(kind.spec),
            "status": without_defaults(schema_of(kind.status)),
        },
        "x-kubernetes-validations": _name_rules(kind.name),
    }
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}, "scale": scale},
        "additionalPrinterColumns": list(kind.columns),
    }
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "categories": ["tandem"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


class _Plain(yaml.SafeDumper):
    """No anchors: a part that occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def crd_yaml(kind: CustomKind) -> str:
    """The CustomResourceDefinition as YAML; equal types give equal text."""
    return yaml.dump(crd_of(kind), Dumper=_Plain, sort_keys=False, width=120)
