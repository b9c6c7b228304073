"""Progress of a load: from the runner's and the download's numbers to the report and to a log line every few seconds.

Beside the path of a load; `told` is called often, writes seldom.
"""

import logging
import time
from collections.abc import Callable

from tandem_api.report import Progress
from tandem_server.engine import wire
from tandem_server.logs import size_text

_log = logging.getLogger(__name__)
LINE_SECONDS = 5.0


class ProgressLog:
    """Adds the time that is left to each progress and passes it on."""

    def __init__(
        self, model: str, pass_on: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model = model
        self._pass_on = pass_on
        self._clock = clock
        self._phase = ""
        self._phase_began = clock()
        self._phase_done = 0
        self._line_at = clock() + LINE_SECONDS

    def told_by_runner(self, message: wire.Progress) -> None:
        """The runner's form."""
        fraction = min(1.0, message.done_bytes / message.total_bytes) if message.total_bytes else 0.0
        self.told(
            Progress(
                phase=message.phase,
                fraction=fraction,
                done_bytes=message.done_bytes,
                total_bytes=message.total_bytes,
            )
        )

    def told(self, progress: Progress) -> None:
        """One more progress."""
        now = self._clock()
        if progress.phase != self._phase:
            self._phase, self._phase_began, self._phase_done = progress.phase, now, progress.done_bytes
        eta = time_left(progress.done_bytes - self._phase_done, progress, now - self._phase_began)
        progress = progress.model_copy(update={"eta_seconds": eta})
        self._pass_on(progress)
        if now >= self._line_at:
            self._line_at = now + LINE_SECONDS
            _log.info("Loading model %s: %s.", self._model, progress_text(progress))


def time_left(done: int, progress: Progress, elapsed: float) -> float | None:
    """Seconds until the phase is done at the pace so far; None while that cannot be said."""
    if done <= 0 or elapsed <= 0 or not progress.total_bytes:
        return None
    return round((progress.total_bytes - progress.done_bytes) * elapsed / done, 1)


def progress_text(progress: Progress) -> str:
    """Such as `reading weights, 45% (1.2 GiB of 2.7 GiB), about 12 s left`."""
    text = progress.phase or "working"
    if progress.total_bytes:
        done, total = size_text(progress.done_bytes), size_text(progress.total_bytes)
        text += f", {progress.fraction:.0%} ({done} of {total})"
    if progress.eta_seconds is not None and progress.eta_seconds >= 1:
        text += f", about {progress.eta_seconds:.0f} s left"
    return text
