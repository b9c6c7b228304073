"""A runner without a model: speaks the wire as a real one does, and makes the tokens that the test wrote down.

Runs in a process of its own, forked like a real runner. Its checkpoint folder holds `fake.json` (see `FakeSpec`);
while the folder holds a file `hold` it makes no step, and it adds a line to `admitted` for every request it starts.
"""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import zmq

from tandem_server.engine import wire


class FakeSpec(msgspec.Struct):
    """What the fake does."""

    answer: list[int] = []
    """Tokens of every answer, over and over until max_tokens, or until a stop token among them."""
    echo: bool = False
    """The answer is the prompt, over and over, instead."""
    slots: int = 4
    context: int = 256
    pool_tokens: int = 0
    """Less than all contexts: what comes while `hold` is there waits for memory."""
    task: str = "Generate"
    size: int = 8
    die_at_load: str = ""
    reason: str = ""
    """The word for programs that goes with it."""
    fail_token: int = 3
    """A prompt with this token ends in an `error` row."""
    death_token: int = 4
    """A prompt with this token kills the process, as a fault in native code would."""
    deaf_token: int = 5
    """A prompt with this token is never answered, nor is its abort."""
    wedge_token: int = 6
    """A prompt with this token leaves the process in a deadlock, its heartbeat alive."""
    descendants: list[str] = []
    """Started before the load, their ids in `descendants`; see `start_descendant`."""
    step_seconds: float = 0.001
    token_bytes: int = 0
    """Of a context's token: with less memory than all of them need the context is shrunk, and that is told."""


class Running:
    """One request on a slot."""

    def __init__(self, add: wire.Add) -> None:
        self.add = add
        self.made = 0
        self.aborted = False

    def row(self, spec: FakeSpec) -> wire.TokenRow:
        """The next token."""
        number = self.add.request
        if self.aborted:
            return wire.TokenRow(number, [], "abort")
        if spec.fail_token in self.add.prompt:
            return wire.TokenRow(number, [], "error", "the token was not to its liking")
        answer = self.add.prompt if spec.echo else spec.answer
        token = answer[self.made % len(answer)]
        self.made += 1
        if token in self.add.stop_tokens:
            return wire.TokenRow(number, [], "stop")
        finish = "length" if self.made >= self.add.max_tokens else None
        logprobs = None
        if self.add.sampling.logprobs is not None:
            others = [(other, -2.0 - other) for other in range(self.add.sampling.logprobs)]
            logprobs = [[(token, -0.5), *others]]
        return wire.TokenRow(number, [token], finish, None, logprobs)


def start_descendant(kind: str, folder: Path) -> None:
    """A child in a session of its own that takes no SIGTERM; of which kind is in how it could be found.

    `watches`: forked, ends with the inherited pipe. `forked`: holds the pipe and does nothing. `executed`: another
    program, which has nothing of its parent but the environment.
    """
    if kind == "executed":
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        pid = child.pid
    else:
        ready, started = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(started, b".")
            while kind == "forked":
                signal.pause()
            os.read(int(os.environ["TANDEM_PARENT_PIPE"]), 1)
            os._exit(0)
        os.read(ready, 1)
    with (folder / "descendants").open("a") as log:
        log.write(f"{kind} {pid}\n")


def vector(ids: list[int], size: int) -> list[float]:
    """A made-up unit vector that depends on every id."""
    raw = [1.0 + sum((place + 1) * number for place, number in enumerate(ids)) % (axis + 7) for axis in range(size)]
    length = math.sqrt(sum(value * value for value in raw))
    return [value / length for value in raw]


def main(spec: wire.RunnerSpec) -> None:
    """What the forked process executes."""
    folder = Path(spec.path)
    fake = msgspec.json.decode((folder / "fake.json").read_bytes(), type=FakeSpec)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(spec.address)
    for kind in fake.descendants:
        start_descendant(kind, folder)
    socket.send(wire.encode(wire.Progress("reading weights", 1, 2)))
    while (folder / "slow").exists():
        threading.Event().wait(0.01)
        socket.send(wire.encode(wire.Progress("reading weights", 1, 2)))
    if fake.die_at_load:
        socket.send(wire.encode(wire.Died(fake.die_at_load, fake.reason)))
        socket.close(linger=1000)
        zmq.Context.instance().term()
        raise SystemExit(1)
    socket.send(wire.encode(loaded(spec, fake)))
    serve(socket, fake, folder)


def loaded(spec: wire.RunnerSpec, fake: FakeSpec) -> wire.Loaded:
    """What it says of itself."""
    asked = min(spec.context or fake.context, fake.context)
    room = spec.memory_limit // fake.token_bytes if fake.token_bytes and spec.memory_limit else asked
    reason = f"{asked} tokens were asked for and {room} fit" if room < asked else ""
    return wire.Loaded(
        task=fake.task,
        architecture="FakeForCausalLM",
        parameters=1_234_567,
        weight_bytes=1000,
        cache_bytes=200,
        overhead_bytes=30,
        device="CPU (1 thread)",
        device_kind="CPU",
        dtype="float32",
        slots=spec.slots or fake.slots,
        context_limit=fake.context,
        context=min(asked, room),
        context_reason=reason,
        embedding_size=fake.size,
        engine_reason="a fake engine",
        pool_tokens=fake.pool_tokens,
        total_bytes=min(asked, room) * fake.token_bytes,
    )


def serve(socket: "zmq.Socket[bytes]", fake: FakeSpec, folder: Path) -> None:
    """Steps until told to stop."""
    running: dict[int, Running] = {}
    step = 0
    while True:
        held = (folder / "hold").exists()
        timeout = 0 if running and not held else 5
        while socket.poll(timeout):
            if not handle(wire.decode_to_runner(socket.recv()), running, socket, fake, folder):
                return
            timeout = 0
        # Looked at again: whoever sent what was just read had put the hold there before.
        if not running or (folder / "hold").exists():
            continue
        if fake.step_seconds:
            threading.Event().wait(fake.step_seconds)
        rows = [each.row(fake) for each in running.values() if fake.deaf_token not in each.add.prompt]
        step += 1
        socket.send(wire.encode(wire.Tokens(step, rows)))
        for row in rows:
            if row.finish is not None:
                del running[row.request]


def handle(message: Any, running: dict[int, Running], socket: Any, fake: FakeSpec, folder: Path) -> bool:
    """One message; False for Stop."""
    if isinstance(message, wire.Stop):
        return False
    if isinstance(message, wire.Add):
        assert len(running) < fake.slots, "more requests than slots"
        if fake.death_token in message.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if fake.wedge_token in message.prompt:
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        running[message.request] = Running(message)
        with (folder / "grammars").open("a") as log:
            log.write(json.dumps(message.grammar) + "\n")
        with (folder / "admitted").open("a") as log:
            log.write(",".join(map(str, message.prompt)) + "\n")
    elif isinstance(message, wire.Abort) and message.request in running:
        running[message.request].aborted = True
        with (folder / "aborted").open("a") as log:
            log.write(f"{message.request}\n")
    elif isinstance(message, wire.Trace):
        step = wire.StepRecord(7, 2, 30, True, (1.0, 1.1, 1.2, 1.5, 1.8, 1.9), (1.2, 1.6, 1.7))
        socket.send(wire.encode(wire.Traced(message.request, [step])))
    elif isinstance(message, wire.Embed):
        numbers = [number for ids in message.inputs for number in vector(ids, fake.size)]
        data = struct.pack(f"<{len(numbers)}f", *numbers)
        socket.send(wire.encode(wire.Embedded(message.request, fake.size, data)))
    return True
