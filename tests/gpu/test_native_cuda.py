"""The native engine on a CUDA device: parity with transformers, the same tokens from both loops, from graphs and
without, and from scattered blocks; no step that waits for the device; seeds, aborts, memory counted at its worst.

`make test-gpu`. Skipped where there is no CUDA device.
"""

import random
from collections import deque
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tandem_server.engine.native.engine import NativeEngine  # noqa: E402
from tandem_server.engine.native.load import load_generator  # noqa: E402
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
        self.logprobs: dict[int, list] = {}

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
            self.logprobs.setdefault(row.request, []).extend(row.logprobs or [])
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


def load(folder: Path, dtype: str = "Float32", slots: int = 8, **settings) -> NativeEngine:
    spec = RunnerSpec("m", str(folder), "", device="GPU", dtype=dtype, slots=slots, context=CONTEXT, **settings)
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


def assert_greedy(folder: Path, engine: NativeEngine) -> None:
    """Its tokens are those that transformers likes best, or as good as those."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda().eval()
    prompts = [[5, 9, 33], list(range(3, 200)), [(7 * i) % VOCABULARY for i in range(1100)]]
    adds = [(0, Add(n, prompt, 24, Sampling(temperature=0.0, logprobs=2))) for n, prompt in enumerate(prompts)]
    answers = run(engine, True, adds)
    for number, prompt in enumerate(prompts):
        sequence = list(prompt)
        for token in answers.tokens[number]:
            with torch.inference_mode():
                logits = model(torch.tensor([sequence], device="cuda")).logits[0, -1]
            best = logits.topk(2)
            assert token == int(best.indices[0]) or float(best.values[0] - logits[token]) < 1e-3
            sequence.append(token)


def test_greedy_tokens_are_those_of_transformers(checkpoint):
    assert_greedy(checkpoint, load(checkpoint))


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("Qwen3Moe", {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "head_dim": 64}),
        ("GptOss", {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 64, "sliding_window": 128}),
    ],
)
def test_experts_are_recorded_and_give_the_tokens_of_transformers(tmp_path, name, special):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=4096, **sizes, **special
    )
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    engine = load(tmp_path)
    assert set(engine._step._forwards) == set(engine._step._sizes)
    assert_greedy(tmp_path, engine)


def test_prompts_that_share_a_forward_give_nearly_what_they_give_alone(checkpoint):
    engine = load(checkpoint, "BFloat16")
    prompts = [
        [(7 * i + n) % VOCABULARY for i in range(length)] for n, length in enumerate((3, 40, 700, 1300, 90, 512))
    ]
    adds = [Add(n, prompt, 1, Sampling(temperature=0.0, logprobs=1)) for n, prompt in enumerate(prompts)]
    together = run(engine, True, [(0, add) for add in adds])
    alone = [run(engine, True, [(0, add)]) for add in adds]
    for number, answer in enumerate(alone):
        (_, one), *_ = answer.logprobs[number][0]
        (_, other), *_ = together.logprobs[number][0]
        assert abs(one - other) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_plain_and_overlapped_give_identical_tokens_in_fp32(checkpoint, seed):
    engine = load(checkpoint)
    arrivals = traffic(seed, 200)
    plain, overlapped = run(engine, False, arrivals), run(engine, True, arrivals)
    assert plain.tokens == overlapped.tokens
    assert plain.finish == overlapped.finish
    assert set(plain.finish.values()) == {"stop", "length"}


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16", "Float16"])
def test_graphs_give_the_tokens_that_the_same_kernels_give_one_by_one(checkpoint, dtype):
    engine = load(checkpoint, dtype)
    arrivals = traffic(3, 60)
    replayed = run(engine, True, arrivals)
    step = engine._step
    assert set(step._forwards) == set(step._sizes)
    assert len(step._draws) > 1
    step._forwards.clear()
    step._draws.clear()
    one_by_one = run(engine, True, arrivals)
    assert not step._forwards
    assert replayed.tokens == one_by_one.tokens
    assert replayed.finish == one_by_one.finish


def test_no_step_waits_for_the_device(checkpoint, monkeypatch):
    """Neither admissions with penalties, biases and logprobs, nor prompt chunks, nor decode steps and their graphs."""
    engine = load(checkpoint, "BFloat16")
    compute = engine._step.compute

    def watched(plan):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return compute(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(engine._step, "compute", watched)
    special = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.1, logit_bias={3: 1.0}, seed=2, logprobs=3)
    arrivals = [*traffic(4, 30), (0, Add(99, [3, 4, 5], 40, special))]
    answers = run(engine, True, arrivals)
    assert len(answers.finish) == 31
    assert "error" not in answers.finish.values()


def test_fp8_keys_and_values_take_half_the_memory_and_give_nearly_the_same_logprobs(checkpoint):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the GPU has no FP8")
    wide, narrow = load(checkpoint, "BFloat16"), load(checkpoint, "BFloat16", cache_dtype="FP8")
    assert narrow.loaded.cache_bytes * 2 == wide.loaded.cache_bytes
    prompt = [(7 * i) % VOCABULARY for i in range(900)]
    logprobs = []
    for engine in (wide, narrow):
        answer = run(engine, True, [(0, Add(0, prompt, 3, Sampling(temperature=0.0, logprobs=1)))])
        assert answer.finish == {0: "length"}
        logprobs.append(answer.logprobs[0][0][0][1])
    assert abs(logprobs[0] - logprobs[1]) < 0.5


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("Qwen3", {"head_dim": 64}),
        ("Gemma2", {"head_dim": 64, "sliding_window": 50}),
        ("Mistral", {"sliding_window": 40}),
    ],
)
def test_the_kernels_give_what_torch_gives(tmp_path, name, special):
    """The decoder's two ways to decode, on the same keys and values in scattered blocks."""
    from kernel_cases import decoder_error

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=160, num_key_value_heads=2, max_position_embeddings=1024, **sizes, **special
    )
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    assert max(decoder_error(str(tmp_path), [70, 0, 33, 128], "GPU")) < 1e-4


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
