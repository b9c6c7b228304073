"""Last step of a reconcile: what the Model's status should say. Pure: no I/O, and the time of day is an argument.

Nothing here is derived from the clock but `lastTransitionTime`, and that only when a condition's status flips, so equal
observations give equal statuses and nothing is written.
"""

from dataclasses import dataclass
from typing import Any

from tandem_api.report import ModelReport, ModelState
from tandem_api.status import Condition, ConditionStatus, ModelStatus
from tandem_operator.act import Outcome
from tandem_operator.diagnose import Diagnosis, diagnose, human_bytes, sentence
from tandem_operator.kinds import DEPLOYMENT, Obj
from tandem_operator.observe import Observed, PodView
from tandem_operator.plan import selector_of

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
GAUGES = {"slots", "queued", "rejected", "until"}
"""Fields that change with every request; written at most once in 10 s, as are the words of conditions."""


@dataclass(frozen=True)
class Facts:
    """What the conditions are decided from."""

    name: str
    wanted: int
    pods: tuple[tuple[PodView, Diagnosis], ...]
    deployment: Obj | None
    conflicts: tuple[str, ...]
    refused: str
    invalid: str

    @property
    def serving(self) -> list[tuple[PodView, Diagnosis]]:
        """Pods that take requests."""
        return [one for one in self.pods if one[1].serving]

    @property
    def worst(self) -> Diagnosis | None:
        """Of the pods that do not serve the one to tell of: a stuck one first."""
        others = [diagnosis for _, diagnosis in self.pods if not diagnosis.serving]
        return next((one for one in others if one.stuck), others[0] if others else None)

    def reports(self) -> list[ModelReport]:
        """What the living pods say of the model."""
        return [entry for pod, _ in self.pods if (entry := pod.model(self.name)) is not None]

    def loaded(self) -> list[ModelReport]:
        """Reports of pods that hold the model."""
        return [entry for entry in self.reports() if entry.state == ModelState.LOADED]


def compute(observed: Observed, outcome: Outcome, now: str) -> ModelStatus:
    """The status of a Model; `now` is the time of day (RFC 3339) that flipped conditions bear."""
    facts = _facts(observed, outcome)
    conditions = [_ready(facts), _loaded(facts), _progressing(facts)]
    conditions += [one for one in (_context_reduced(facts), _name_conflict(facts)) if one is not None]
    before = {condition.type: condition for condition in observed.status.conditions}
    selector = selector_of(observed.key, observed.uid)
    return ModelStatus(
        observed_generation=observed.generation,
        conditions=[_stamped(one, before.get(one.type), observed.generation, now) for one in conditions],
        replicas=len(facts.pods),
        ready_replicas=len(facts.serving),
        selector=",".join(f"{key}={value}" for key, value in sorted(selector.items())),
        **_gauges(facts, observed.status),
    )


def _gauges(facts: Facts, before: ModelStatus) -> dict[str, Any]:
    """Columns and artifact, by the reports; as they were while pods serve of which no report is known."""
    loaded, reports = facts.loaded(), facts.reports()
    if facts.serving and not reports:
        kept = ("size", "processor", "context", "slots", "until", "queued", "rejected", "artifact")
        return {name: getattr(before, name) for name in kept}
    contexts = [entry.context_given for entry in loaded if entry.context_given]
    return {
        "size": human_bytes(max(entry.size_bytes for entry in loaded)) if loaded else None,
        "processor": loaded[0].processor or None if loaded else None,
        "context": min(contexts) if contexts else None,
        "slots": f"{sum(one.busy for one in loaded)}/{sum(one.slots for one in loaded)}" if loaded else None,
        "until": _until(loaded),
        "queued": sum(entry.queued for entry in reports) if reports else None,
        "rejected": sum(entry.rejected for entry in reports) if reports else None,
        # Only pods know the weights; what they found outlives them.
        "artifact": next((entry.artifact for entry in [*loaded, *reports] if entry.artifact), before.artifact),
    }


