"""What a ModelPool lays over its pods' template: whether it may, and the merge itself. Pure; a part of `plan`.

The merge follows Kubernetes' strategic merge: maps are merged, lists of named things are merged by name, other lists
are replaced, null removes. Whoever writes a ModelPool may create pods; what goes beyond an ordinary pod of the
namespace (host namespaces, hostPath, privileges, another ServiceAccount) only with the installation's leave.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tandem_api.pool import PodTemplateSpec
from tandem_operator.config import PodTemplateAllows
from tandem_operator.kinds import Obj

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
"""By which field the entries of a list are matched."""
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def faults(template: PodTemplateSpec, allowed: Iterable[str]) -> list[str]:
    """What an overlay sets without leave, as sentences' parts such as `spec.hostNetwork (HostNamespaces)`."""
    granted = set(allowed)
    return [f"{path} ({needs.value})" for needs, path in _asked(template.spec) if needs not in granted]


def _asked(spec: Obj) -> Iterator[tuple[PodTemplateAllows, str]]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield PodTemplateAllows.HOST_NAMESPACES, f"spec.{field}"
    for field in ("serviceAccountName", "serviceAccount", "automountServiceAccountToken"):
        if spec.get(field):
            yield PodTemplateAllows.SERVICE_ACCOUNT, f"spec.{field}"
    for volume in _maps(spec.get("volumes")):
        name = volume.get("name", "?")
        if "hostPath" in volume:
            yield PodTemplateAllows.HOST_PATH, f"spec.volumes[{name}].hostPath"
        for source in _maps(_map(volume.get("projected")).get("sources")):
            if "serviceAccountToken" in source:
                yield PodTemplateAllows.SERVICE_ACCOUNT, f"spec.volumes[{name}].projected.serviceAccountToken"
    yield from _asked_security(_map(spec.get("securityContext")), "spec.securityContext")
    for kind in _CONTAINERS:
        for container in _maps(spec.get(kind)):
            path = f"spec.{kind}[{container.get('name', '?')}]"
            yield from _asked_security(_map(container.get("securityContext")), f"{path}.securityContext")
            if any(port.get("hostPort") for port in _maps(container.get("ports"))):
                yield PodTemplateAllows.HOST_NAMESPACES, f"{path}.ports.hostPort"


def _asked_security(context: Obj, path: str) -> Iterator[tuple[PodTemplateAllows, str]]:
    for field in ("privileged", "allowPrivilegeEscalation"):
        if context.get(field):
            yield PodTemplateAllows.PRIVILEGED, f"{path}.{field}"
    if _map(context.get("capabilities")).get("add"):
        yield PodTemplateAllows.PRIVILEGED, f"{path}.capabilities.add"
    if context.get("procMount") not in (None, "Default"):
        yield PodTemplateAllows.PRIVILEGED, f"{path}.procMount"
    if context.get("sysctls"):
        yield PodTemplateAllows.PRIVILEGED, f"{path}.sysctls"
    if _map(context.get("windowsOptions")).get("hostProcess"):
        yield PodTemplateAllows.PRIVILEGED, f"{path}.windowsOptions.hostProcess"
    for profile in ("seccompProfile", "appArmorProfile"):
        if _map(context.get(profile)).get("type") == "Unconfined":
            yield PodTemplateAllows.PRIVILEGED, f"{path}.{profile}"


def _map(value: object) -> Obj:
    return value if isinstance(value, dict) else {}


def _maps(value: object) -> list[Obj]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def lay_over(template: Obj, overlay: PodTemplateSpec) -> Obj:
    """The pod template with the overlay merged in; labels and annotations of Tandem's own are kept."""
    metadata: Obj = dict(template.get("metadata", {}))
    for part, extra in (("labels", overlay.metadata.labels), ("annotations", overlay.metadata.annotations)):
        if extra:
            metadata[part] = {**extra, **metadata.get(part, {})}
    return {**template, "metadata": metadata, "spec": merge(template["spec"], overlay.spec)}


def merge(base: Obj, patch: Obj) -> Obj:
    """`base` changed as `patch` says; neither is touched."""
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(key, base.get(key), value)
    return result


def _merged(key: str, old: Any, new: Any) -> Any:
    if isinstance(new, dict):
        return merge(old if isinstance(old, dict) else {}, new)
    identity = _KEYS.get(key)
    if identity is None or not isinstance(new, list) or not isinstance(old, list):
        return new
    if not all(isinstance(one, dict) and identity in one for one in [*old, *new]):
        return new
    changed = {one[identity]: one for one in new}
    kept = [merge(one, changed.pop(one[identity], {})) for one in old]
    return kept + [merge({}, one) for one in changed.values()]
