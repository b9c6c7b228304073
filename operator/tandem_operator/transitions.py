"""Which Events a change of status deserves. Pure: compares the status that was written last with the next one.

Since the last status is kept by the API server, a restarted operator does not tell anything twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tandem_api.status import CommonStatus, Condition, ConditionStatus
from tandem_operator.act import Outcome
from tandem_operator.compare import NO_LONGER_WANTED
from tandem_operator.diagnose import UNLOADED_WORDS
from tandem_operator.kinds import DEPLOYMENT
from tandem_operator.observe import PodView

_FAILURES = {
    "Unschedulable", "ImagePullFailed", "ContainerNotCreated", "OutOfMemory", "CrashLooping", "LoadFailed",
    "PodsForbidden", "NameConflict", "Invalid", "Refused", "DoesNotFit", "Unsupported", "OverlayRefused",
    "PoolNotFound", "PoolNotReady", "VolumeNotInPool", "FileRootNotInPool", "SecretNotFound",
}  # fmt: skip


@dataclass(frozen=True)
class Happening:
    """One Event to post: `warning` or normal, a CamelCase reason and action, and a sentence."""

    reason: str
    action: str
    note: str
    warning: bool = False


def _find(status: CommonStatus, kind: str) -> Condition | None:
    return next((one for one in status.conditions if one.type == kind), None)


def _reason(status: CommonStatus, kind: str) -> str:
    found = _find(status, kind)
    return found.reason if found is not None else ""


def happenings(
    before: CommonStatus, after: CommonStatus, outcome: Outcome, wanted: int, pods: Sequence[PodView]
) -> list[Happening]:
    """The Events that lead from one status to the next.

    `wanted` pods are asked for; `pods` are those whose start was the start of the load.
    """
    found = [
        Happening("Created", "Create", f"Created Deployment {name} with {_count(wanted)}.")
        for kind, name in outcome.created
        if kind == DEPLOYMENT
    ]
    found += [
        Happening("Changed", "Apply", _changed(wanted, name, where))
        for kind, name, where in outcome.changed
        if kind == DEPLOYMENT
    ]
    found += [
        Happening("Removed", "Delete", f"Deleted Deployment {name}; its pods finish their requests and end.")
        for kind, name in outcome.deleted
        if kind == DEPLOYMENT
    ]
    found += _load(pods, before, after)
    found += _trouble(before, after)
    for kind in ("ContextReduced", "AliasConflict"):
        told, was = _find(after, kind), _find(before, kind)
        if told is not None and (was is None or was.message != told.message):
            found.append(
                Happening(kind, "Load" if kind == "ContextReduced" else "Reconcile", told.message, warning=True)
            )
    if _find(before, "ContextReduced") is not None and _find(after, "ContextReduced") is None:
        found += _restored(before, after)
    return found


def _restored(before: CommonStatus, after: CommonStatus) -> list[Happening]:
    """A model that had been shrunk was loaded with more context."""
    was, now = getattr(before, "context", None), getattr(after, "context", None)
    if now is None or (was is not None and now <= was):
        return []
    return [Happening("ContextRestored", "Load", f"Each slot has {now} tokens of context, as was asked for.")]


def _count(pods: int) -> str:
    return "1 pod" if pods == 1 else f"{pods} pods"


def _changed(wanted: int, name: str, where: str) -> str:
    if where == "spec.replicas":
        return f"Scaled Deployment {name} to {_count(wanted)}."
    if where.startswith("spec.template") or where == NO_LONGER_WANTED:
        return f"Changed Deployment {name} ({where}); its pods are replaced one by one."
    return f"Changed Deployment {name} ({where})."


def _load(pods: Sequence[PodView], before: CommonStatus, after: CommonStatus) -> list[Happening]:
    loaded, was = _find(after, "Loaded"), _find(before, "Loaded")
    if loaded is None:
        return []
    # A report that was late says nothing new; the artifact tells that the model had been loaded before.
    late = was is not None and was.reason == "NotReported" and getattr(before, "artifact", None) is not None
    if loaded.status == ConditionStatus.TRUE and not late and (was is None or was.status != ConditionStatus.TRUE):
        seconds = _load_seconds(pods, was)
        within = f"Loaded in {seconds:.0f} s after the start of the pod. " if seconds is not None else "Loaded. "
        return [Happening("Loaded", "Load", within + loaded.message)]
    if loaded.reason == "Unloaded" and was is not None:
        # Loaded and unloaded between two reports: only the words tell.
        unseen = UNLOADED_WORDS in loaded.message and was.message != loaded.message
        if was.status == ConditionStatus.TRUE or unseen:
            return [Happening("Unloaded", "Unload", loaded.message)]
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


def _trouble(before: CommonStatus, after: CommonStatus) -> list[Happening]:
    """A failure is told once when it begins: by Ready, or by Progressing while other pods serve."""
    told = {_reason(before, "Ready"), _reason(before, "Progressing")}
    for kind in ("Ready", "Progressing"):
        now = _find(after, kind)
        if now is not None and now.status == ConditionStatus.FALSE and now.reason in _FAILURES - told:
            return [Happening(now.reason, "Reconcile", now.message, warning=True)]
    return []
