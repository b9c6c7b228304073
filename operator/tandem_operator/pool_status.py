"""Last step of a ModelPool's reconcile: what its status should say. Pure: the time of day is an argument."""

from collections.abc import Mapping

from tandem_api.report import DeviceReport, ModelState, Report
from tandem_api.status import MOST_PODS, Condition, DeviceStatus, ModelPoolStatus, PodStatus
from tandem_operator.act import Outcome
from tandem_operator.admit import Hold
from tandem_operator.conditions import (
    TRUE,
    PoolFacts,
    condition,
    degraded,
    name_conflict,
    not_serving,
    pool_facts,
    progressing,
    stamped,
)
from tandem_operator.diagnose import diagnose_pod, human_bytes
from tandem_operator.kinds import Key
from tandem_operator.observe import Pool
from tandem_operator.plan import selector_of

_NAMED = 5


def compute_pool(
    pool: Pool, outcome: Outcome, hold: Hold | None, held: Mapping[Key, Hold], now: str
) -> ModelPoolStatus:
    """The status of a ModelPool; `held` are its Models that are not carried out."""
    diagnoses = [diagnose_pod(pod) for pod in pool.pods if not pod.terminating]
    facts = pool_facts(pool, outcome, hold, diagnoses)
    found = [_ready(facts), progressing(facts)]
    further = (degraded(facts), name_conflict(facts), _models_held(pool, held))
    found += [one for one in further if one is not None]
    reports = [pod.seen.report for pod, _ in facts.pods if pod.seen.report is not None]
    entries = [entry for report in reports for entry in report.models]
    loaded = {entry.name for entry in entries if entry.state == ModelState.LOADED}
    selector = selector_of(pool)
    return ModelPoolStatus(
        observed_generation=pool.generation,
        conditions=stamped(found, pool.status, pool.generation, now),
        replicas=len(facts.pods),
        ready_replicas=len(facts.serving),
        selector=",".join(f"{key}={value}" for key, value in sorted(selector.items())),
        queued=sum(entry.queued for entry in entries) if reports else None,
        rejected=sum(entry.rejected for entry in entries) if reports else None,
        models=len(pool.members),
        loaded=len(loaded) if reports else None,
        pods=[_pod(pod.name, pod.seen.report) for pod, _ in facts.pods if pod.seen.report is not None][:MOST_PODS],
        memory=_memory([device for report in reports for device in report.devices]),
    )


def _ready(facts: PoolFacts) -> Condition:
    if not facts.serving:
        return not_serving(facts)
    return condition("Ready", TRUE, "Serving", f"{len(facts.serving)} of {facts.wanted} pods take requests.")


def _memory(devices: list[DeviceReport]) -> str | None:
    """Of the fullest device, what models hold and what there is."""
    known = [device for device in devices if device.total_bytes > 0]
    if not known:
        return None
    fullest = max(known, key=lambda device: device.reserved_bytes / device.total_bytes)
    return f"{human_bytes(fullest.reserved_bytes)} / {human_bytes(fullest.total_bytes)}"


def _pod(name: str, report: Report) -> PodStatus:
    """What one pod holds, where."""
    several = len(report.devices) > 1
    loaded = sorted(entry.name if not several else f"{entry.name} ({entry.device})" for entry in report.models
                    if entry.state is ModelState.LOADED)  # fmt: skip
    devices = [
        DeviceStatus(
            name=device.name,
            total=human_bytes(device.total_bytes),
            reserved=human_bytes(device.reserved_bytes),
            free=human_bytes(max(0, device.total_bytes - device.reserved_bytes)),
        )
        for device in report.devices
    ]
    return PodStatus(name=name, devices=devices, models=loaded)


def _models_held(pool: Pool, held: Mapping[Key, Hold]) -> Condition | None:
    if not held:
        return None
    named = [f"{key.name} ({hold.reason})" for key, hold in sorted(held.items())]
    told = ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
    verb = "is" if len(held) == 1 else "are"
    message = f"{len(held)} of {len(pool.members)} Models {verb} not carried out: {told}. Their own conditions say why."
    return condition("ModelsHeld", TRUE, "ModelsHeld", message)
