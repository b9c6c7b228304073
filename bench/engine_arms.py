"""The engines that `bench/engine.py` measures against each other: each a process of its own, asked for one job a time.

Ours is a runner behind its ZeroMQ wire. A peer is a script run by its own Python, which takes jobs as JSON lines on
standard input and answers on a pipe of its own, since libraries print what they like.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

import msgspec
import zmq
from engine_results import MEMORY, name_of

from tandem_server.engine.lifeline import PARENT_PIPE
from tandem_server.engine.wire import (
    Add,
    Died,
    Loaded,
    RunnerSpec,
    Sampling,
    Stop,
    Tokens,
    decode_from_runner,
    encode,
)

HERE = Path(__file__).resolve().parent
LOAD_SECONDS, JOB_SECONDS, STOP_SECONDS = 900.0, 600.0, 15.0
CONTEXT, SLOTS = 1024, 32
READ_BYTES, READS = 1 << 29, 9
TEMPERATURE, TOP_K, TOP_P = 0.8, 40, 0.9


@dataclass(frozen=True)
class Job:
    """Requests that begin at once; each makes exactly `new` tokens. `seed` None: greedy."""

    prompts: list[list[int]]
    new: int
    seed: int | None


class ArmError(Exception):
    """An engine that did not start or did not answer; the text has the end of its log."""


class Arm(Protocol):
    """One engine with one model loaded."""

    name: str
    versions: dict[str, str]

    def run(self, job: Job) -> float:
        """Seconds from the first request to the last token. Raises ArmError."""

    def close(self) -> None:
        """Ends the process and all that it started."""


class Process:
    """A child in a session of its own, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, **options: Any) -> None:
        self._log = log
        with log.open("wb") as out:
            self.child = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **options)

    def error(self, what: str) -> ArmError:
        lines = self._log.read_text(errors="replace").strip().splitlines()[-15:]
        return ArmError("\n  ".join([what, *lines]))

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.child.pid, number)
            except ProcessLookupError:
                break
            try:
                self.child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        self.child.wait()


def peer_environment(threads: int, more: Mapping[str, str]) -> dict[str, str]:
    """As our runner does: threads that spin for long while they wait would slow a peer down on a busy machine."""
    shared = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "5000", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **shared, **more}


class Native:
    """Our engine: `tandem_server.engine.runner` as in a pod, everything between it and here over the wire."""

    def __init__(
        self, folder: Path, dtype: str, threads: int | None, scratch: Path, quantization: str = "None"
    ) -> None:
        self.name = name_of(quantization)
        address = f"ipc://{scratch / f'wire-{quantization}'}"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.bind(address)
        spec = RunnerSpec(
            "bench",
            str(folder),
            address,
            dtype=dtype,
            quantization=quantization,
            slots=SLOTS,
            context=CONTEXT,
            threads=threads,
        )
        code = "import sys, msgspec; from tandem_server.engine import runner, wire; "
        code += "runner.main(msgspec.json.decode(sys.argv[1], type=wire.RunnerSpec))"
        # The runner ends by itself when the other end of this pipe closes, however this process ends.
        reader, self._lifeline = os.pipe()
        self._process = Process(
            [sys.executable, "-c", code, msgspec.json.encode(spec).decode()],
            scratch / f"native-{quantization}.log",
            pass_fds=[reader],
            env={**os.environ, PARENT_PIPE: str(reader)},
        )
        os.close(reader)
        self._number = 0
        try:
            self.loaded = self._loaded()
        except ArmError:
            self.close()
            raise
        self.versions: dict[str, str] = {}

    @property
    def threads(self) -> int:
        """CPU threads that it computes with."""
        found = re.search(r"\((\d+) thread", self.loaded.device)
        return int(found[1]) if found else 1

    def run(self, job: Job) -> float:
        """See Arm."""
        sampling = Sampling(temperature=0.0)
        if job.seed is not None:
            sampling = Sampling(temperature=TEMPERATURE, top_k=TOP_K, top_p=TOP_P, seed=job.seed)
        deadline = time.monotonic() + JOB_SECONDS
        began = time.perf_counter()
        for prompt in job.prompts:
            self._number += 1
            self._socket.send(encode(Add(self._number, prompt, job.new, sampling)))
        left, made = len(job.prompts), 0
        while left:
            message = self._heard(deadline)
            for row in message.rows if isinstance(message, Tokens) else []:
                made += len(row.tokens)
                left -= row.finish is not None
        seconds = time.perf_counter() - began
        if made != len(job.prompts) * job.new:
            raise self._process.error(f"{made} tokens came instead of {len(job.prompts) * job.new}")
        return seconds

    def close(self) -> None:
        """See Arm."""
        self._socket.send(encode(Stop()))
        self._process.end()
        os.close(self._lifeline)
        self._socket.close(linger=0)
        self._context.term()

    def _loaded(self) -> Loaded:
        deadline = time.monotonic() + LOAD_SECONDS
        while True:
            message = self._heard(deadline)
            if isinstance(message, Loaded):
                return message

    def _heard(self, deadline: float) -> Any:
        while not self._socket.poll(1000):
            if self._process.child.poll() is not None:
                raise self._process.error("our runner ended:")
            if time.monotonic() > deadline:
                raise self._process.error("our runner did not answer in time; its log ends:")
        message = decode_from_runner(self._socket.recv())
        if isinstance(message, Died):
            raise self._process.error(f"our runner ended: {message.cause}")
        return message