def _facts(observed: Observed, outcome: Outcome) -> Facts:
    pods = tuple((pod, diagnose(pod, observed.key.name)) for pod in observed.pods if not pod.terminating)
    deployment = observed.owned_object(DEPLOYMENT)
    if observed.spec is not None:
        wanted = 1 if observed.spec.replicas is None else observed.spec.replicas
    else:
        wanted = int(deployment["spec"].get("replicas", 1)) if deployment else 0
    return Facts(
        observed.key.name, wanted, pods, deployment, tuple(outcome.conflicts), outcome.refused, observed.invalid
    )


def _until(loaded: list[ModelReport]) -> str | None:
    if not loaded:
        return None
    if any(entry.busy or entry.queued for entry in loaded):
        return "in use"
    ends = [entry.expires_at for entry in loaded]
    return "Forever" if None in ends else max(end for end in ends if end is not None)


def _condition(kind: str, status: ConditionStatus, reason: str, message: str) -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message)


def _stamped(condition: Condition, before: Condition | None, generation: int, now: str) -> Condition:
    kept = before is not None and before.status == condition.status and before.last_transition_time
    time = before.last_transition_time if before is not None and kept else now
    return condition.model_copy(update={"last_transition_time": time, "observed_generation": generation})


def _pods_forbidden(facts: Facts) -> str | None:
    conditions = (facts.deployment or {}).get("status", {}).get("conditions") or []
    failure = next((one for one in conditions if one["type"] == "ReplicaFailure" and one["status"] == "True"), None)
    return (
        None
        if failure is None
        else f"The cluster refuses to create the pods: {sentence(str(failure.get('message', '')))}"
    )


def _ready(facts: Facts) -> Condition:
    serving = facts.serving
    if facts.invalid:
        return _condition("Ready", FALSE, "Invalid", f"The Model cannot be served as written: {facts.invalid}")
    if serving:
        reasons = {diagnosis.reason for _, diagnosis in serving}
        reason = next((one for one in ("Loaded", "NotReported", "Loading", "Unloaded") if one in reasons), "Loaded")
        message = f"{len(serving)} of {facts.wanted} pods take requests."
        if reason != "Loaded":
            message += f" {next(one for _, one in serving if one.reason == reason).message}"
        stale = [pod for pod, _ in serving if pod.seen.stale and pod.seen.report is not None]
        if stale:
            message += (
                f" Pod {stale[0].name} does not answer the operator ({stale[0].seen.error}); its last report is shown."
            )
        return _condition("Ready", TRUE, "Loaded" if reason == "NotReported" else reason, message)
    if facts.conflicts:
        return _condition("Ready", FALSE, "NameConflict", _conflict_message(facts))
    if facts.refused:
        return _condition("Ready", FALSE, "Refused", _refusal_message(facts))
    if facts.worst is not None:
        return _condition("Ready", FALSE, facts.worst.reason, facts.worst.message)
    if facts.wanted == 0:
        message = "No pods are asked for, so requests are refused; set spec.replicas to 1 or more."
        return _condition("Ready", FALSE, "ScaledToZero", message)
    forbidden = _pods_forbidden(facts)
    if forbidden is not None:
        return _condition("Ready", FALSE, "PodsForbidden", forbidden)
    return _condition(
        "Ready", UNKNOWN, "NotObserved", "The Deployment has been asked for; no pod of it has been seen yet."
    )


def _loaded(facts: Facts) -> Condition:
    loaded = facts.loaded()
    if loaded:
        contexts = [entry.context_given for entry in loaded if entry.context_given]
        room = f", {loaded[0].slots} slots of {min(contexts)} tokens each" if contexts and loaded[0].slots else ""
        size = human_bytes(max(entry.size_bytes for entry in loaded))
        processor = f" on {loaded[0].processor}" if loaded[0].processor else ""
        message = f"{len(loaded)} of {facts.wanted} pods hold the model: {size}{processor}{room}."
        return _condition("Loaded", TRUE, "Loaded", message)
    if not facts.pods:
        return _condition("Loaded", FALSE, "NoPods", "There is no pod that could hold the model.")
    told = facts.worst or facts.pods[0][1]
    if told.reason == "NotReported":
        return _condition("Loaded", UNKNOWN, told.reason, told.message)
    # Ready tells what is the matter; only a load's own words stand here too.
    words = f" {told.message}" if told.reason in ("Loading", "LoadFailed") else ""
    return _condition("Loaded", FALSE, told.reason, f"0 of {facts.wanted} pods hold the model.{words}")


