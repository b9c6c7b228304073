"""Which Events a change of status deserves. Pure: compares the status that was written last with the next one.

Since the last status is kept by the API server, a restarted operator does not tell anything twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tandem_api.status import Condition, ConditionStatus, ModelStatus
from tandem_operator.act import Outcome
from tandem_operator.compare import NO_LONGER_WANTED
from tandem_operator.kinds import DEPLOYMENT
from tandem_operator.observe import Observed, PodView

_FAILURES = {
    "Unschedulable", "ImagePullFailed", "ContainerNotCreated", "OutOfMemory", "CrashLooping", "LoadFailed",
    "PodsForbidden", "NameConflict", "Invalid", "Refused",
}  # fmt: skip


@dataclass(frozen=True)
class Happening:
    """One Event to post: `warning` or normal, a CamelCase reason and action, and a sentence."""

    reason: str
    action: str
    note: str
    warning: bool = False


def _find(status: ModelStatus, kind: str) -> Condition | None:
    return next((one for one in status.conditions if one.type == kind), None)


def _reason(status: ModelStatus, kind: str) -> str:
    found = _find(status, kind)
    return found.reason if found is not None else ""


def happenings(observed: Observed, outcome: Outcome, after: ModelStatus) -> list[Happening]:
    """The Events that lead from the status of `observed` to `after`."""
    before = observed.status
    found = [
        Happening("Created", "Create", f"Created Deployment {name} with {_pods(observed)}.")
        for kind, name in outcome.created
        if kind == DEPLOYMENT
    ]
    found += [
        Happening("Changed", "Apply", _changed(observed, name, where))
        for kind, name, where in outcome.changed
        if kind == DEPLOYMENT
    ]
    found += _load(observed, before, after)
    found += _trouble(before, after)
    reduced, was = _find(after, "ContextReduced"), _find(before, "ContextReduced")
    if reduced is not None and (was is None or was.message != reduced.message):
        found.append(Happening("ContextReduced", "Load", reduced.message, warning=True))
    return found


def _pods(observed: Observed) -> str:
    count = 1 if observed.spec is None or observed.spec.replicas is None else observed.spec.replicas
    return "1 pod" if count == 1 else f"{count} pods"


def _changed(observed: Observed, name: str, where: str) -> str:
    if where == "spec.replicas":
        return f"Scaled Deployment {name} to {_pods(observed)}."
    if where.startswith("spec.template") or where == NO_LONGER_WANTED:
        return f"Changed Deployment {name} ({where}); its pods are replaced one by one."
    return f"Changed Deployment {name} ({where})."


def _load(observed: Observed, before: ModelStatus, after: ModelStatus) -> list[Happening]:
    loaded, was = _find(after, "Loaded"), _find(before, "Loaded")
    if loaded is None:
        return []
    if loaded.status == ConditionStatus.TRUE and (was is None or was.status != ConditionStatus.TRUE):
        seconds = _load_seconds(observed.pods, was)
        within = f"Loaded in {seconds:.0f} s after the start of the pod. " if seconds is not None else "Loaded. "
        return [Happening("Loaded", "Load", within + loaded.message)]
    if loaded.reason == "Loading" and (was is None or was.reason != "Loading"):
        return [Happening("Loading", "Load", loaded.message)]
    return []


def _load_seconds(pods: Sequence[PodView], before: Condition | None) -> float | None:
    """From the start of the container to readiness, of the pod that turned ready last.

    None when that was before the model was lost (`before`, the condition Loaded until now): then only a runner was
    started again, and the start of the pod says nothing of this load.
    """
    lost = datetime.fromisoformat(before.last_transition_time) if before and before.last_transition_time else None
    spans: list[tuple[datetime, float]] = []
    for pod in pods:
        statuses = pod.obj.get("status", {}).get("containerStatuses") or [{}]
        started = (statuses[0].get("state", {}).get("running") or {}).get("startedAt")
        turned = pod.condition("Ready").get("lastTransitionTime")
        if pod.ready and started and turned:
            end = datetime.fromisoformat(turned)
            if lost is not None and end < lost:
                continue
            spans.append((end, (end - datetime.fromisoformat(started)).total_seconds()))
    return max(spans)[1] if spans else None


def _trouble(before: ModelStatus, after: ModelStatus) -> list[Happening]:
    """A failure is told once when it begins: by Ready, or by Progressing while other pods serve."""
    told = {_reason(before, "Ready"), _reason(before, "Progressing")}
    for kind in ("Ready", "Progressing"):
        now = _find(after, kind)
        if now is not None and now.status == ConditionStatus.FALSE and now.reason in _FAILURES - told:
            return [Happening(now.reason, "Reconcile", now.message, warning=True)]
    return []
