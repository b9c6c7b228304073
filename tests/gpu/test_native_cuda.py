"""The native engine on a CUDA device: parity with transformers, the same tokens from both loops and from scattered
blocks, seeds, aborts, and memory that is counted at its worst.

`make test-gpu`. Skipped where there is no CUDA device.
"""

import random
from collections import deque
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tandem_server.engine.native.engine import NativeEngine, load_generator  # noqa: E402
from tandem_server.engine.native.scheduler import Scheduler  # noqa: E402
from tandem_server.engine.wire import (  # noqa: E402
    Abort,
    Add,
    FromRunner,
    RunnerSpec,
    Sampling,
    Stop,
    Tokens,
    ToRunner,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

VOCABULARY = 512
CONTEXT = 1500


class Script:
    """Sends messages when their moment has come (counted in the engine's asks), and `Stop` when all is done."""

    def __init__(self, arrivals: list[tuple[int, ToRunner]]) -> None:
        self._arrivals = deque(sorted(arrivals, key=lambda arrival: arrival[0]))
        self._asked = 0
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}

    def receive(self, timeout: float | None) -> list[ToRunner]:
        self._asked += 1
        due = []
        while self._arrivals and (self._arrivals[0][0] <= self._asked or (timeout is None and not due)):
            due.append(self._arrivals.popleft()[1])
        return due or ([Stop()] if timeout is None else [])

    def send(self, message: FromRunner) -> None:
        for row in message.rows if isinstance(message, Tokens) else ():
            assert row.request not in self.finish
            self.tokens.setdefault(row.request, []).extend(row.tokens)
            if row.finish:
                self.finish[row.request] = row.finish


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.1,
    )
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: str = "Float32", slots: int = 8) -> NativeEngine:
    spec = RunnerSpec("m", str(folder), "", device="GPU", dtype=dtype, slots=slots, context=CONTEXT)
    return load_generator(spec, lambda *_: None)


def run(engine: NativeEngine, overlapped: bool, arrivals: list[tuple[int, ToRunner]]) -> Script:
    engine.overlapped = overlapped
    script = Script(arrivals)
    engine.serve(script)
    return script


def traffic(seed: int, count: int) -> list[tuple[int, ToRunner]]:
    rng = random.Random(seed)
    arrivals: list[tuple[int, ToRunner]] = []
    for number in range(count):
        sampling = Sampling(temperature=0.0)
        if rng.random() < 0.6:
            sampling = Sampling(
                temperature=rng.choice([0.7, 1.2]),
                top_k=rng.choice([0, 20, 200]),
                top_p=rng.choice([1.0, 0.9]),
                repetition_penalty=rng.choice([1.0, 1.2]),
                seed=rng.getrandbits(60),
            )
        length = rng.choice([rng.randint(1, 30), rng.randint(600, 1300)])
        prompt = [rng.randrange(VOCABULARY) for _ in range(length)]
        stops = rng.sample(range(VOCABULARY), rng.choice([0, 10]))
        arrivals.append((rng.randrange(4 * count), Add(number, prompt, rng.randint(1, 60), sampling, stops)))
    return arrivals


def test_greedy_tokens_are_those_of_transformers(checkpoint):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).cuda().eval()
    prompts = [[5, 9, 33], list(range(3, 200)), [(7 * i) % VOCABULARY for i in range(1100)]]
    adds = [(0, Add(n, prompt, 24, Sampling(temperature=0.0, logprobs=2))) for n, prompt in enumerate(prompts)]
    answers = run(load(checkpoint), True, adds)
    for number, prompt in enumerate(prompts):
        sequence = list(prompt)
        for token in answers.tokens[number]:
            with torch.inference_mode():
                logits = model(torch.tensor([sequence], device="cuda")).logits[0, -1]
            best = logits.topk(2)
            assert token == int(best.indices[0]) or float(best.values[0] - logits[token]) < 1e-3
            sequence.append(token)


@pytest.mark.parametrize("seed", range(3))
def test_plain_and_overlapped_give_identical_tokens_in_fp32(checkpoint, seed):
    engine = load(checkpoint)
    arrivals = traffic(seed, 200)
    plain, overlapped = run(engine, False, arrivals), run(engine, True, arrivals)
    assert plain.tokens == overlapped.tokens
    assert plain.finish == overlapped.finish
    assert set(plain.finish.values()) == {"stop", "length"}


def test_the_seed_decides(checkpoint):
    engine = load(checkpoint, "BFloat16")
    adds = [(0, Add(n, [5, 6, 7], 30, Sampling(seed=seed))) for n, seed in enumerate((1, 1, 2))]
    answers = run(engine, True, adds)
    assert answers.tokens[0] == answers.tokens[1] != answers.tokens[2]


def test_aborts_free_their_slots(checkpoint):
    engine = load(checkpoint, slots=2)
    arrivals: list[tuple[int, ToRunner]] = [(0, Add(n, [n + 1], 900, Sampling(seed=n))) for n in range(6)]
    arrivals += [(10 + 5 * n, Abort(n)) for n in range(6)]
    arrivals.append((60, Add(9, [3, 4], 20, Sampling(seed=5))))
    answers = run(engine, True, arrivals)
    assert [answers.finish[n] for n in range(6)] == ["abort"] * 6
    assert len(answers.tokens[9]) == 20


def test_scattered_blocks_give_the_same_answers(checkpoint, monkeypatch):
    """Gathered keys and values, rather than a view of them: the same kernel, so in fp32 the same tokens."""
    engine = load(checkpoint)
    arrivals = traffic(5, 60)
    at_home = run(engine, True, arrivals)
    rng = random.Random(1)
    scattered = partial(Scheduler, choose_blocks=lambda free, count, home: tuple(rng.sample(sorted(free), count)))
    monkeypatch.setattr("tandem_server.engine.native.engine.Scheduler", scattered)
    assert run(engine, True, arrivals).tokens == at_home.tokens


def test_the_largest_step_takes_no_more_than_was_counted_at_load(checkpoint):
    engine = load(checkpoint, "BFloat16", slots=16)
    counted = torch.cuda.memory_reserved()
    sampling = Sampling(top_p=0.9, repetition_penalty=1.1, seed=1, logprobs=20)
    adds = [(0, Add(n, [3] * 1300, 150, sampling)) for n in range(32)]
    answers = run(engine, True, adds)
    assert set(answers.finish.values()) == {"length"}
    assert torch.cuda.memory_reserved() <= counted * 1.02
