"""What the conditions of Models and of ModelPools have in common. Pure; a part of `status` and `pool_status`.

Nothing here is derived from the clock but `lastTransitionTime`, and that only when a condition's status flips, so equal
observations give equal statuses and nothing is written.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tandem_api.status import CommonStatus, Condition, ConditionStatus
from tandem_operator.act import Outcome
from tandem_operator.admit import Hold
from tandem_operator.diagnose import Diagnosis, sentence
from tandem_operator.kinds import DEPLOYMENT, Obj
from tandem_operator.observe import PodView, Pool

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
GAUGES = {"slots", "queued", "rejected", "until", "memory", "pods"}
"""Fields that change with every request; written at most once in 10 s, as are the words of conditions."""


def condition(kind: str, status: ConditionStatus, reason: str, message: str) -> Condition:
    """A condition without its time."""
    return Condition(type=kind, status=status, reason=reason, message=message)


def stamped(found: Iterable[Condition], before: CommonStatus, generation: int, now: str) -> list[Condition]:
    """The conditions with their times: of `now` where the status is another than `before`."""
    earlier = {one.type: one for one in before.conditions}
    result = []
    for one in found:
        was = earlier.get(one.type)
        kept = was is not None and was.status == one.status and was.last_transition_time
        time = was.last_transition_time if was is not None and kept else now
        result.append(one.model_copy(update={"last_transition_time": time, "observed_generation": generation}))
    return result


def fields_of(status: CommonStatus) -> Obj:
    """The status as the API server gets it."""
    return status.model_dump(by_alias=True, exclude_none=True, mode="json")


def urgent(before: CommonStatus, after: CommonStatus) -> bool:
    """Whether a change must be written at once: anything but gauges and the wording of conditions."""
    return _weighty(before) != _weighty(after)


def _weighty(status: CommonStatus) -> Obj:
    fields = {key: value for key, value in fields_of(status).items() if key not in GAUGES}
    fields["conditions"] = [
        {key: value for key, value in one.items() if key != "message"} for one in fields["conditions"]
    ]
    return fields


@dataclass(frozen=True)
class PoolFacts:
    """What the conditions are decided from: of a pool's pods, and of what was tried for it."""

    wanted: int
    pods: tuple[tuple[PodView, Diagnosis], ...]
    deployment: Obj | None
    conflicts: tuple[str, ...] = ()
    refused: str = ""
    hold: Hold | None = None

    @property
    def serving(self) -> list[tuple[PodView, Diagnosis]]:
        """Pods that take requests."""
        return [one for one in self.pods if one[1].serving]

    @property
    def worst(self) -> Diagnosis | None:
        """Of the pods that do not serve the one to tell of: a stuck one first."""
        others = [diagnosis for _, diagnosis in self.pods if not diagnosis.serving]
        return next((one for one in others if one.stuck), others[0] if others else None)

    @property
    def hindrance(self) -> Hold | None:
        """Why what is asked for is not carried out, if it is not."""
        if self.hold is not None:
            return self.hold
        if self.conflicts:
            told = "; ".join(self.conflicts)
            return Hold(
                "NameConflict",
                f"Objects that are needed are not its own and are left untouched: {told}. Delete or rename them.",
            )
        if self.refused:
            return Hold(
                "Refused", f"The API server refuses a needed object: {sentence(self.refused)} It is tried again."
            )
        return self._forbidden()

    def _forbidden(self) -> Hold | None:
        conditions = (self.deployment or {}).get("status", {}).get("conditions") or []
        failure = next((one for one in conditions if one["type"] == "ReplicaFailure" and one["status"] == "True"), None)
        if failure is None:
            return None
        told = sentence(str(failure.get("message", "")))
        return Hold("PodsForbidden", f"The cluster refuses to create the pods: {told}")

    @property
    def rolled_out(self) -> bool:
        """Whether all pods that are wanted are of the newest template and serve, and no others exist."""
        if self.deployment is None or len(self.pods) != self.wanted or len(self.serving) != self.wanted:
            return False
        status, generation = self.deployment.get("status", {}), self.deployment["metadata"].get("generation", 0)
        observed = int(status.get("observedGeneration", 0)) >= int(generation)
        updated, total = int(status.get("updatedReplicas", 0)), int(status.get("replicas", 0))
        return observed and updated == total == self.wanted


def pool_facts(pool: Pool, outcome: Outcome, hold: Hold | None, diagnoses: Iterable[Diagnosis]) -> PoolFacts:
    """The facts of a pool whose living pods have these diagnoses."""
    living = [pod for pod in pool.pods if not pod.terminating]
    deployment = pool.owned_object(DEPLOYMENT)
    wanted = pool.wanted
    if pool.spec is None:
        wanted = int(deployment["spec"].get("replicas", 1)) if deployment else 0
    pods = tuple(zip(living, diagnoses, strict=True))
    return PoolFacts(wanted, pods, deployment, tuple(outcome.conflicts), outcome.refused, hold)


def without_hindrance(facts: PoolFacts) -> PoolFacts:
    """The facts as one of many Models of a shared pool has them: what hinders the pool is told by the pool."""
    return replace(facts, conflicts=(), refused="")


def not_serving(facts: PoolFacts) -> Condition:
    """Ready of a pool, or of a Model, of whose pods none takes requests."""
    hindrance = facts.hindrance
    if hindrance is not None and (facts.worst is None or hindrance.reason != "PodsForbidden"):
        return condition("Ready", FALSE, hindrance.reason, hindrance.message)
    if facts.worst is not None:
        return condition("Ready", FALSE, facts.worst.reason, facts.worst.message)
    if facts.wanted == 0:
        message = "No pods are asked for, so requests are refused; set spec.replicas to 1 or more."
        return condition("Ready", FALSE, "ScaledToZero", message)
    message = "The Deployment has been asked for; no pod of it has been seen yet."
    return condition("Ready", UNKNOWN, "NotObserved", message)


def progressing(facts: PoolFacts) -> Condition:
    """Whether the pods are on their way to what is asked for, and how far."""
    ready, wanted, hindrance = len(facts.serving), facts.wanted, facts.hindrance
    if hindrance is not None:
        return condition("Progressing", FALSE, hindrance.reason, f"Nothing is changed. {hindrance.message}")
    if facts.rolled_out:
        return condition("Progressing", FALSE, "Complete", f"{ready} of {wanted} pods run as asked for.")
    worst = facts.worst
    if worst is None:
        message = f"{ready} of {wanted} pods are ready; the others are being made or replaced."
        return condition("Progressing", TRUE, "RollingOut", message)
    message = f"{ready} of {wanted} pods are ready. {worst.message}"
    return condition("Progressing", FALSE if worst.stuck else TRUE, worst.reason, message)


def degraded(facts: PoolFacts) -> Condition | None:
    """Requests are served, but not as asked for: a change is held, or pods are stuck."""
    if not facts.serving:
        return None
    hindrance, worst = facts.hindrance, facts.worst
    if hindrance is not None:
        message = f"The pods serve as they did before the last change, which is not carried out. {hindrance.message}"
        return condition("Degraded", TRUE, hindrance.reason, message)
    if worst is not None and worst.stuck:
        message = f"{len(facts.serving)} of {facts.wanted} pods take requests. {worst.message}"
        return condition("Degraded", TRUE, worst.reason, message)
    return None


def name_conflict(facts: PoolFacts) -> Condition | None:
    """Told apart from Ready, for pods may serve all the same."""
    if not facts.conflicts or facts.hindrance is None:
        return None
    return condition("NameConflict", TRUE, "NameTaken", facts.hindrance.message)
