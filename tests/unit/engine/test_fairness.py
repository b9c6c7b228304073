"""Nobody starves: what a long prompt costs its neighbours, and that everyone gets on under any load. Virtual time."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from fake_device import FakeDevice

from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.wire import Add, Sampling

STEP, TOKEN = 20.0, 0.125
"""Milliseconds that a step with decode rows takes, and each prompt token more: a CPU's relation, roughly."""
GREEDY = Sampling(temperature=0.0)
POLICIES = pytest.mark.parametrize("shared", [False, True], ids=["guaranteed", "shared"])


@dataclass
class Clocked:
    """Steps of a scheduler, each as long as what is in it."""

    limits: Limits
    now: float = 0.0
    admitted: list[int] = field(default_factory=list)
    told: dict[int, list[float]] = field(default_factory=dict)
    """When the tokens of each request came."""
    finished: list[int] = field(default_factory=list)
    last_turn: dict[int, int] = field(default_factory=dict)
    """By slot, the step in which it was last given anything to do."""
    longest_pause: int = 0
    """Steps for which a slot that had something to do was passed over."""

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, lambda add, slot: self.admitted.append(add.request))
        self.device = FakeDevice(self.limits)

    def step(self) -> bool:
        """Plans, computes and tells one step; False where there is nothing to do."""
        planned = self.scheduler.plan()
        if planned is None:
            return False
        plan = planned.plan
        for admission in plan.admitted:
            self.last_turn[admission.slot] = plan.number - 1
        for slot in plan.slots():
            self.longest_pause = max(self.longest_pause, plan.number - self.last_turn[slot])
            self.last_turn[slot] = plan.number
        tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
        assert tokens <= self.limits.budget
        self.now += STEP * bool(plan.decode) + TOKEN * tokens
        for row in self.scheduler.commit(planned, self.device.launch(plan).result()):
            self.told.setdefault(row.request, []).extend(self.now for _ in row.tokens)
            self.finished += [row.request] if row.finish else []
        return True

    def gaps(self, request: int) -> list[float]:
        """Between one token and the next."""
        times = self.told[request]
        return [later - earlier for earlier, later in pairwise(times)]


def prompt_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(1, 1000) for _ in range(length)]


@POLICIES
def test_a_prompt_of_30k_tokens_slows_its_neighbours_by_no_more_than_its_share_of_a_step(shared):
    """A step holds at most `budget` prompt tokens, so the factor is at most 1 + budget x time a token / time a step."""
    limits = Limits(4, 32_768, 1000, slot_blocks=1024, pool_blocks=2048 if shared else None)
    clocked, rng = Clocked(limits), random.Random(1)
    for request in (1, 2, 3):
        clocked.scheduler.add(Add(request, prompt_of(rng, 20), 300, GREEDY))
    for _ in range(20):
        clocked.step()
    before = max(max(clocked.gaps(request)) for request in (1, 2, 3))
    arrived = clocked.now
    clocked.scheduler.add(Add(4, prompt_of(rng, 30_000), 1, GREEDY))
    while 4 not in clocked.finished:
        clocked.step()
    most = 1 + limits.budget * TOKEN / STEP
    for request in (1, 2, 3):
        assert max(clocked.gaps(request)) <= most * before
    alone = 30_000 * TOKEN
    steps = -(-30_000 // limits.budget)
    assert clocked.told[4][0] - arrived <= alone + (steps + 1) * STEP, "nor does it wait for them"


@POLICIES
def test_short_prompts_do_not_wait_for_the_end_of_a_long_one(shared):
    limits = Limits(4, 32_768, 1000, slot_blocks=1024, pool_blocks=2048 if shared else None)
    clocked, rng = Clocked(limits), random.Random(2)
    clocked.scheduler.add(Add(0, prompt_of(rng, 30_000), 1, GREEDY))
    clocked.step()
    arrived = clocked.now
    for request in (1, 2, 3):
        clocked.scheduler.add(Add(request, prompt_of(rng, 200), 1, GREEDY))
    while len(clocked.finished) < 3:
        clocked.step()
    assert sorted(clocked.finished) == [1, 2, 3]
    assert clocked.now - arrived <= 3 * limits.budget * TOKEN


@POLICIES
def test_nobody_starves_under_random_load(shared, seeds):
    """Requests of all sizes come faster than they can be served: each is admitted in its turn, and then gets on."""
    for seed in range(4 * len(seeds)):
        rng = random.Random(seed)
        slots, blocks = rng.randint(1, 5), rng.randint(4, 12)
        limits = Limits(
            slots,
            context=blocks * 8,
            vocabulary=1000,
            chunk=rng.choice([4, 16]),
            budget=rng.choice([16, 24, 40]),
            slot_blocks=blocks,
            block=8,
            span=8,
            pool_blocks=rng.randint(blocks, slots * blocks) if shared else None,
        )
        clocked = Clocked(limits)
        kept = prompt_of(rng, limits.context)
        for request in range(60):
            length = rng.choice([1, rng.randint(1, 8), rng.randint(1, limits.context - 1)])
            prompt = kept[:length] if rng.random() < 0.3 else prompt_of(rng, length)
            room = limits.context - length
            keep = 2 if rng.random() < 0.2 else None
            most = rng.randint(1, room) if keep is None else rng.randint(1, 2 * limits.context)
            assert clocked.scheduler.add(Add(request, prompt, most, GREEDY, keep=keep)) is None
            for _ in range(rng.randint(0, 6)):
                clocked.step()
        while clocked.step():
            pass
        assert clocked.admitted == list(range(60)), "first come, first served, however large"
        assert sorted(clocked.finished) == list(range(60))
        assert clocked.longest_pause <= slots, "chunks go round, and who decodes does so in every step"
        assert clocked.scheduler.idle
