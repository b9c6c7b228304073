"""The runner over its wire: a real socket, and a real process where its end is tested; what it is told and answers."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import torch
import zmq

from tandem_server.engine import runner
from tandem_server.engine.native.step import FAILURES_IN_A_ROW
from tandem_server.engine.wire import (
    Abort,
    Add,
    Died,
    Embed,
    Embedded,
    FromRunner,
    Loaded,
    Progress,
    RunnerSpec,
    Sampling,
    Stats,
    Stop,
    TokenRow,
    Tokens,
    ToRunner,
    Trace,
    Traced,
    decode_from_runner,
    encode,
)

pytestmark = pytest.mark.torch

DEADLINE_MS = 60_000
GREEDY = Sampling(temperature=0.0)


class Front:
    """The front end's side: binds, starts the runner on a thread, reads what it says."""

    def __init__(self, folder: Path, tmp_path: Path, start: Callable[[RunnerSpec], None], **settings) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        address = f"ipc://{tmp_path}/runner-{id(self)}.sock"
        self._socket.bind(address)
        start(RunnerSpec("small", str(folder), address, **{"dtype": "Float32", "threads": 1, **settings}))

    def send(self, *messages: ToRunner) -> None:
        for message in messages:
            self._socket.send(encode(message))

    def next(self) -> FromRunner:
        assert self._socket.poll(DEADLINE_MS), "the runner is silent"
        return decode_from_runner(self._socket.recv())

    def until(self, kind: type, *skipped: type) -> FromRunner:
        while not isinstance(message := self.next(), kind):
            assert isinstance(message, skipped), message
        return message

    def rows(self, finals: int) -> list[TokenRow]:
        """All rows until so many requests have ended."""
        rows: list[TokenRow] = []
        while sum(row.finish is not None for row in rows) < finals:
            message = self.next()
            assert isinstance(message, Tokens | Stats), message
            rows += message.rows if isinstance(message, Tokens) else []
        return rows

    def stop(self) -> None:
        self._socket.send(encode(Stop()), zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close(linger=1000)
        self._context.term()


def main_on_thread(spec: RunnerSpec) -> None:
    with suppress(SystemExit):
        runner.main(spec)


@pytest.fixture
def front(tmp_path, monkeypatch):
    """Starts runners on threads; ends them."""
    monkeypatch.delenv(runner.PARENT_PIPE, raising=False)
    started: list[tuple[Front, threading.Thread]] = []

    def start(folder: Path, **settings) -> Front:
        thread = threading.Thread(daemon=True, target=lambda: None)

        def run(spec: RunnerSpec) -> None:
            nonlocal thread
            thread = threading.Thread(target=main_on_thread, args=(spec,), daemon=True)
            thread.start()

        one = Front(folder, tmp_path, run, **settings)
        started.append((one, thread))
        return one

    start.join = lambda: [thread.join(20) for _, thread in started]
    yield start
    for one, thread in started:
        with suppress(zmq.Again):  # one that died has no socket left to take it
            one.stop()
        thread.join(20)
        assert not thread.is_alive()
        one.close()
    runner.log.filters.clear()


@pytest.fixture
def process_front(tmp_path):
    """One runner as a process of its own: (front, process, our end of its parent pipe, its log)."""
    log = tmp_path / "log"
    read, write = os.pipe()
    processes: list[subprocess.Popen] = []

    def run(spec: RunnerSpec) -> None:
        code = (
            "import sys, msgspec\nfrom tandem_server.engine import runner, wire\n"
            "runner.main(msgspec.json.decode(sys.argv[1], type=wire.RunnerSpec))"
        )
        with log.open("wb") as stderr:
            command = [sys.executable, "-c", code, msgspec.json.encode(spec).decode()]
            environment = {**os.environ, runner.PARENT_PIPE: str(read)}
            processes.append(subprocess.Popen(command, stderr=stderr, pass_fds=(read,), env=environment))

    fronts: list[Front] = []

    def start(folder: Path) -> tuple[Front, subprocess.Popen, int, Path]:
        fronts.append(Front(folder, tmp_path, run))
        os.close(read)
        return fronts[0], processes[0], write, log

    yield start
    for process in processes:
        process.kill()
        process.wait(20)
    for one in fronts:
        one.close()


def test_load_run_abort_and_stop(front, make_checkpoint, caplog):
    folder = make_checkpoint("LlamaForCausalLM")
    one = front(folder, slots=2, context=900)
    progress = one.next()
    assert isinstance(progress, Progress)
    loaded = one.until(Loaded, Progress)
    assert isinstance(loaded, Loaded)
    assert (loaded.task, loaded.slots, loaded.context, loaded.context_limit) == ("Generate", 2, 900, 1100)
    assert loaded.weight_bytes == loaded.parameters * 4
    assert loaded.cache_bytes > 0
    assert "native engine" in loaded.engine_reason

    one.send(Add(1, [3, 4, 5], 6, GREEDY), Add(2, [3, 4, 5], 6, GREEDY), Add(3, [9], 2, GREEDY))
    rows = one.rows(3)
    tokens = {n: [t for row in rows if row.request == n for t in row.tokens] for n in (1, 2, 3)}
    assert len(tokens[1]) == 6
    assert tokens[1] == tokens[2]
    assert len(tokens[3]) == 2, "a third request waits for one of the two slots"

    one.send(Add(4, [3], 800, GREEDY), Add(5, [4], 800, GREEDY))
    first = one.until(Tokens, Stats)
    one.send(Abort(4), Add(6, [5], 3, GREEDY))
    rows = one.rows(2)
    assert {row.request: row.finish for row in rows if row.finish} == {4: "abort", 6: "length"}
    assert isinstance(first, Tokens)
    one.send(Add(7, [160], 3, GREEDY), Embed(8, [[1, 2]]), Abort(5))
    rows = one.rows(3)
    assert {row.request: row.finish for row in rows if row.finish} == {7: "error", 8: "error", 5: "abort"}
    idle = one.until(Stats, Tokens)
    assert isinstance(idle, Stats)
    assert idle.busy == 0

    one.send(Trace(9))
    traced = one.until(Traced, Stats)
    assert isinstance(traced, Traced)
    assert traced.request == 9
    assert [record.step for record in traced.steps] == list(range(1, len(traced.steps) + 1))
    assert sum(record.prompt_tokens for record in traced.steps) == 3 + 3 + 1 + 1 + 1 + 1, "of the requests that ran"
    for record in traced.steps:
        assert list(record.host) == sorted(record.host)
        assert record.host[1] < record.device[0] < record.device[1] < record.device[2] < record.host[4]

    one.send(Stop())
    front.join()
    log = caplog.text
    admissions = [int(line.split("admitted request ")[1].split()[0]) for line in log.splitlines() if "admitted" in line]
    assert admissions == [1, 2, 3, 4, 5, 6]
    assert "runner small: loading " in log
    assert "runner small: loaded in " in log
    assert "runner small: stopped as asked" in log


def test_a_plain_runner_gives_the_same_tokens(front, make_checkpoint):
    folder = make_checkpoint("LlamaForCausalLM")
    answers = []
    for overlapped in (True, False):
        one = front(folder, overlapped=overlapped)
        one.until(Loaded, Progress)
        one.send(*(Add(n, [3 + n, 4], 30, Sampling(seed=n)) for n in range(6)))
        rows = one.rows(6)
        answers.append({n: [t for row in rows if row.request == n for t in row.tokens] for n in range(6)})
    assert answers[0] == answers[1]


def test_it_ends_with_its_parent(process_front, make_checkpoint):
    one, process, pipe, log = process_front(make_checkpoint("LlamaForCausalLM"))
    one.until(Loaded, Progress)
    one.send(Add(1, [3], 700, GREEDY))
    one.until(Tokens, Stats)
    assert process.poll() is None
    os.close(pipe)
    assert process.wait(20) == 1
    assert "the parent process is gone: ending" in log.read_text()


def test_a_load_fault_ends_the_process_with_status_1(process_front, tmp_path):
    one, process, _, log = process_front(tmp_path)
    died = one.until(Died, Progress)
    assert isinstance(died, Died)
    assert "the checkpoint has no config.json" in died.cause
    assert process.wait(20) == 1
    assert "cannot be loaded: the checkpoint has no config.json" in log.read_text()


@pytest.mark.parametrize(
    ("task", "device", "said"),
    [
        ("Embed", "CPU", "task Embed was asked for, but LlamaForCausalLM makes text"),
        ("Auto", "GPU", "a GPU was asked for and none can be used"),
    ],
)
def test_a_load_fault_is_told(front, make_checkpoint, task, device, said):
    if device == "GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    one = front(make_checkpoint("LlamaForCausalLM"), task=task, device=device)
    died = one.until(Died, Progress)
    assert isinstance(died, Died)
    assert said in died.cause


def test_a_checkpoint_that_is_not_its_config_is_told_by_tensor(front, make_checkpoint, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(make_checkpoint("LlamaForCausalLM"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 170}))
    died = front(folder).until(Died, Progress)
    assert isinstance(died, Died)
    assert "tensor model.embed_tokens.weight in model.safetensors has shape [160, 64]" in died.cause
    assert "config.json calls for [170, 64]" in died.cause


def test_a_fault_of_the_engine_is_told(front, make_checkpoint, monkeypatch):
    """One that stays: after some requests in a row it is the engine that is broken, not the request."""

    def fail(*_: object) -> None:
        raise RuntimeError("the device caught fire")

    for computes in ("decoder.Decoder.decode", "cpu_decoder.CpuDecoder.decode", "cpu_step.CpuStep._run"):
        monkeypatch.setattr(f"tandem_server.engine.native.{computes}", fail)
    monkeypatch.setattr("tandem_server.engine.native.load.warm_up", lambda *_: None)
    one = front(make_checkpoint("LlamaForCausalLM"))
    one.until(Loaded, Progress)
    for request in range(1, FAILURES_IN_A_ROW):
        one.send(Add(request, [3], 5, GREEDY))
        last = one.rows(1)[-1]
        assert last.error == "the decode step failed: RuntimeError: the device caught fire"
    one.send(Add(FAILURES_IN_A_ROW, [3], 5, GREEDY))
    died = one.until(Died, Tokens, Stats)
    assert isinstance(died, Died)
    assert died.cause == "the engine failed: RuntimeError: the device caught fire"


def test_embeddings_over_the_wire(front, make_checkpoint):
    one = front(make_checkpoint("BertModel", max_position_embeddings=64), slots=2)
    loaded = one.until(Loaded, Progress)
    assert isinstance(loaded, Loaded)
    assert (loaded.task, loaded.embedding_size, loaded.context) == ("Embed", 64, 64)
    one.send(Embed(1, [[5, 6, 7], [8]]), Embed(2, [[9] * 65]), Embed(3, [[]]), Embed(4, [[160]]), Embed(5, []))
    one.send(Add(6, [3], 2, GREEDY))
    answers: dict[int, Embedded] = {}
    while len(answers) < 5:
        message = one.until(Embedded, Stats, Tokens)
        assert isinstance(message, Embedded)
        answers[message.request] = message
    assert list(answers) == [1, 2, 3, 4, 5], "in order of arrival"
    assert len(answers[1].vectors) == 2 * 64 * 4
    assert answers[2].error == "input 0 has 65 tokens, the model takes 64"
    assert answers[3].error == "input 0 has no tokens"
    assert answers[4].error == "input 0 has a token id outside the vocabulary of 160"
    assert (answers[5].error, answers[5].vectors) == (None, b"")
