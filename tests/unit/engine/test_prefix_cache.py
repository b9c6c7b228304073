"""The prefix cache, the shared pool and the shift on a real decoder: fewer tokens computed, the same tokens told."""

import random
from dataclasses import replace

import msgspec
import pytest
import torch
from engine_fakes import RecordingLink, answers

from tandem_server.engine.native.blocks import BLOCK
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.executors import InlineExecutor, WorkerExecutor
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Add, RunnerSpec, Sampling, Stats, Tokens, ToRunner

pytestmark = pytest.mark.torch

VOCABULARY, CONTEXT, SLOTS, TURNS = 150, 640, 3, 3
Arrivals = list[tuple[int, ToRunner]]


@pytest.fixture(scope="module")
def folder(make_checkpoint):
    return make_checkpoint("LlamaForCausalLM", hidden_size=48, num_attention_heads=6, vocab_size=VOCABULARY)


@pytest.fixture(scope="module", params=[False, True], ids=["guaranteed", "shared"])
def engine(folder, request) -> NativeEngine:
    spec = RunnerSpec(
        "m", str(folder), "", dtype="Float32", slots=SLOTS, context=CONTEXT, threads=1, shared_cache=request.param
    )
    return load_generator(spec, lambda *_: None)


class Counting:
    """Computes plans, and counts the prompt tokens in them."""

    def __init__(self, engine: NativeEngine) -> None:
        self._compute = engine._step.compute
        self.tokens = 0

    def __call__(self, plan):
        self.tokens += sum(len(chunk.tokens) for chunk in plan.chunks)
        return self._compute(plan)


def run(engine: NativeEngine, limits: Limits, overlapped: bool, arrivals: Arrivals) -> tuple[dict, int, RecordingLink]:
    """Answers, prompt tokens computed, and all that was sent."""
    counting, link = Counting(engine), RecordingLink(arrivals)
    executor = (WorkerExecutor if overlapped else InlineExecutor)(counting)
    scheduler = Scheduler(limits)
    loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor))
    if isinstance(executor, WorkerExecutor):
        executor.run_beside(loop.run_overlapped)
    else:
        loop.run_plain()
    assert scheduler.blocks.free == scheduler.blocks.count
    return {request: ends[0] for request, ends in answers(link.sent).items()}, counting.tokens, link


def chats(engine: NativeEngine, rng: random.Random, count: int) -> Arrivals:
    """Every turn of some chats that have a system prompt in common, each with the answers before it in its prompt."""
    system = [rng.randrange(VOCABULARY) for _ in range(70)]
    prompts = [system + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 60))] for _ in range(count)]
    arrivals: Arrivals = []
    for turn in range(TURNS):
        adds = []
        for chat, prompt in enumerate(prompts):
            sampling = Sampling(temperature=rng.choice([0.0, 1.0]), top_k=rng.choice([0, 20]), seed=rng.getrandbits(60))
            adds.append(Add(100 * turn + chat, prompt, rng.randint(1, 70), sampling))
        told, _, _ = run(engine, replace(engine._limits, reuse=False), False, [(0, add) for add in adds])
        arrivals += [(1 + 400 * turn + rng.randint(0, 60), add) for add in adds]
        for chat, add in enumerate(adds):
            prompts[chat] = [*add.prompt, *told[add.request][0], *(rng.randrange(VOCABULARY) for _ in range(20))]
    return sorted(arrivals, key=lambda arrival: arrival[0])


@pytest.mark.parametrize("overlapped", [False, True])
def test_chats_get_the_same_tokens_with_and_without_the_cache(engine, overlapped, seeds):
    for seed in seeds:
        arrivals = chats(engine, random.Random(seed), 5)
        without, computed, _ = run(engine, replace(engine._limits, reuse=False), overlapped, arrivals)
        cached, fewer, link = run(engine, engine._limits, overlapped, arrivals)
        assert cached == without, f"seed {seed}"
        assert fewer < 0.6 * computed
        stats = [message for message in link.sent if isinstance(message, Stats)][-1]
        assert computed == stats.prefix_asked
        assert computed - fewer == stats.prefix_found


def test_a_second_turn_of_a_chat_computes_only_its_new_part(engine):
    greedy = Sampling(temperature=0.0)
    first = Add(1, [number % VOCABULARY for number in range(300)], 80, greedy)
    (tokens, _) = run(engine, engine._limits, True, [(0, first)])[0][1]
    assert len(tokens) == 80
    second = Add(2, [*first.prompt, *tokens, 5, 6, 7], 4, greedy)
    _, computed, link = run(engine, engine._limits, True, [(0, first), (1000, second)])
    # The last token of an answer is told and not put in.
    known = (300 + 80 - 1) // BLOCK * BLOCK
    assert computed == 300 + (383 - known)
    rows = [row for message in link.sent if isinstance(message, Tokens) for row in message.rows]
    assert {(row.request, row.cached) for row in rows} == {(1, 0), (2, known)}


