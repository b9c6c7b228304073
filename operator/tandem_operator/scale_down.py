"""Which pods Kubernetes should end first when a pool shrinks: the least busy. Pure; asked just before.

The Deployment's controller ends pods with the lowest `pod-deletion-cost` first. The costs are written in that moment
only: written all the time they would be a write a request.
"""

from collections.abc import Iterator

from tandem_operator.kinds import DEPLOYMENT
from tandem_operator.observe import PodView, Pool

COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"


def costs(pool: Pool) -> Iterator[tuple[PodView, dict[str, str]]]:
    """The pods whose cost is to be written, with the annotation; none unless the pool is about to shrink."""
    deployment = pool.owned_object(DEPLOYMENT)
    present = int(deployment["spec"].get("replicas", 1)) if deployment is not None else 0
    if pool.wanted >= present or pool.wanted == 0:
        return
    for pod in pool.pods:
        cost = str(cost_of(pod))
        if not pod.terminating and (pod.obj["metadata"].get("annotations") or {}).get(COST_ANNOTATION, "0") != cost:
            yield pod, {COST_ANNOTATION: cost}


def cost_of(pod: PodView) -> int:
    """Requests that run or wait in the pod."""
    models = pod.seen.report.models if pod.seen.report is not None else []
    return sum(model.busy + model.queued for model in models)
