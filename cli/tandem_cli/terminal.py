"""Standard error shared between log lines and bars that move.

Everything that this process and those it starts write to standard error goes through a pipe, and is printed above the
bars line by line; otherwise each would tear the other apart. Where there is no terminal nothing is done.
"""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

_QUIET = re.compile(r"^\S+Z (DEBUG|INFO) ")
_END = b"\0end of the log\n"


def is_quiet(line: str) -> bool:
    """Whether a log line tells no more than that all is well."""
    return _QUIET.match(line) is not None


@contextlib.contextmanager
def log_above_bars(shows: Callable[[str], bool]) -> Iterator[Console]:
    """Gives the console for bars; lines on standard error for which `shows` is true appear above them."""
    if not sys.stderr.isatty():
        yield Console(stderr=True)
        return
    sys.stderr.flush()
    saved = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    with os.fdopen(saved, "w", encoding="utf-8", errors="replace", closefd=False) as terminal:
        console = Console(file=terminal)
        thread = threading.Thread(target=_relay, args=(reader, console, shows), name="log lines", daemon=True)
        thread.start()
        try:
            yield console
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            # Processes that were started may still hold the other end: the end is told, not waited for.
            os.write(writer, _END)
            os.close(writer)
            thread.join(timeout=5.0)
            os.close(saved)


def _relay(reader: int, console: Console, shows: Callable[[str], bool]) -> None:
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            if line == _END:
                return
            text = line.decode("utf-8", "replace").rstrip("\n")
            if shows(text):
                console.print(Text(text), soft_wrap=True, highlight=False)
