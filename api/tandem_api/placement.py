"""In which pods of a shared pool a model belongs: an order of pods that everybody computes alike, without asking.

The operator preloads a Model's least number of copies by it; gateways that choose pods for cold models by the same
order meet them there. Rendezvous hashing: a pod that comes or goes moves only the models that are its own.
"""

import hashlib
from collections.abc import Iterable, Mapping


def order(model_uid: str, pod_uids: Iterable[str]) -> list[str]:
    """The pods, best first for this model; any two callers with the same pods agree."""

    def weight(pod_uid: str) -> bytes:
        return hashlib.sha256(f"{model_uid}/{pod_uid}".encode()).digest()

    return sorted(pod_uids, key=weight, reverse=True)


def preloads(copies: Mapping[tuple[str, str], int], pods: Mapping[str, str]) -> dict[str, list[str]]:
    """Which pod loads which models before anybody asks for them.

    Args:
        copies: by (name, UID) of a model, in how many pods it is to be loaded at least.
        pods: UID of each pod by its name.

    Returns:
        names of models by name of pod; pods without any are left out.
    """
    names = {uid: name for name, uid in pods.items()}
    found: dict[str, list[str]] = {}
    for (model, uid), count in sorted(copies.items()):
        for pod_uid in order(uid, names)[:count]:
            found.setdefault(names[pod_uid], []).append(model)
    return dict(sorted(found.items()))
