"""A server that lives for one chat: `tandem run PATH` starts `tandem serve --lent` and ends it with itself.

Both ends stand here. The server's port comes as one JSON line on its standard output; its standard input is a pipe
that only `tandem run` holds, so that it ends with that process however that ends.
"""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from rich.console import Console

from tandem_api.report import ModelReport, ModelState
from tandem_cli.chat.client import Server
from tandem_cli.chat.trouble import NoServer, Trouble
from tandem_cli.loading import LoadBars

if TYPE_CHECKING:
    from tandem_server.pod import Pod

START_SECONDS = 120.0
"""For the server's imports; loads have no bound but their progress, which the server watches itself."""
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.2


async def tell_and_follow(_: "Pod", port: int) -> None:
    """The server's end: tells its port, and asks this process to shut down when its standard input ends."""
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            gone.set()

    loop.add_reader(0, readable)
    try:
        await gone.wait()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        loop.remove_reader(0)


@contextmanager
def lent_server(model: str, console: Console) -> Iterator[tuple[Server, str]]:
    """A server of `model` (a folder or hf://) and the name it gives it, loaded. Raises Trouble when it cannot be."""
    with tempfile.TemporaryFile() as log:
        command = [
            sys.executable,
            "-m",
            "tandem_cli",
            "serve",
            "--lent",
            "--port",
            "0",
            "--slots",
            "1",
            "--model",
            model,
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
        try:
            with console.status("starting a server for this chat"):
                port = _port(process, log)
            server = Server(f"http://127.0.0.1:{port}")
            try:
                yield server, _loaded(server, process, log, console)
            finally:
                server.close()
        finally:
            _end(process)


def _port(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> int:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], START_SECONDS)[0]:
        raise Trouble(f"a server of our own did not start within {START_SECONDS:.0f} s; its log ends: {_tail(log)}")
    line = process.stdout.readline()
    if not line:
        raise Trouble(f"a server of our own did not start: {_tail(log)}")
    return int(json.loads(line)["port"])


def _loaded(server: Server, process: "subprocess.Popen[bytes]", log: IO[bytes], console: Console) -> str:
    deadline = time.monotonic() + START_SECONDS
    with LoadBars(console) as bars:
        while True:
            models = _models(server, deadline)
            bars.show(models)
            for model in models:
                if model.state is ModelState.LOADED:
                    return model.name
                if model.state is ModelState.FAILED:
                    raise Trouble(f"{model.name} cannot be loaded: {model.last_error}")
            if process.poll() is not None:
                raise Trouble(f"a server of our own ended while it loaded: {_tail(log)}")
            time.sleep(LOOK_SECONDS)


def _models(server: Server, deadline: float) -> list[ModelReport]:
    """What it tells; nothing before it listens, which is a moment after it has told its port."""
    try:
        report = server.report()
    except NoServer:
        if time.monotonic() > deadline:
            raise
        return []
    return [] if report is None else report.models


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Asks the server to end, and makes it end when it does not; its runners follow it by themselves."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
