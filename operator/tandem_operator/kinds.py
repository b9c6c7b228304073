"""The kinds of objects that the operator reads and writes, and where the API server keeps them.

First on the path of a reconcile: the watcher, the relist and the client all address objects by these entries.
"""

from dataclasses import dataclass
from typing import Any

from tandem_api.names import GROUP, MANAGED_BY, MANAGED_BY_LABEL, VERSION

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
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SECRET = Kind("", "v1", "secrets", "Secret")
SERVICE = Kind("", "v1", "services", "Service")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
POD = Kind("", "v1", "pods", "Pod")
EVENT = Kind("events.k8s.io", "v1", "events", "Event", selector=None)

OWNED = (CONFIG_MAP, SECRET, SERVICE, DEPLOYMENT)
"""What a Model owns, in the order of creation: a Deployment's pods need the ConfigMap and the Secret."""
WATCHED = (MODEL, *OWNED, POD)


def namespace_of(obj: Obj) -> str:
    """The namespace of `obj`."""
    return str(obj["metadata"].get("namespace", ""))


def name_of(obj: Obj) -> str:
    """The name of `obj`."""
    return str(obj["metadata"]["name"])


def uid_of(obj: Obj) -> str:
    """The UID that the API server gave `obj`, or "" before it has one."""
    return str(obj["metadata"].get("uid", ""))


def controller_of(obj: Obj) -> Obj | None:
    """The owner reference of `obj` that is its controller, or None."""
    references: list[Obj] = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)
