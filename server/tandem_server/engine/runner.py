"""The runner process: one resident model behind one ZeroMQ socket.

Started by the residency manager through a forkserver that has imported this module (and so torch) but never touched
CUDA. `main` connects, loads with progress, serves, and ends: at `Stop`, at a fault (with a `Died` that names the
cause), or when its parent is gone.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from tandem_api.fit import mib
from tandem_server.engine import lifeline
from tandem_server.engine.interface import Engine, LoadError
from tandem_server.engine.native.config import architecture_of, read_json
from tandem_server.engine.native.encoder import load_encoder
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.sentence import embeds
from tandem_server.engine.wire import Died, FromRunner, Progress, RunnerSpec, ToRunner, decode_to_runner, encode

PARENT_PIPE = lifeline.PARENT_PIPE
LAST_WORDS_SECONDS = 2.0
PROGRESS_SECONDS = 0.1
LIMIT_TOLERANCE = 0.05
"""Share of what it takes by which a runner may pass its limit without a word."""

log = logging.getLogger("tandem.runner")


class SocketLink:
    """The engine's link to the front end; used by one thread."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        # Unbounded: what is queued is bounded by slots and max_tokens, and a slow reader must not stop the engine.
        self._socket.set_hwm(0)
        self._socket.connect(address)

    def receive(self, timeout: float | None) -> list[ToRunner]:
        """Every message at hand; see `Link`."""
        messages: list[ToRunner] = []
        if self._socket.poll(None if timeout is None else int(timeout * 1000)):
            while True:
                try:
                    messages.append(decode_to_runner(self._socket.recv(zmq.NOBLOCK)))
                except zmq.Again:
                    break
        return messages

    def send(self, message: FromRunner) -> None:
        """Queues `message` for the front end."""
        self._socket.send(encode(message))

    def close(self) -> None:
        """Sends what is queued, within `LAST_WORDS_SECONDS`."""
        self._socket.close(linger=int(LAST_WORDS_SECONDS * 1000))
        self._context.term()


def main(spec: RunnerSpec) -> None:
    """Runs a model until told to stop. Exits the process with status 1 after a fault that ends the runner."""
    _set_up_log(spec.model)
    lifeline.hold()
    link = SocketLink(spec.address)
    try:
        run(spec, link)
    except LoadError as error:
        log.error("cannot be loaded: %s", error)
        link.send(Died(str(error), error.reason))
        sys.exit(1)
    except Exception as error:
        log.exception("the engine failed")
        link.send(Died(f"the engine failed: {type(error).__name__}: {error}"))
        sys.exit(1)
    finally:
        link.close()


def run(spec: RunnerSpec, link: SocketLink) -> None:
    """Loads and serves over `link`; returns at `Stop`. Raises LoadError when the model cannot be loaded."""
    began = time.monotonic()
    log.info("loading %s to the %s", spec.path, spec.device)
    engine = load(spec, link)
    loaded = engine.loaded
    log.info(
        "loaded in %.1f s: %s, %.1f M parameters in %s (%.0f MiB), %d slots of %d tokens (%.0f MiB), on %s; %s",
        time.monotonic() - began,
        loaded.architecture,
        loaded.parameters / 1e6,
        loaded.dtype,
        loaded.weight_bytes / (1 << 20),
        loaded.slots,
        loaded.context,
        loaded.cache_bytes / (1 << 20),
        loaded.device,
        loaded.engine_reason,
    )
    over = loaded.total_bytes - (spec.memory_limit or loaded.total_bytes)
    if over > LIMIT_TOLERANCE * loaded.total_bytes:
        log.warning("it takes %s where %s were given to it", mib(loaded.total_bytes), mib(loaded.total_bytes - over))
    if loaded.context_reason:
        log.warning("the context is %d tokens: %s", loaded.context, loaded.context_reason)
    link.send(loaded)
    engine.serve(link)
    log.info("stopped as asked")


def load(spec: RunnerSpec, link: SocketLink) -> Engine:
    """The engine for the checkpoint's kind. Raises LoadError."""
    if not Path(spec.path).is_dir():
        raise LoadError(f"{spec.path} is no folder; point the source at a checkpoint's folder")
    report = _progress(link)
    folder = Path(spec.path)
    architecture = architecture_of(read_json(folder / "config.json"))
    if embeds(folder, spec.task, architecture):
        return load_encoder(spec, report)
    return load_generator(spec, report)


def _progress(link: SocketLink) -> Callable[[str, int, int], None]:
    """Sends progress, at most ten times a second but for a phase's first and last message."""
    last = ("", 0.0)

    def report(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if phase != last[0] or done >= total or now - last[1] >= PROGRESS_SECONDS:
            last = (phase, now)
            link.send(Progress(phase, done, total))

    return report


class _Prefix(logging.Filter):
    """Begins every line with the model's name, whatever form the process logs in."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._prefix = f"runner {model}: "

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._prefix + record.getMessage(), None
        return True


def _set_up_log(model: str) -> None:
    """Names the model in each line; logs to standard error where the parent has not set up anything."""
    log.addFilter(_Prefix(model))
    log.setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
