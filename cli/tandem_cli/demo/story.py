"""What a person sees while the demo works: one line a step with the seconds since the start, and live progress.

On a terminal a waiting step shows a spinner and its own seconds; elsewhere (a log file, CI) each new state is a line.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

POLL_SECONDS = 0.3


class DemoError(Exception):
    """A step failed; the message is one sentence that says what to do."""


class Story:
    """Tells the steps of the demo in order."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def tell(self, text: str, style: str = "") -> None:
        """Prints one line behind the seconds since the start."""
        self.console.print(f"[dim]{self.seconds:6.1f} s[/dim]  ", end="")
        self.console.print(text, style=style, markup=False)

    def head(self, text: str) -> None:
        """Prints the headline of a part."""
        self.console.print()
        self.console.print(text, style="bold", markup=False)

    def command(self, text: str) -> None:
        """Prints a command as a person would type it."""
        self.console.print(f"$ {text}", style="cyan", markup=False)

    def plain(self, text: str) -> None:
        """Prints text as it is."""
        self.console.print(text.rstrip("\n"), markup=False)

    @contextmanager
    def during(self, text: str) -> Iterator[Callable[[str], None]]:
        """Shows `text` while the block runs; the block may call what it is given to say how far it is."""
        began = time.monotonic()
        told = text
        if not self.console.is_terminal:
            self.tell(f"{text} …")
            yield lambda state: self.tell(f"  {state}")
            return
        with self.console.status(text) as status:

            def update(state: str) -> None:
                nonlocal told
                told = f"{text}: {state}"
                status.update(f"{told} ({time.monotonic() - began:.0f} s)")

            yield update
        self.tell(f"{text} ({time.monotonic() - began:.1f} s)")

    def wait(self, text: str, probe: Callable[[], tuple[bool, str]], deadline_seconds: float) -> None:
        """Waits until `probe` returns True with its state; each new state is shown.

        Raises DemoError with the last state once `deadline_seconds` have passed.
        """
        end = time.monotonic() + deadline_seconds
        last = ""
        with self.during(text) as update:
            while True:
                done, state = probe()
                if state != last or self.console.is_terminal:
                    if state:
                        update(state)
                    last = state
                if done:
                    return
                if time.monotonic() > end:
                    raise DemoError(f"{text}: not done after {deadline_seconds:.0f} s; last seen: {last or 'nothing'}")
                time.sleep(POLL_SECONDS)
