"""Plain, overlapped, alone: in fp32 a request's tokens are the same however and beside whomever it runs."""

import random
from dataclasses import dataclass, field, replace
from itertools import product

import msgspec
import pytest
import torch
from engine_fakes import scattered

from tandem_server.engine.native.blocks import Choice, near_home
from tandem_server.engine.native.cpu_decoder import CpuDecoder
from tandem_server.engine.native.cpu_linear import CompiledLinear
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.executors import InlineExecutor, WorkerExecutor
from tandem_server.engine.native.linear import PackedLinear, TransposedLinear, packing_available, row_invariant_sizes
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Abort, Add, RunnerSpec, Sampling, Tokens, ToRunner

pytestmark = pytest.mark.torch

REQUESTS = 200
SHAPE = {"hidden_size": 96, "num_hidden_layers": 2, "vocab_size": 150, "num_attention_heads": 6}


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)


def random_sampling(rng: random.Random) -> Sampling:
    if rng.random() < 0.35:
        return Sampling(temperature=0.0, repetition_penalty=rng.choice([1.0, 1.0, 1.3]))
    return Sampling(
        temperature=rng.choice([0.6, 1.0, 1.7]),
        top_k=rng.choice([0, 0, 5, 40, 140]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.5]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        presence_penalty=rng.choice([0.0, 0.0, 0.7]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.3]),
        typical_p=rng.choice([1.0, 1.0, 1.0, 0.8]),
        min_tokens=rng.choice([0, 0, 0, 5]),
        logit_bias=rng.choice([{}, {}, {}, {rng.randrange(150): rng.uniform(-9, 9) for _ in range(20)}]),
        bad_words=rng.choice([[], [], [], [[rng.randrange(150)] * rng.randint(1, 3) for _ in range(60)]]),
        seed=rng.getrandbits(62),
        logprobs=rng.choice([None, None, None, 0, 4]),
    )


def random_add(rng: random.Random, request: int, vocabulary: int, context: int) -> Add:
    length = rng.choice([1, 2, rng.randint(1, 40), rng.randint(1, 40), rng.randint(200, 600)])
    return Add(
        request=request,
        prompt=[rng.randrange(vocabulary) for _ in range(length)],
        max_tokens=min(rng.choice([1, 2, 3, rng.randint(4, 40)]), context - length),
        sampling=random_sampling(rng),
        stop_tokens=rng.sample(range(vocabulary), rng.choice([0, 0, 1, 8])),
    )


def load(folder, slots: int, **settings) -> NativeEngine:
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=slots, context=700, threads=1, **settings)
    return load_generator(spec, lambda *_: None)


def limits_for(engine: NativeEngine, choose: Choice) -> Limits:
    """Slots at home, or with blocks anywhere in a pool, on the same cache."""
    cache, limits = engine._step._decoder.cache, engine._limits
    cache.shared = choose is not near_home
    return replace(limits, pool_blocks=limits.slots * limits.slot_blocks) if cache.shared else limits


def run(
    engine: NativeEngine,
    overlapped: bool,
    arrivals: list[tuple[int, ToRunner]],
    link_class,
    choose: Choice = near_home,
) -> dict[int, Answer]:
    """All answers of one loop over the engine's device side; another choice of blocks is one in a shared pool."""
    scheduler = Scheduler(limits_for(engine, choose), choose_blocks=choose)
    executor = (WorkerExecutor if overlapped else InlineExecutor)(engine._step.compute)
    link = link_class(arrivals)
    loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor))
    if isinstance(executor, WorkerExecutor):
        executor.run_beside(loop.run_overlapped)
    else:
        loop.run_plain()
    assert scheduler.idle
    assert scheduler.table.free == engine.loaded.slots
    assert scheduler.blocks.free == scheduler.blocks.count
    assert scheduler.blocks.taken == scheduler.blocks.returned
    answers: dict[int, Answer] = {}
    for message in link.sent:
        if isinstance(message, Tokens):
            for row in message.rows:
                answer = answers.setdefault(row.request, Answer())
                assert answer.finish is None, "a row came after the final one"
                answer.tokens += row.tokens
                answer.logprobs += row.logprobs or []
                answer.finish, answer.error = row.finish, row.error
    return answers