def _progressing(facts: Facts) -> Condition:
    ready, wanted = len(facts.serving), facts.wanted
    if facts.invalid:
        return _condition("Progressing", FALSE, "Invalid", "Nothing is changed until the Model is valid again.")
    if facts.conflicts:
        return _condition("Progressing", FALSE, "NameConflict", _conflict_message(facts))
    if facts.refused:
        return _condition("Progressing", FALSE, "Refused", _refusal_message(facts))
    forbidden = _pods_forbidden(facts)
    if forbidden is not None:
        return _condition("Progressing", FALSE, "PodsForbidden", forbidden)
    if _rolled_out(facts):
        return _condition("Progressing", FALSE, "Complete", f"{ready} of {wanted} pods run as the Model says.")
    worst = facts.worst
    if worst is None:
        message = f"{ready} of {wanted} pods are ready; the others are being made or replaced."
        return _condition("Progressing", TRUE, "RollingOut", message)
    message = f"{ready} of {wanted} pods are ready. {worst.message}"
    return _condition("Progressing", FALSE if worst.stuck else TRUE, worst.reason, message)


def _rolled_out(facts: Facts) -> bool:
    """Whether all pods that are wanted are of the newest template and serve, and no others exist."""
    if facts.deployment is None or len(facts.pods) != facts.wanted or len(facts.serving) != facts.wanted:
        return False
    status, generation = facts.deployment.get("status", {}), facts.deployment["metadata"].get("generation", 0)
    observed = int(status.get("observedGeneration", 0)) >= int(generation)
    updated, total = int(status.get("updatedReplicas", 0)), int(status.get("replicas", 0))
    return observed and updated == total == facts.wanted


def _context_reduced(facts: Facts) -> Condition | None:
    for entry in facts.loaded():
        limit = entry.artifact.context_limit if entry.artifact else 0
        asked = entry.context_asked or limit
        if not entry.context_given or entry.context_given >= asked:
            continue
        gives = f"Each slot has {entry.context_given} tokens of context instead of {asked}"
        if entry.context_given == limit:
            message = f"{gives}: the model was made for no more than {limit}."
            return _condition("ContextReduced", TRUE, "ModelLimit", message)
        why = entry.context_reason or f"{entry.slots} slots of {asked} tokens do not fit in memory"
        message = f"{gives}, since {why}. Give the pod more memory, or lower spec.slots or spec.context.length."
        return _condition("ContextReduced", TRUE, "MemoryShort", message)
    return None


def _refusal_message(facts: Facts) -> str:
    return f"The API server refuses an object that the Model needs: {sentence(facts.refused)} It is tried again."


def _conflict_message(facts: Facts) -> str:
    told = "; ".join(facts.conflicts)
    return f"Objects that the Model needs are not its own and are left untouched: {told}. Delete or rename them."


def _name_conflict(facts: Facts) -> Condition | None:
    return _condition("NameConflict", TRUE, "NameTaken", _conflict_message(facts)) if facts.conflicts else None


def fields_of(status: ModelStatus) -> Obj:
    """The status as the API server gets it."""
    return status.model_dump(by_alias=True, exclude_none=True, mode="json")


def urgent(before: ModelStatus, after: ModelStatus) -> bool:
    """Whether a change must be written at once: anything but gauges and the wording of conditions."""
    return _weighty(before) != _weighty(after)


def _weighty(status: ModelStatus) -> Obj:
    fields = {key: value for key, value in fields_of(status).items() if key not in GAUGES}
    fields["conditions"] = [
        {key: value for key, value in one.items() if key != "message"} for one in fields["conditions"]
    ]
    return fields
