"""The kinds of objects that the operator reads and writes, and where the API server keeps them.

First on the path of a reconcile: the watcher, the relist and the client all address objects by these entries.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from tandem_api.names import CREDENTIALS_LABEL, GROUP, MANAGED_BY, MANAGED_BY_LABEL, VERSION

Obj = dict[str, Any]
"""One Kubernetes object, as JSON has it."""

MANAGED_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
"""Label selector of everything that the operator makes; the API server filters by it, not the operator."""


@dataclass(frozen=True)
class Kind:
    """A namespaced kind: its group ("" is the core group), version, plural and name."""

    group: str
    version: str
    plural: str
    name: str
    selector: str | None = MANAGED_SELECTOR

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, or of one object, or of its subresource."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/" + "/".join(parts)


MODEL = Kind(GROUP, VERSION, "models", "Model", selector=None)
MODEL_POOL = Kind(GROUP, VERSION, "modelpools", "ModelPool", selector=None)
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SECRET = Kind("", "v1", "secrets", "Secret", selector=CREDENTIALS_LABEL)
"""The operator's own, and those that Models may name: one label with two values, since a watch has one selector."""
SERVICE = Kind("", "v1", "services", "Service")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
POD = Kind("", "v1", "pods", "Pod")
EVENT = Kind("events.k8s.io", "v1", "events", "Event", selector=None)

OWNED = (CONFIG_MAP, SECRET, SERVICE, NETWORK_POLICY, BUDGET, DEPLOYMENT)
"""What a pool owns, in the order of creation: a Deployment's pods need the ConfigMap and the Secrets."""
CUSTOM = (MODEL, MODEL_POOL)
WATCHED = (*CUSTOM, *OWNED, POD)


class Key(NamedTuple):
    """Names one Model or ModelPool; the key of the work queue."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


def namespace_of(obj: Obj) -> str:
    """The namespace of `obj`."""
    return str(obj["metadata"].get("namespace", ""))


def name_of(obj: Obj) -> str:
    """The name of `obj`."""
    return str(obj["metadata"]["name"])


def uid_of(obj: Obj) -> str:
    """The UID that the API server gave `obj`, or "" before it has one."""
    return str(obj["metadata"].get("uid", ""))


def spec_of(obj: Obj) -> Obj:
    """The spec of `obj`; empty when it has none."""
    spec = obj.get("spec")
    return spec if isinstance(spec, dict) else {}


def controller_of(obj: Obj) -> Obj | None:
    """The owner reference of `obj` that is its controller, or None."""
    references: list[Obj] = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)