def test_plain_and_overlapped_give_identical_tokens(kernels, make_checkpoint, recording_link, seeds):
    engine = load(make_checkpoint("LlamaForCausalLM", **SHAPE), 4 if kernels == "torch" else 6)
    assert isinstance(engine._step._decoder, CpuDecoder) == (kernels == "compiled")
    engine._step._checked = True
    finishes: set[str | None] = set()
    for seed in seeds:
        rng = random.Random(seed)
        adds = [random_add(rng, number, 150, 700) for number in range(REQUESTS)]
        moments = sorted(rng.randrange(REQUESTS * 4) for _ in adds)
        arrivals: list[tuple[int, ToRunner]] = list(zip(moments, adds, strict=True))
        aborted = set(rng.sample(range(REQUESTS), 20))
        arrivals += [(moments[number] + rng.randint(0, 30), Abort(number)) for number in aborted]
        arrivals.sort(key=lambda arrival: arrival[0])
        plain = run(engine, False, arrivals, recording_link)
        # One of the two has its blocks all over the pool.
        overlapped = run(engine, True, arrivals, recording_link, scattered(rng))
        assert len(plain) == len(overlapped) == REQUESTS
        finishes |= {answer.finish for answer in plain.values()}
        for number in range(REQUESTS):
            one, other = plain[number], overlapped[number]
            if "abort" in (one.finish, other.finish):
                assert number in aborted
                shared = min(len(one.tokens), len(other.tokens))
                assert one.tokens[:shared] == other.tokens[:shared]
            else:
                assert one == other, f"seed {seed}, request {number}: {adds[number]}"
                assert one.finish == "stop" or len(one.tokens) == adds[number].max_tokens
    assert finishes == {"stop", "length", "abort"}


@pytest.mark.parametrize(
    ("layout", "kernels"),
    [(TransposedLinear, "torch"), (PackedLinear, "torch"), (CompiledLinear, "compiled")],
    indirect=["kernels"],
)
def test_alone_and_in_a_crowd_give_identical_tokens(layout, kernels, make_checkpoint, recording_link, monkeypatch):
    if layout is PackedLinear:
        if not packing_available():
            pytest.skip("this build of torch does not pack weights")
        monkeypatch.setattr("tandem_server.engine.native.linear.PACK_FROM_ELEMENTS", 0)
    # Some CPUs multiply one and two rows otherwise than four and more; four beside eight are alike on all known ones.
    engine = load(make_checkpoint("LlamaForCausalLM", **SHAPE), 8)
    assert {type(linear) for linear in engine._step._decoder.weights.linears()} == {layout}
    assert len(engine._step._sizes) > 1, "alone means a smaller batch here; otherwise the test shows nothing"
    rng = random.Random(7)
    adds = [random_add(rng, number, 150, 700) for number in range(30)]
    crowd = run(engine, True, [(0, add) for add in adds], recording_link)
    for add in adds:
        assert run(engine, True, [(0, add)], recording_link)[add.request] == crowd[add.request]
    fragmented = run(engine, False, [(0, add) for add in adds], recording_link, scattered(rng))
    assert fragmented == crowd


def test_the_seed_decides(make_checkpoint, recording_link):
    """Same seed, same answer; another seed, another one. Greedy ignores the seed."""
    engine = load(make_checkpoint("LlamaForCausalLM", **SHAPE), 4)

    def answers(*samplings: Sampling) -> list[tuple[int, ...]]:
        adds = [(0, Add(n, [5, 6, 7], 20, sampling)) for n, sampling in enumerate(samplings)]
        return [tuple(answer.tokens) for _, answer in sorted(run(engine, True, adds, recording_link).items())]

    one, same, other = answers(Sampling(seed=1), Sampling(seed=1), Sampling(seed=2))
    assert one == same != other
    greedy, also_greedy = answers(Sampling(temperature=0.0, seed=1), Sampling(temperature=0.0, seed=2))
    assert greedy == also_greedy


