"""What ties a runner process to the front end that started it: a heartbeat out, the end of a pipe in.

Two threads of the runner, started before anything else. The heartbeat goes on whatever the engine does, through long
prompts and slow loads, so that its silence means a process that is stopped or hangs as a whole. The pipe's other end
is held by the front end alone: its end of file means that the front end is gone, and ends the runner with everything
that it started.
"""

import logging
import os
import signal
import threading
import time

from tandem_server import processes

PARENT_PIPE = "TANDEM_PARENT_PIPE"
"""Names the descriptor of the pipe whose other end the front end holds."""
HEARTBEAT = "TANDEM_HEARTBEAT"
"""`DESCRIPTOR:SECONDS`: where a byte is to be written, and how often."""
END_SECONDS = 2.0
"""For the descendants to be gone after the front end is."""

_log = logging.getLogger("tandem.runner")
_held: set[int] = set()


def hold() -> None:
    """Starts the threads that the environment asks for; once a process, however often it is called."""
    if os.getpid() in _held:
        return
    _held.add(os.getpid())
    descriptor, heartbeat = os.environ.get(PARENT_PIPE), os.environ.get(HEARTBEAT)
    if descriptor is not None:
        _start("parent watch", _watch_parent, int(descriptor))
    if heartbeat is not None:
        number, _, seconds = heartbeat.partition(":")
        os.set_blocking(int(number), False)
        _start("heartbeat", _beat, int(number), float(seconds))


def _start(name: str, what: object, *values: float) -> None:
    threading.Thread(target=what, args=values, name=name, daemon=True).start()  # type: ignore[arg-type]


def _beat(descriptor: int, seconds: float) -> None:
    while True:
        try:
            os.write(descriptor, b".")
        except BlockingIOError:
            pass  # nobody has read for long: the front end itself stands still, which is not this process's to judge
        except OSError:
            return  # the front end is gone; the other thread sees to that
        time.sleep(seconds)


def _watch_parent(descriptor: int) -> None:
    try:
        while os.read(descriptor, 64):
            pass
    except OSError as error:
        _log.warning("the pipe to the parent cannot be read: %s", error)
    _log.warning("the parent process is gone: ending")
    _end(descriptor)


def _end(descriptor: int) -> None:
    """Ends this process and all that belong to it; does not return."""
    own = os.getpid()
    try:
        marker = os.environ.get(processes.MARKER)
        if marker is not None:
            processes.end_all(processes.Kin(own, marker, processes.pipe_name(descriptor)), 0.0, END_SECONDS)
    finally:
        if os.getpgrp() == own:
            os.killpg(own, signal.SIGKILL)
        os._exit(1)
