"""Last step of a Model's reconcile: what its status should say. Pure: the time of day is an argument."""

from dataclasses import dataclass
from typing import Any

from tandem_api.report import ModelReport, ModelState
from tandem_api.status import Condition, ModelStatus
from tandem_operator.act import Outcome
from tandem_operator.admit import Hold
from tandem_operator.conditions import (
    FALSE,
    TRUE,
    UNKNOWN,
    PoolFacts,
    condition,
    degraded,
    name_conflict,
    not_serving,
    pool_facts,
    progressing,
    stamped,
)
from tandem_operator.diagnose import diagnose, human_bytes
from tandem_operator.further import alias_conflict, context_reduced, fits
from tandem_operator.observe import Observed, Pool
from tandem_operator.plan import selector_of

_POOL_TROUBLE = {"NameConflict", "Refused", "Invalid", "Unsupported", "OverlayRefused", "PodsForbidden"}
_SERVING = ("Loaded", "NotReported", "Loading", "Unloaded")
"""Reasons of pods that serve; the first that one has is the Model's."""


@dataclass(frozen=True)
class Facts:
    """What a Model's conditions are decided from."""

    name: str
    shared: str
    """Name of the ModelPool; "" for a Model with pods of its own."""
    pool: PoolFacts

    def reports(self) -> list[ModelReport]:
        """What the living pods say of the model."""
        return [entry for pod, _ in self.pool.pods if (entry := pod.model(self.name)) is not None]

    def loaded(self) -> list[ModelReport]:
        """Reports of pods that hold the model."""
        return [entry for entry in self.reports() if entry.state == ModelState.LOADED]

    @property
    def whose(self) -> str:
        """Words for whose pods they are."""
        return f" of ModelPool {self.shared}" if self.shared else ""


def compute(observed: Observed, outcome: Outcome, hold: Hold | None, now: str) -> ModelStatus:
    """The status of a Model; `now` is the time of day (RFC 3339) that flipped conditions bear."""
    facts = _facts(observed, outcome, hold)
    found = [_ready(facts), _loaded(facts), _progressing(facts)]
    further = (
        fits(facts.pool, facts.reports(), facts.name),
        context_reduced(facts.loaded(), bool(facts.shared), _was_reduced(observed)),
        degraded(facts.pool),
        name_conflict(facts.pool),
        alias_conflict(observed),
    )
    found += [one for one in further if one is not None]
    member, pool = observed.member, observed.pool
    selector = selector_of(pool) if pool is not None else {}
    return ModelStatus(
        observed_generation=member.generation,
        conditions=stamped(found, member.status, member.generation, now),
        replicas=len(facts.pool.pods),
        ready_replicas=len(facts.pool.serving),
        selector=",".join(f"{key}={value}" for key, value in sorted(selector.items())) or None,
        **_gauges(facts, member.status),
    )


def _was_reduced(observed: Observed) -> Condition | None:
    """What was told of the context last, where it speaks of the spec as it is now."""
    member = observed.member
    told = next((one for one in member.status.conditions if one.type == "ContextReduced"), None)
    return told if told is not None and told.observed_generation == member.generation else None


def _facts(observed: Observed, outcome: Outcome, hold: Hold | None) -> Facts:
    pool, name = observed.pool, observed.key.name
    if pool is None:
        return Facts(
            name, observed.member.spec.pool or "" if observed.member.spec else "", PoolFacts(0, (), None, hold=hold)
        )
    shared = pool.key.name if pool.shared else ""
    diagnoses = [diagnose(pod, name) for pod in pool.pods if not pod.terminating]
    hold = hold or _trouble_of(pool)
    return Facts(name, shared, pool_facts(pool, outcome, hold, diagnoses))


def _trouble_of(pool: Pool) -> Hold | None:
    """What keeps a shared pool from having pods; the pool's own status tells it in full."""
    ready = next((one for one in pool.status.conditions if one.type == "Ready"), None)
    if not pool.shared or ready is None or ready.status == TRUE or ready.reason not in _POOL_TROUBLE:
        return None
    return Hold("PoolNotReady", f"ModelPool {pool.key.name} has no pods ({ready.reason}): {ready.message}")


def _gauges(facts: Facts, before: ModelStatus) -> dict[str, Any]:
    """Columns and artifact, by the reports; as they were while pods serve of which no report is known."""
    loaded, reports = facts.loaded(), facts.reports()
    if facts.pool.serving and not reports:
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


def _until(loaded: list[ModelReport]) -> str | None:
    if not loaded:
        return None
    if any(entry.busy or entry.queued for entry in loaded):
        return "in use"
    ends = [entry.expires_at for entry in loaded]
    return "Forever" if None in ends else max(end for end in ends if end is not None)


def _ready(facts: Facts) -> Condition:
    serving = facts.pool.serving
    if not serving:
        return not_serving(facts.pool)
    reasons = {diagnosis.reason for _, diagnosis in serving}
    reason = next((one for one in _SERVING if one in reasons), "Loaded")
    message = f"{len(serving)} of {facts.pool.wanted} pods{facts.whose} take requests."
    if reason != "Loaded":
        message += f" {next(one for _, one in serving if one.reason == reason).message}"
    stale = [pod for pod, _ in serving if pod.seen.stale and pod.seen.report is not None]
    if stale:
        message += (
            f" Pod {stale[0].name} does not answer the operator ({stale[0].seen.error}); its last report is shown."
        )
    return condition("Ready", TRUE, "Loaded" if reason == "NotReported" else reason, message)


def _loaded(facts: Facts) -> Condition:
    loaded, wanted = facts.loaded(), facts.pool.wanted
    if loaded:
        contexts = [entry.context_given for entry in loaded if entry.context_given]
        room = f", {loaded[0].slots} slots of {min(contexts)} tokens each" if contexts and loaded[0].slots else ""
        size = human_bytes(max(entry.size_bytes for entry in loaded))
        processor = f" on {loaded[0].processor}" if loaded[0].processor else ""
        message = f"{len(loaded)} of {wanted} pods{facts.whose} hold the model: {size}{processor}{room}."
        return condition("Loaded", TRUE, "Loaded", message)
    if not facts.pool.pods:
        return condition("Loaded", FALSE, "NoPods", "There is no pod that could hold the model.")
    if facts.pool.hold is not None:
        return condition("Loaded", FALSE, facts.pool.hold.reason, f"0 of {wanted} pods{facts.whose} hold the model.")
    told = facts.pool.worst or facts.pool.pods[0][1]
    if told.reason == "NotReported":
        return condition("Loaded", UNKNOWN, told.reason, told.message)
    # Ready tells what is the matter; only a load's own words stand here too.
    words = f" {told.message}" if told.reason in ("Loading", "Unloaded") else ""
    return condition("Loaded", FALSE, told.reason, f"0 of {wanted} pods{facts.whose} hold the model.{words}")


def _progressing(facts: Facts) -> Condition:
    """Of a shared pool's rollout the pool itself tells; of a Model in it, whether the pods know it."""
    pool = facts.pool
    if not facts.shared or pool.hindrance is not None or pool.worst is not None or not pool.pods:
        return progressing(pool)
    message = f"{len(pool.serving)} of {len(pool.pods)} pods{facts.whose} serve the Model as it is written."
    return condition("Progressing", FALSE, "Complete", message)