class Memory:
    """The time that reading all weights once a token would take, at the bandwidth measured right now.

    Only what a step reads counts: not the embedding table, of which it looks up a row.
    """

    name = MEMORY
    versions: ClassVar[dict[str, str]] = {}

    def __init__(self, step_bytes: int, threads: int) -> None:
        import torch  # imported late: it takes seconds

        self._step_bytes = step_bytes
        torch.set_num_threads(threads)
        self._numbers = torch.ones(READ_BYTES // 4)

    def run(self, job: Job) -> float:
        """Seconds for a job of one request."""
        times = []
        for _ in range(READS):
            began = time.perf_counter()
            self._numbers.sum()
            times.append(time.perf_counter() - began)
        return self._step_bytes / (READ_BYTES / min(times)) * job.new

    def close(self) -> None:
        """Nothing to end."""


class Peer:
    """A library of others, behind one of the `peer_*.py` scripts."""

    def __init__(
        self, name: str, script: str, python: str, folder: Path, dtype: str, threads: int, scratch: Path, **more: str
    ) -> None:
        self.name = name
        reader, writer = os.pipe()
        given = {"model": str(folder), "dtype": dtype, "slots": SLOTS, "context": CONTEXT, "answers": writer}
        self._process = Process(
            [python, str(HERE / script), json.dumps(given)],
            scratch / f"{script}.log",
            stdin=subprocess.PIPE,
            pass_fds=[writer],
            env=peer_environment(threads, more),
        )
        os.close(writer)
        self._answers: IO[bytes] = os.fdopen(reader, "rb", buffering=0)
        self._rest = b""
        try:
            self.versions: dict[str, str] = self._heard(LOAD_SECONDS)["versions"]
        except ArmError:
            self.close()
            raise

    def run(self, job: Job) -> float:
        """See Arm."""
        told = {**asdict(job), "temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P}
        stdin = self._process.child.stdin
        assert stdin is not None
        stdin.write(json.dumps(told).encode() + b"\n")
        stdin.flush()
        answer = self._heard(JOB_SECONDS)
        if answer["tokens"] != len(job.prompts) * job.new:
            raise self._process.error(f"{self.name} made {answer['tokens']} tokens, not {len(job.prompts) * job.new}")
        return float(answer["seconds"])

    def close(self) -> None:
        """See Arm."""
        self._process.end()
        self._answers.close()

    def _heard(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._process.error(f"{self.name} did not answer within {seconds:.0f} s; its log ends:")
            part = self._answers.read(65536)
            if not part:
                raise self._process.error(f"{self.name} ended; its log ends:")
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer
