"""What the runner asks of an engine: load a checkpoint, say what came of it, then serve commands until told to stop.

Stands between the wire (`runner.py`) and the engines (`native/`; later vLLM). An engine sees typed messages only;
sockets, processes and log set-up are the runner's.
"""

from collections.abc import Callable
from typing import Protocol

from tandem_server.engine.wire import FromRunner, Loaded, ToRunner

ProgressReporter = Callable[[str, int, int], None]
"""Called with the phase (a present participle), bytes done and bytes in all."""


class LoadError(Exception):
    """A checkpoint that cannot be served; the text names the file, tensor or limit and says what to do."""

    reason = ""
    """A word for programs, where there is one."""


class DoesNotFit(LoadError):
    """Memory is short; the text has the numbers."""

    reason = "DoesNotFit"


class Stopped(Exception):
    """The front end asked the runner to end."""


class Link(Protocol):
    """An engine's connection to its front end."""

    def receive(self, timeout: float | None) -> list[ToRunner]:
        """Every message at hand, oldest first.

        Waits up to `timeout` seconds (None: until one comes; 0: not at all) when there is none, then gives [].
        """

    def send(self, message: FromRunner) -> None:
        """Hands `message` to the front end; never blocks the engine on a slow reader."""


class Engine(Protocol):
    """One resident model."""

    @property
    def loaded(self) -> Loaded:
        """What was loaded, with its numbers."""

    def serve(self, link: Link) -> None:
        """Runs requests until a `Stop` arrives. Raises only when the engine itself is broken."""
