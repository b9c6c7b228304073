"""Shows what takes long: a live line on a terminal; elsewhere a line at the start, every 15 s, and at the end."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

INTERVAL_S = 15.0


class Progress:
    """Prints steps with elapsed seconds to `stream`; with `quiet` nothing is printed."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = not quiet and self._stream.isatty()

    def say(self, text: str) -> None:
        """One line of its own."""
        if not self._quiet:
            print(text, file=self._stream, flush=True)

    @contextmanager
    def step(self, text: str, detail: Callable[[], str] | None = None) -> Iterator[None]:
        """Shows `text`, the seconds since its start and what `detail` says, until the block ends."""
        if self._quiet:
            yield
            return
        started, ended = time.monotonic(), threading.Event()
        ticker = threading.Thread(target=self._tick, args=(text, detail, started, ended), daemon=True)
        ticker.start()
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            ended.set()
            ticker.join()
            before = "\r\x1b[K" if self._live else ""
            self.say(f"{before}{text}: {outcome} ({time.monotonic() - started:.1f} s)")

    def _tick(self, text: str, detail: Callable[[], str] | None, started: float, ended: threading.Event) -> None:
        wait = 0.2 if self._live else 1.0  # quick steps tell only their end
        while not ended.wait(wait):
            more = f", {detail()}" if detail else ""
            line = f"{text} ... {time.monotonic() - started:.0f} s{more}"
            if self._live:
                self._stream.write(f"\r\x1b[K{line[:150]}")
                self._stream.flush()
            else:
                self.say(line)
                wait = INTERVAL_S