def test_no_end_before_min_tokens_and_no_bad_word(make_checkpoint, recording_link):
    """Every token ends the answer, so it has just as many as it must; what is forbidden is in none of many answers."""
    engine = load(make_checkpoint("LlamaForCausalLM", **SHAPE), 4)
    stops, bad = list(range(0, 150, 2)), [[1], [3, 5], [7, 9, 11]]
    samplings = [Sampling(temperature=3.0, seed=n, min_tokens=20, bad_words=bad) for n in range(12)]
    adds = [Add(n, [5, 6, 7], 100, sampling, stops) for n, sampling in enumerate(samplings)]
    found = run(engine, True, [(0, add) for add in adds], recording_link)
    assert min(len(answer.tokens) for answer in found.values()) == 20
    for answer in found.values():
        assert not set(answer.tokens) & set(stops), "a stop token is never among the tokens"
        for word in bad:
            runs = zip(*(answer.tokens[place:] for place in range(len(word))), strict=False)
            assert tuple(word) not in set(runs)


def test_logprobs_are_told_for_the_chosen_and_the_likeliest(make_checkpoint, recording_link):
    engine = load(make_checkpoint("LlamaForCausalLM", **SHAPE), 4)
    greedy = Sampling(temperature=0.0, logprobs=3)
    drawn = Sampling(temperature=1.5, seed=3, logprobs=0)
    answers = run(engine, True, [(0, Add(1, [9, 8], 6, greedy)), (0, Add(2, [9, 8], 6, drawn))], recording_link)
    for token, pairs in zip(answers[1].tokens, answers[1].logprobs, strict=True):
        assert len(pairs) == 4
        assert pairs[0] == pairs[1], "the greedy choice is the likeliest token"
        assert pairs[0][0] == token
        assert pairs[1][1] >= pairs[2][1] >= pairs[3][1]
    assert [pairs[0][0] for pairs in answers[2].logprobs] == answers[2].tokens
    assert all(len(pairs) == 1 and pairs[0][1] < 0 for pairs in answers[2].logprobs)


def test_a_request_with_nan_fails_alone_and_its_slot_is_clean_after(kernels, make_checkpoint, recording_link):
    """One token's embedding is NaN: only the request that has it fails, and the slot's next user is not touched."""
    engine = load(make_checkpoint("LlamaForCausalLM", **SHAPE), 2)
    healthy = Add(1, [5, 6, 7, 8], 30, Sampling(temperature=0.0))
    wanted = run(engine, True, [(0, healthy)], recording_link)[1].tokens
    bad = max(set(range(150)) - {*healthy.prompt, *wanted})
    engine._step._decoder.weights.embedding[bad] = torch.nan
    # Behind all that the healthy ones ever write, where only masking and zeroing stand between it and them.
    prompt = [5] * 60 + [bad] + [7] * 5
    poisoned = [Add(100 + n, prompt, 30, Sampling(temperature=1.0, seed=n)) for n in range(4)]
    arrivals = [(0, poisoned[0]), (0, healthy), *((0, add) for add in poisoned[1:])]
    arrivals += [(0, msgspec.structs.replace(healthy, request=number)) for number in (2, 3, 4)]
    for overlapped, choose in product((False, True), (near_home, scattered(random.Random(3)))):
        answers = run(engine, overlapped, arrivals, recording_link, choose)
        for add in poisoned:
            assert answers[add.request].finish == "error"
            assert "not a number" in (answers[add.request].error or "")
            assert answers[add.request].tokens == []
        for number in (1, 2, 3, 4):
            assert answers[number].tokens == wanted
            assert answers[number].finish == "length"


@torch.inference_mode()
def test_every_batch_size_in_use_was_proved_row_invariant():
    """A layer whose small batches come out otherwise is found out, and only whole batches are used."""

    class Varying:
        inputs, outputs, bytes = 8, 8, 0

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + 1e-6 * (len(x) == 2))

        def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return residual + self(x)

    assert row_invariant_sizes([Varying()], 8, torch.float32) == (1, 4, 8)
    assert row_invariant_sizes([Varying()], 1, torch.float32) == (1,)
