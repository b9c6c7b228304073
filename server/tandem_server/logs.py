"""Log lines of the serving pod: sentences for a stranger at night, as text or as one JSON object a line.

Beside the path of every request: a single request never logs by itself; refusals are summed up by `Summary`.
"""

import logging
from collections.abc import Callable

from tandem_api import logs

NAME = "tandem"


def configure(form: logs.Form, level: int = logging.INFO) -> None:
    """Sends all logs to standard error in one form; libraries below WARNING are silent."""
    logs.configure(form, logging.WARNING)
    logging.getLogger(NAME).setLevel(level)
    logging.getLogger("tandem_server").setLevel(level)


class Summary:
    """Tells the first of a kind of event at once, and what followed as one line at most every `interval` seconds.

    Args:
        tell: writes the line for (number of events, seconds they came in, last detail).
        later: calls a function after so many seconds (an event loop's `call_later`).
    """

    def __init__(
        self,
        tell: Callable[[int, float, str], None],
        later: Callable[[float, Callable[[], None]], object],
        interval: float = 10.0,
    ) -> None:
        self._tell = tell
        self._later = later
        self._interval = interval
        self._count = 0
        self._detail = ""
        self._waiting = False

    def add(self, detail: str) -> None:
        """Notes one event."""
        if not self._waiting:
            self._waiting = True
            self._tell(1, 0.0, detail)
            self._later(self._interval, self._flush)
            return
        self._count += 1
        self._detail = detail

    def _flush(self) -> None:
        self._waiting = False
        if self._count:
            count, self._count = self._count, 0
            self._waiting = True
            self._tell(count, self._interval, self._detail)
            self._later(self._interval, self._flush)


def size_text(number: float) -> str:
    """Bytes as people read them: `1.2 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
