"""All that Tandem has made in a namespace, as a value that two runs of the same story have in common.

What differs between two equal runs is replaced by a word: UIDs and all that is derived from them, times, addresses,
versions, and the random part of pods' names.
"""

import base64
import difflib
import json
import re
from typing import Any

from tandem_api.keys import pool_key
from tandem_api.names import MANAGED_BY, MANAGED_BY_LABEL
from tandem_testing.kube import Kube, Obj

_OWNERS = ("apis/tandem.dev/v1alpha1/modelpools", "apis/tandem.dev/v1alpha1/models")
_MADE = (
    "api/v1/configmaps",
    "api/v1/secrets",
    "api/v1/services",
    "api/v1/serviceaccounts",
    "api/v1/pods",
    "apis/apps/v1/deployments",
    "apis/policy/v1/poddisruptionbudgets",
    "apis/networking.k8s.io/v1/networkpolicies",
    "apis/coordination.k8s.io/v1/leases",
)
_VOLATILE = {
    "creationTimestamp", "generation", "observedGeneration", "lastTransitionTime", "lastUpdateTime", "resourceVersion",
    "clusterIP", "clusterIPs", "time", "pod-template-hash", "deployment.kubernetes.io/revision",
}  # fmt: skip
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DIGEST = re.compile(r"\b[0-9a-f]{16}(?:\.\d+)?\b")
_POD = re.compile(r"\b(tandem-[mp]-[a-z0-9-]+?)-[a-z0-9]{5,10}-[a-z0-9]{5}\b")


def _listed(kube: Kube, namespace: str, path: str, selector: str = "") -> list[Obj]:
    head, _, plural = path.rpartition("/")
    found = kube.find(f"/{head}/namespaces/{namespace}/{plural}{selector}")
    return found["items"] if found is not None else []


def made(kube: Kube, namespace: str) -> dict[str, Obj]:
    """Everything that bears Tandem's label in the namespace, by plural and name, as the API server has it."""
    selector = f"?labelSelector={MANAGED_BY_LABEL}%3D{MANAGED_BY}"
    return {
        f"{path.rpartition('/')[2]}/{one['metadata']['name']}": one
        for path in _MADE
        for one in _listed(kube, namespace, path, selector)
    }


def owners(kube: Kube, namespace: str) -> dict[str, Obj]:
    """The Models and ModelPools of the namespace, by plural and name."""
    return {
        f"{path.rpartition('/')[2]}/{one['metadata']['name']}": one
        for path in _OWNERS
        for one in _listed(kube, namespace, path)
    }


def snapshot(kube: Kube, namespace: str, master: str) -> dict[str, list[Any]]:
    """Models, ModelPools and all that was made for them, without what differs from run to run.

    Of a pod, found under the name of its Deployment, labels and image are kept, and of what the operator made all but
    the status, which is others' work: how pods fare is told by the statuses of Models.
    """
    above = owners(kube, namespace)
    keys = {pool_key(master.encode(), one["metadata"]["uid"]): "<pool key>" for one in above.values()}
    below = {place: _bare(obj) for place, obj in made(kube, namespace).items() if not _leaving(obj)}
    found: dict[str, list[Any]] = {}
    for place, obj in {**above, **below}.items():
        found.setdefault(_words(place, namespace, {}), []).append(_plain(obj, namespace, keys))
    return {place: sorted(values, key=json.dumps) for place, values in sorted(found.items())}


def changes(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> str:
    """Where two snapshots differ, line by line; empty when they do not."""
    texts = [json.dumps(one, indent=1, sort_keys=True).splitlines() for one in (before, after)]
    return "\n".join(difflib.unified_diff(*texts, "undisturbed", "this time", lineterm="", n=4))


def _leaving(obj: Obj) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def _bare(obj: Obj) -> Obj:
    containers = obj.get("spec", {}).get("containers")
    if containers is not None:
        return {"labels": obj["metadata"]["labels"], "image": containers[0]["image"]}
    kept = {key: value for key, value in obj.items() if key != "status"}
    if obj.get("type") == "Opaque":
        kept["data"] = {key: base64.b64decode(text).decode() for key, text in obj["data"].items()}
    return kept


def _plain(value: Any, namespace: str, keys: dict[str, str]) -> Any:
    if isinstance(value, dict):
        kept = {
            _words(name, namespace, keys): _plain(one, namespace, keys)
            for name, one in value.items()
            if name not in _VOLATILE
        }
        if "managedFields" in kept:
            ours = [one for one in kept["managedFields"] if str(one.get("manager", "")).startswith("tandem")]
            kept["managedFields"] = sorted(ours, key=json.dumps)
        return kept
    if isinstance(value, list):
        return [_plain(one, namespace, keys) for one in value]
    return _words(value, namespace, keys) if isinstance(value, str) else value


def _words(text: str, namespace: str, keys: dict[str, str]) -> str:
    for key, word in keys.items():
        text = text.replace(key, word)
    text = _UUID.sub("<uid>", text)
    text = _DIGEST.sub("<digest>", text)
    return _POD.sub(r"\1-<pod>", text).replace(namespace, "<namespace>")
