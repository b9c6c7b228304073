"""The bars of models that load: one line a model with phase, bytes, rate and the time that is left.

Draws what reports say, whoever they come from: the pod in this process (`tandem serve`) or another over HTTP
(`tandem run` with a server of its own).
"""

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tandem_api.report import ModelReport, ModelState
from tandem_api.report import Progress as LoadProgress
from tandem_cli.words import size_text

SETTLED = (ModelState.LOADED, ModelState.FAILED)


def phase_text(model: ModelReport) -> str:
    """What is being done."""
    if model.state is ModelState.LOADED:
        return "loaded"
    if model.state is ModelState.FAILED:
        return "cannot be loaded"
    if model.progress is None:
        return "trying again" if model.last_error else "starting"
    return model.progress.phase or "working"


def bytes_text(progress: LoadProgress | None) -> str:
    """`1.1 of 6.4 MB`; empty where there is nothing to count."""
    if progress is None or not progress.total_bytes:
        return ""
    done, total = size_text(progress.done_bytes), size_text(progress.total_bytes)
    same_unit = done.split()[1] == total.split()[1]
    return f"{done.split()[0] if same_unit else done} of {total}"


def rate_text(progress: LoadProgress | None) -> str:
    """Bytes a second and the time that is left at that rate: `120 MB/s, 14 s left`; empty until it can be said."""
    if progress is None or not progress.eta_seconds or progress.eta_seconds < 0.5:
        return ""
    rate = (progress.total_bytes - progress.done_bytes) / progress.eta_seconds
    minutes, seconds = divmod(round(progress.eta_seconds), 60)
    left = f"{minutes} min {seconds} s" if minutes else f"{max(1, seconds)} s"
    return f"{size_text(rate)}/s, {left} left"


class LoadBars:
    """A context manager: bars on a terminal while models load, gone afterwards. Silent where there is no terminal."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.fields[model]}", markup=False),
            TimeElapsedColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[bytes]}"),
            TextColumn("{task.fields[rate]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "LoadBars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, models: Iterable[ModelReport]) -> None:
        """The state of all models now."""
        for model in models:
            if model.name not in self._tasks:
                self._tasks[model.name] = self._progress.add_task("", model=model.name, bytes="", rate="")
            told = model.progress
            loaded = model.state is ModelState.LOADED
            known = told is not None and told.total_bytes > 0
            self._progress.update(
                self._tasks[model.name],
                description=phase_text(model),
                total=1.0 if loaded or known else None,
                completed=1.0 if loaded else told.fraction if told is not None else 0.0,
                bytes="" if loaded else bytes_text(told),
                rate="" if loaded else rate_text(told),
            )
