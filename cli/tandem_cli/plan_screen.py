"""A plan as it is printed, within 80 columns, and as JSON. Pure."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tandem_api.fields import Device
from tandem_api.fit import Fit, Parts, Refusal
from tandem_cli.planning import Outcome, Plan

_NAMES = {
    "weights": "weights",
    "cache": "contexts",
    "steps": "steps and tables",
    "fixed": "overhead of the process",
    "loading": "while loading",
}


def plan_lines(plan: Plan) -> list[Any]:
    """What rich prints, one below the other."""
    model, estimate = plan.model, plan.model.estimate
    footprint, device = estimate.footprint, "GPU" if estimate.wish.device is Device.GPU else "CPU"
    devices = f"{len(plan.capacity)} {device}s of" if len(plan.capacity) > 1 else f"{device} with"
    head = f"{footprint.architecture}, {count_text(footprint.parameters)} parameters, {footprint.dtype}"
    if estimate.wish.quantization != "None":
        head += f" with {estimate.wish.quantization} weights"
    lines: list[Any] = [
        Text.assemble((model.name, "bold"), f": {head}"),
        Text(
            f"on {devices} {size_of(plan.capacity[0] + plan.kept)}, of which {size_of(plan.kept)} stay free; "
            f"made for {footprint.context_limit} tokens"
        ),
        Text(),
    ]
    if footprint.token:
        lines += [
            Text("GiB of its runner by slots and tokens a slot; in brackets what does not fit"),
            _table(plan),
        ]
    else:
        lines.append(Text(f"Its runner takes {size_of(estimate.wanted_bytes)}, however many requests there are."))
    lines += [Text(), *_verdict(plan)]
    if plan.residents or plan.homeless:
        lines += [Text(), Text("Loaded before it:")]
    for placed in plan.residents:
        given, where = placed.fit, f" on {device} {placed.device}" if len(plan.capacity) > 1 else ""
        note = ", shrunk" if given.reason else ""
        what = (
            f"{given.slots} x {given.context} tokens{note}" if placed.model.estimate.footprint.token else "embeddings"
        )
        lines.append(Text(f"  {placed.model.name}{where}: {size_of(given.bytes)} ({what})"))
    lines += [Text(f"  {name}: finds no room beside those before it", style="yellow") for name in plan.homeless]
    lines += [*_beside(plan), *(Text(f"Note: {bound}.", style="dim") for bound in footprint.bounds)]
    return lines


def _table(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("slots", justify="right")
    asked = plan.model.estimate
    for cell in plan.table[0]:
        table.add_column(f"{cell.context}", justify="right", no_wrap=True)
    for row in plan.table:
        cells = []
        for cell in row:
            wished = (cell.slots, cell.context) == (asked.slots, asked.asked)
            text = f"{gib(cell.bytes)} " if cell.fits else f"({gib(cell.bytes)})"
            cells.append(Text(text, style=("bold " if wished else "") + ("green" if cell.fits else "dim")))
        table.add_row(str(row[0].slots), *cells)
    return table


def _verdict(plan: Plan) -> list[Text]:
    estimate, given = plan.model.estimate, plan.alone
    asked = f"{estimate.slots} slots of {estimate.asked} tokens" if estimate.footprint.token else "It"
    if isinstance(given, Refusal):
        return [Text(f"{given.reason[:1].upper()}{given.reason[1:]}.", style="red")]
    lines = []
    if given.context < estimate.asked:
        words = f"{asked} need {size_of(given.needed)}: the context shrinks to {given.context}."
        lines.append(Text(words, style="yellow"))
    else:
        fits = "fit" if estimate.footprint.token else "fits"
        lines.append(Text(f"{asked} {fits}: {size_of(given.bytes)} {_shares(given.parts)}", style="green"))
    if given.pool_blocks is not None:
        lines.append(Text(f"They share memory for {given.pool_tokens} tokens."))
    return lines


def _shares(parts: Parts) -> str:
    return "(" + ", ".join(f"{_NAMES[key]} {size_of(size)}" for key, size in asdict(parts).items() if size) + ")"


def _beside(plan: Plan) -> list[Text]:
    lines = []
    if plan.beside_idle is not None:
        lines.append(_outcome("While nobody uses them", plan.beside_idle, plan))
    if plan.beside_busy is not None and plan.beside_busy != plan.beside_idle:
        lines.append(_outcome("While they are all in use", plan.beside_busy, plan))
    return lines


def _outcome(when: str, outcome: Outcome, plan: Plan) -> Text:
    given, estimate = outcome.given, plan.model.estimate
    if isinstance(given, Refusal):
        least = f"it needs {size_of(given.least)} and {size_of(max(0, given.free))} is free"
        return Text(f"{when} it waits: {least}.", style="red")
    gone = f"{' and '.join(outcome.evicted)} would be unloaded" if outcome.evicted else "all of them stay"
    if not estimate.footprint.token:
        return Text(f"{when}: {gone}.")
    shrunk = given.context < estimate.asked
    what = f"its context is {given.context}{f' instead of {estimate.asked}' if shrunk else ', as asked'}"
    return Text(f"{when}: {gone}; {what}.", style="yellow" if shrunk or outcome.evicted else "green")


def plan_json(plan: Plan) -> dict[str, Any]:
    """The same for programs; sizes in bytes."""
    estimate = plan.model.estimate
    footprint = estimate.footprint
    return {
        "model": plan.model.name,
        "architecture": footprint.architecture,
        "parameters": footprint.parameters,
        "dtype": footprint.dtype,
        "quantization": estimate.wish.quantization,
        "contextLimit": footprint.context_limit,
        "weightBytes": footprint.weights,
        "bytesPerToken": footprint.token,
        "devices": list(plan.capacity),
        "keptFree": plan.kept,
        "slots": estimate.slots,
        "asked": estimate.asked,
        "minimumBytes": estimate.minimum_bytes,
        "wantedBytes": estimate.wanted_bytes,
        "alone": _given_json(plan.alone),
        "table": [asdict(cell) for row in plan.table for cell in row],
        "with": [{"model": one.model.name, "device": one.device, **_given_json(one.fit)} for one in plan.residents],
        "withoutRoom": list(plan.homeless),
        "besideIdle": _outcome_json(plan.beside_idle),
        "besideBusy": _outcome_json(plan.beside_busy),
        "bounds": list(footprint.bounds),
    }


def _given_json(given: Fit | Refusal) -> dict[str, Any]:
    if isinstance(given, Refusal):
        return {"fits": False, "reason": given.reason, "neededBytes": given.needed, "leastBytes": given.least}
    shared = {} if given.pool_blocks is None else {"poolTokens": given.pool_tokens}
    return {
        "fits": True,
        "context": given.context,
        "bytes": given.bytes,
        "parts": asdict(given.parts),
        "reason": given.reason,
        "neededBytes": given.needed,
        **shared,
    }


def _outcome_json(outcome: Outcome | None) -> dict[str, Any] | None:
    return None if outcome is None else {**_given_json(outcome.given), "evicted": list(outcome.evicted)}


def count_text(number: int) -> str:
    """`596 M`, `8.0 B`."""
    return f"{number / 1e9:.1f} B" if number >= 999.5e6 else f"{number / 1e6:.0f} M"


def gib(size: int) -> str:
    """`7.2`, `123`: GiB, as the sizes of GPUs are given."""
    number = size / (1 << 30)
    return f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def size_of(size: int) -> str:
    """`1.2 GiB`, `41 MiB`."""
    return f"{gib(size)} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
