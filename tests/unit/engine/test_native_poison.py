"""The real device with poisoned memory: what a request did not write itself never reaches its tokens.

A slot finds its new blocks full of NaN, but for those that the prefix cache had, and NaN stands wherever else the step
keeps numbers by slot. One NaN that is read, even only to be masked, makes the request end with an error or with other
tokens.
"""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from engine_fakes import RecordingLink, answers, scattered

from tandem_server.engine.native.blocks import BLOCK, near_home
from tandem_server.engine.native.cpu_decoder import CpuDecoder
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.executors import InlineExecutor, WorkerExecutor
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.plan import NOTHING, StepPlan
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.native.step import StepOutput
from tandem_server.engine.wire import Abort, Add, RunnerSpec, Sampling, ToRunner

pytestmark = pytest.mark.torch

VOCABULARY, CONTEXT, SLOTS = 150, 640, 3
REQUESTS = 40


class PoisonedStep:
    """Computes plans with memory that is NaN until the request itself has written to it."""

    def __init__(self, engine: NativeEngine) -> None:
        self._step = engine._step
        self._cache = self._step._decoder.cache
        self._cache.pool.fill_(torch.nan)
        self._step._hidden.fill_(torch.nan)
        self._step._last_tokens.fill_(NOTHING)
        self._step._checked = True

    def compute(self, plan: StepPlan) -> StepOutput:
        # Moves come first: what lies in a slot's blocks may just be leaving them.
        self._cache.move(plan.moves)
        for seat in (*plan.reseated, *plan.admitted):
            self.fill(seat.blocks[seat.reused :], torch.nan)
        return self._step.compute(replace(plan, moves=()))

    def fill(self, blocks: tuple[int, ...], value: float) -> None:
        for block in blocks:
            self._cache.pool[:, :, block * BLOCK : (block + 1) * BLOCK] = value


@pytest.fixture
def engine(kernels, make_checkpoint) -> NativeEngine:
    folder = make_checkpoint("LlamaForCausalLM", hidden_size=64, num_hidden_layers=2, vocab_size=VOCABULARY)
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=SLOTS, context=CONTEXT, threads=1)
    return load_generator(spec, lambda *_: None)


def random_add(rng: random.Random, request: int, known: list[list[int]]) -> Add:
    """Half of the prompts go on from an earlier one, as a chat does."""
    length = rng.choice([1, BLOCK, BLOCK + 1, 63, 64, rng.randint(2, 120), rng.randint(250, 600)])
    sampling = Sampling(temperature=rng.choice([0.0, 1.0]), top_k=rng.choice([0, 20]), seed=rng.getrandbits(60))
    prompt = [rng.randrange(VOCABULARY) for _ in range(length)]
    if known and rng.random() < 0.5:
        prompt = (rng.choice(known) + prompt[: rng.randint(1, 40)])[: CONTEXT - 1]
    known.append(prompt)
    most = min(CONTEXT - len(prompt), rng.choice([1, rng.randint(2, 12), 70]))
    return Add(request, prompt, most, sampling, rng.sample(range(VOCABULARY), rng.choice([0, 2, 6])))


def run(engine: NativeEngine, compute, overlapped: bool, arrivals: list[tuple[int, ToRunner]], choose) -> dict:
    executor = (WorkerExecutor if overlapped else InlineExecutor)(compute)
    cache, limits = engine._step._decoder.cache, engine._limits
    cache.shared = choose is not near_home
    if cache.shared:
        limits = replace(limits, pool_blocks=limits.slots * limits.slot_blocks)
    scheduler, link = Scheduler(limits, choose_blocks=choose), RecordingLink(arrivals)
    loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor))
    if isinstance(executor, WorkerExecutor):
        executor.run_beside(loop.run_overlapped)
    else:
        loop.run_plain()
    assert scheduler.blocks.taken == scheduler.blocks.returned
    return {request: ends[0] for request, ends in answers(link.sent).items()}


def test_nothing_is_read_that_the_request_did_not_write(engine, seeds):
    for seed in seeds[: max(1, len(seeds) // 3)]:
        rng = random.Random(seed)
        arrivals: list[tuple[int, ToRunner]] = []
        known: list[list[int]] = []
        for request in range(REQUESTS):
            moment = rng.randrange(REQUESTS * 5)
            arrivals.append((moment, random_add(rng, request, known)))
            if rng.random() < 0.2:
                arrivals.append((moment + rng.randint(0, 30), Abort(request)))
        arrivals.sort(key=lambda arrival: arrival[0])
        alone = {
            add.request: run(engine, engine._step.compute, False, [(0, add)], near_home)[add.request]
            for _, add in arrivals
            if isinstance(add, Add)
        }
        finishes: Counter[str] = Counter()
        for overlapped in (False, True):
            for choose in (near_home, scattered(rng)):
                got = run(engine, PoisonedStep(engine).compute, overlapped, arrivals, choose)
                assert len(got) == REQUESTS
                for request, (tokens, finish) in got.items():
                    finishes[finish] += 1
                    if finish == "abort":
                        assert tokens == alone[request][0][: len(tokens)]
                    else:
                        assert (tokens, finish) == alone[request], f"seed {seed}, overlapped {overlapped}"
        assert set(finishes) == {"length", "stop", "abort"}
        engine._step._decoder.cache.pool.zero_()


def test_the_poison_would_be_noticed(kernels, engine, monkeypatch):
    """The same without the zeroing that stands between masked positions and the numbers of others.

    Our kernels read no such positions; there one that was not written yet is added.
    """
    poisoned = PoisonedStep(engine)
    monkeypatch.setattr("tandem_server.engine.native.cache.PagedCache.clean", lambda *_: None)
    if kernels == "compiled":
        layers = CpuDecoder._layers
        monkeypatch.setattr(
            CpuDecoder,
            "_layers",
            lambda self, tokens, turned, seen, *more: layers(self, tokens, turned, seen + 1, *more),
        )
    limits: Limits = engine._limits
    assert limits.slot_blocks * BLOCK > 64
    got = run(engine, poisoned.compute, False, [(0, Add(1, [5, 6, 7], 5, Sampling(temperature=0.0)))], near_home)
    assert got[1][1] == "error"
    engine._step._decoder.cache.pool.zero_()
