"""What a server has loaded, as rows of a table: `ollama ps` with slots and queue.

Pure: from the bodies of `/api/ps` and, where `tandem serve` gives it on its only port, `/internal/report`. The report
adds models that load or failed, which Ollama's API does not list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tandem_api.report import ModelReport, ModelState, Report
from tandem_cli.loading import phase_text
from tandem_cli.words import processor_text, size_text, until_text

COLUMNS = ("NAME", "SIZE", "PROCESSOR", "CONTEXT", "SLOTS", "QUEUE", "UNTIL")
_NOTHING = "-"


@dataclass(frozen=True)
class Row:
    """One model. `notes` are sentences that do not fit a column."""

    cells: tuple[str, ...]
    notes: tuple[str, ...] = ()


def rows(listed: Sequence[dict[str, Any]], report: Report | None, now: datetime) -> list[Row]:
    """The listed models in their order, then those of the report that are not loaded."""
    reports = {model.name: model for model in report.models} if report is not None else {}
    names = {str(entry.get("name")) for entry in listed}
    loaded = [_loaded(entry, reports.get(str(entry.get("name"))), now) for entry in listed]
    return loaded + [_other(model) for model in reports.values() if model.name not in names]


def _loaded(entry: dict[str, Any], report: ModelReport | None, now: datetime) -> Row:
    ours = entry.get("tandem") or {}
    size = int(entry.get("size") or 0)
    busy, slots, queued = (ours.get(name) for name in ("busy", "slots", "queued"))
    if report is not None:
        busy, slots, queued = report.busy, report.slots, report.queued
    context = entry.get("context_length")
    cells = (
        str(entry.get("name", "")),
        size_text(size),
        processor_text(size, int(entry.get("size_vram") or 0)),
        _NOTHING if context is None else str(context),
        _NOTHING if slots is None else f"{busy or 0}/{slots}",
        _NOTHING if queued is None else str(queued),
        until_text(entry.get("expires_at"), now),
    )
    return Row(cells, _notes(cells[0], str(ours.get("context_reason") or ""), report))


def _other(model: ModelReport) -> Row:
    state = phase_text(model) if model.state is not ModelState.UNLOADED else "not loaded"
    if model.progress is not None and model.progress.total_bytes:
        state += f", {model.progress.fraction:.0%}"
    cells = (model.name, _NOTHING, _NOTHING, _NOTHING, _NOTHING, str(model.queued), state)
    return Row(cells, _notes(model.name, "", model))


def _notes(name: str, context_reason: str, report: ModelReport | None) -> tuple[str, ...]:
    notes = [f"{name} has less context than asked for: {context_reason}"] if context_reason else []
    if report is not None and report.state is not ModelState.LOADED and report.last_error:
        notes.append(f"{name} does not serve: {report.last_error}")
    if report is not None and report.rejected:
        notes.append(f"{name} refused {report.rejected} requests in the last 5 minutes")
    return tuple(notes)


def lines(found: Sequence[Row]) -> list[str]:
    """The table, its head first, with columns as wide as they need to be."""
    grid = [COLUMNS, *(row.cells for row in found)]
    widths = [max(len(cells[index]) for cells in grid) for index in range(len(COLUMNS))]
    return ["   ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in grid]


def notes(found: Sequence[Row]) -> list[str]:
    """All sentences."""
    return [note for row in found for note in row.notes]
