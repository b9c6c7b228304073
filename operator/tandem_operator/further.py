"""Conditions of a Model beside Ready, Loaded and Progressing: memory, context, aliases. Pure; a part of `status`."""

from collections.abc import Iterable

from tandem_api.report import DeviceReport, ModelReport, ModelState
from tandem_api.status import Condition
from tandem_operator.conditions import FALSE, TRUE, PoolFacts, condition
from tandem_operator.diagnose import human_bytes, sentence
from tandem_operator.observe import Observed


def fits(pool: PoolFacts, reports: Iterable[ModelReport], name: str) -> Condition | None:
    """Whether one copy fits its device, with the numbers; None while no pod has tried."""
    tried = list(reports)
    failed = next((one for one in tried if one.state == ModelState.FAILED and one.error_reason == "DoesNotFit"), None)
    if failed is not None:
        told = sentence(failed.last_error or "memory is short")
        return condition("Fits", FALSE, "DoesNotFit", f"{told[:1].upper()}{told[1:]}")
    for pod, _ in pool.pods:
        entry = pod.model(name)
        if entry is None or entry.state != ModelState.LOADED:
            continue
        devices = pod.seen.report.devices if pod.seen.report is not None else []
        room = f" of the {_room(devices[0])}" if devices else ""
        return condition("Fits", TRUE, "Loaded", f"One copy takes {human_bytes(entry.size_bytes)}{room}.")
    return None


def _room(device: DeviceReport) -> str:
    whose = "of memory that the pod has" if device.kind == "CPU" else f"of {device.name}"
    return f"{human_bytes(device.total_bytes)} {whose}"


def context_reduced(loaded: Iterable[ModelReport], shared: bool, before: Condition | None) -> Condition | None:
    """Told when slots have less context than was asked for; None when they have it all.

    While no pod holds the model, what its last load gave stands (`before`): the next one says whether that has changed.
    """
    entries = list(loaded)
    if not entries:
        return before
    for entry in entries:
        limit = entry.artifact.context_limit if entry.artifact else 0
        asked = entry.context_asked or limit
        if not entry.context_given or entry.context_given >= asked:
            continue
        gives = f"Each slot has {entry.context_given} tokens of context instead of {asked}"
        if entry.context_given == limit:
            message = f"{gives}: the model was made for no more than {limit}."
            return condition("ContextReduced", TRUE, "ModelLimit", message)
        why = entry.context_reason or f"{entry.slots} slots of {asked} tokens do not fit in memory"
        whose = "the pool's pods" if shared else "the pod"
        message = f"{gives}, since {why}. Give {whose} more memory, or lower spec.slots or spec.context.length."
        return condition("ContextReduced", TRUE, "MemoryShort", message)
    return None


def alias_conflict(observed: Observed) -> Condition | None:
    """Told when requests by one of the Model's aliases go to another Model."""
    spec = observed.member.spec
    taken = [told for alias in (spec.aliases if spec is not None else ()) if (told := _taken(observed, alias))]
    if not taken:
        return None
    message = f"Requests do not reach the Model by every alias: {'; '.join(taken)}. Choose other aliases."
    return condition("AliasConflict", TRUE, "AliasTaken", message)


def _taken(observed: Observed, alias: str) -> str:
    me = (observed.member.created, observed.member.uid)
    for other in observed.namesakes:
        if other.key.name == alias:
            return f"{alias} is the name of another Model"
    older = [
        other
        for other in observed.namesakes
        if other.spec is not None and alias in other.spec.aliases and (other.created, other.uid) < me
    ]
    return f"{alias} is an alias of the older Model {older[0].key.name} too" if older else ""