def test_the_logits_behind_what_was_found_are_those_of_a_whole_prompt(engine):
    """What prompts left gives the same logits but for rounding, wherever in a chunk it ends; answers do, too."""
    rng = random.Random(5)
    sampling = Sampling(temperature=0.0, logprobs=5)
    whole = [rng.randrange(VOCABULARY) for _ in range(600)]
    for length in (31, 32, 33, 250, 256, 257, 300, 511, 590):
        arrivals: Arrivals = [(0, Add(1, whole[:length], 1, sampling)), (90, Add(2, whole, 1, sampling))]
        rows = [
            {row.request: row for message in link.sent if isinstance(message, Tokens) for row in message.rows}
            for reuse in (False, True)
            for link in [run(engine, replace(engine._limits, reuse=reuse), False, arrivals)[2]]
        ]
        assert (rows[0][2].cached, rows[1][2].cached) == (0, length // BLOCK * BLOCK)
        told = [dict(row[2].logprobs[0]) for row in rows]
        assert told[0].keys() == told[1].keys()
        assert max(abs(told[0][token] - told[1][token]) for token in told[0]) <= 1e-4


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_shift_goes_on_as_a_fresh_request_with_what_was_kept(engine, overlapped):
    """Beside neighbours; each time the context is full, the answer is that to the kept tokens as a new prompt."""
    limits = replace(engine._limits, context=100)
    prompt = [number * 7 % VOCABULARY for number in range(60)]
    shifting = Add(1, prompt, 200, Sampling(temperature=0.0), keep=10)
    neighbours = [Add(n, prompt[:40] + [n] * 20, 30, Sampling(seed=n)) for n in range(2, 7)]
    arrivals: Arrivals = [(0, shifting), *((5 * add.request, add) for add in neighbours)]
    told, _, link = run(engine, limits, overlapped, arrivals)
    wanted, sequence = list[int](), prompt
    while len(wanted) < 200:
        # A context of 100 gives 41 tokens to a prompt of 60: the last one is told and never put in.
        most = min(101 - len(sequence), 200 - len(wanted))
        alone = Add(1, sequence, most, Sampling(temperature=0.0))
        tokens = run(engine, replace(engine._limits, reuse=False), False, [(0, alone)])[0][1][0]
        wanted += tokens
        sequence = [*sequence, *tokens]
        sequence = sequence[:10] + sequence[10 + 45 :]
    assert told[1] == (wanted, "length")
    for add in neighbours:
        alone = msgspec.structs.replace(add, request=1)
        assert told[add.request] == run(engine, replace(limits, reuse=False), False, [(0, alone)])[0][1]
    rows = [row for message in link.sent if isinstance(message, Tokens) for row in message.rows]
    assert sum(len(row.tokens) for row in rows) == 350


def test_slots_share_a_pool_that_is_smaller_than_their_contexts(folder, monkeypatch):
    """Loaded with memory for one context and a half of three; every request gets its tokens in its turn."""
    monkeypatch.setattr("tandem_server.engine.native.load.pool_blocks", lambda *_: 3 * CONTEXT // BLOCK // 2)
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=3, context=CONTEXT, threads=1, shared_cache=True)
    engine = load_generator(spec, lambda *_: None)
    with torch.inference_mode():
        engine._step._decoder.cache.pool.fill_(torch.nan)
    assert (engine.loaded.context, engine.loaded.pool_tokens) == (CONTEXT, 960)
    assert "3 slots share memory for 960 tokens" in engine.loaded.engine_reason
    rng = random.Random(3)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 600))] for _ in range(12)]
    adds = [Add(number, prompt, 20, Sampling(seed=number)) for number, prompt in enumerate(prompts)]
    told, _, link = run(engine, engine._limits, True, [(0, add) for add in adds])
    rows = [row for message in link.sent if isinstance(message, Tokens) for row in message.rows]
    assert [row.request for row in rows if not row.tokens] == list(range(12)), "each is told when it has memory"
    for add in adds:
        alone = run(engine, replace(engine._limits, reuse=False), False, [(0, add)])[0]
        assert told[add.request] == alone[add.request]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("MistralForCausalLM", {"sliding_window": 100, "head_dim": 16}),
        ("Gemma2ForCausalLM", {"sliding_window": 64, "head_dim": 16}),
    ],
)
def test_windows_and_caps_read_what_others_left(architecture, overrides, shared, make_checkpoint):
    """Keys before a window are kept as well; what is read through it is the same."""
    folder = make_checkpoint(architecture, vocab_size=VOCABULARY, **overrides)
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=2, context=400, threads=1, shared_cache=shared)
    engine = load_generator(spec, lambda *_: None)
    rng = random.Random(8)
    system = [rng.randrange(VOCABULARY) for _ in range(250)]
    adds = [Add(n, [*system, n, *system[:n]], 30, Sampling(seed=n)) for n in range(1, 7)]
    arrivals: Arrivals = [(40 * add.request, add) for add in adds]
    without, computed, _ = run(engine, replace(engine._limits, reuse=False), True, arrivals)
    cached, fewer, _ = run(engine, engine._limits, True, arrivals)
    assert cached == without
    assert fewer < 0.5 * computed
