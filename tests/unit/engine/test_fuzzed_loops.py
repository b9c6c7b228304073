"""Random requests, aborts and ends on a fake device with adversarial timing, through both loops.

With the prefix cache and without, each slot with its whole context or all from one pool, prompts that begin alike,
answers that outgrow the context or must follow a grammar. Each request gets its own tokens whatever happens around it;
every slot and block is given out and taken back exactly once; nothing is read that the same request did not write
before, or one that began alike (the fake device refuses it).
"""

import os
import random
from dataclasses import dataclass

import msgspec
import pytest
from engine_fakes import RecordingLink, answers, scattered
from fake_device import NAN_TOKEN, FakeDevice, expected
from fake_grammar import compiler

from tandem_server.engine.native.blocks import near_home
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Abort, Add, Sampling, Stats, ToRunner

BATCHES = max(10, int(os.environ.get("TANDEM_SEEDS", "3")))
SCENARIOS = 1000
"""Of one batch, each through both loops."""
GREEDY = Sampling(temperature=0.0)


@dataclass
class Scenario:
    """Limits, and what arrives when."""

    limits: Limits
    arrivals: list[tuple[int, ToRunner]]
    successors: list[Add]
    fragmented: bool
    failing: float = 0.0
    """How often the device refuses one request's part of a step."""

    def adds(self) -> list[Add]:
        """All requests, in the order in which those of one id run."""
        return [message for _, message in self.arrivals if isinstance(message, Add)] + self.successors

    def aborted(self) -> set[int]:
        """Ids that an abort names."""
        return {message.request for _, message in self.arrivals if isinstance(message, Abort)}


def random_add(rng: random.Random, request: int, limits: Limits, known: list[Add]) -> Add:
    """A fresh prompt, or a further turn of an earlier request: its prompt, part of its answer, something new."""
    length = rng.choice([1, limits.chunk, limits.chunk + 1, rng.randint(1, limits.context - 1)])
    prompt = [rng.randrange(1, limits.vocabulary) for _ in range(length)]
    if known and rng.random() < 0.6:
        before = rng.choice(known)
        whole = before.prompt + expected(before, limits.vocabulary, limits.context)[0]
        prompt = whole[: rng.randint(1, len(whole))] + prompt[: rng.randint(0, 3)]
    prompt = prompt[: limits.context - 1]
    if rng.random() < 0.08:
        prompt[rng.randrange(len(prompt))] = NAN_TOKEN
    room = limits.context - len(prompt)
    most = min(room, rng.choice([1, 2, rng.randint(1, 8), room]))
    salt = rng.choice([0, 0, 0, 1])
    add = Add(
        request,
        prompt,
        most,
        Sampling(temperature=0.0, seed=salt),
        rng.sample(range(1, limits.vocabulary), rng.choice([0, 0, 1, 3])),
        salt=str(salt),
        grammar=rng.choice(["", "", "", "bad", "1", str(rng.randint(1, 12))]) if rng.random() < 0.5 else "",
    )
    if rng.random() < 0.25:
        most, own = rng.randint(1, 3 * limits.context), rng.choice([0, rng.randint(len(prompt) + 1, limits.context)])
        add = msgspec.structs.replace(add, keep=rng.randint(0, 5), max_tokens=most, context=own)
    known.append(add)
    return add


def random_scenario(rng: random.Random) -> Scenario:
    """Few slots, small chunks and blocks; requests at random moments; aborts before, while and after they run."""
    slot_blocks, chunk = rng.randint(1, 6), rng.randint(1, 5)
    slots, block = rng.randint(1, 4), rng.randint(1, 4)
    limits = Limits(
        slots=slots,
        context=max(2, slot_blocks * block - rng.randint(0, block - 1)),
        vocabulary=12,
        chunk=chunk,
        budget=rng.randint(chunk, 3 * chunk),
        slot_blocks=max(slot_blocks, 2 if block == 1 else 1),
        block=block,
        span=block * rng.choice([1, 1, 2, 3]),
        pool_blocks=rng.choice([None, rng.randint(max(2, slot_blocks), 2 + slots * slot_blocks)]),
        reuse=rng.random() < 0.8,
    )
    arrivals: list[tuple[int, ToRunner]] = []
    known: list[Add] = []
    successors: list[Add] = []
    for request in range(rng.choice([1, 2, 3, rng.randint(4, 9)])):
        moment = rng.randint(0, 12)
        arrivals.append((moment, random_add(rng, request, limits, known)))
        if rng.random() < 0.15:
            successors.append(random_add(rng, request, limits, known))
        if rng.random() < 0.35:
            arrivals.append((moment + rng.randint(-1, 12), Abort(request, rng.choice([0, 0, 1, 3, 99]))))
    rng.shuffle(arrivals)
    return Scenario(
        limits,
        sorted(arrivals, key=lambda arrival: arrival[0]),
        successors,
        rng.random() < 0.5,
        rng.choice([0, 0, 0.1]),
    )


def run(scenario: Scenario, overlapped: bool, rng: random.Random) -> tuple[Scheduler, FakeDevice, RecordingLink]:
    choose = scattered(rng) if scenario.fragmented else near_home
    scheduler, device = (
        Scheduler(scenario.limits, choose_blocks=choose, compile=compiler(scenario.limits.vocabulary, rng)),
        FakeDevice(scenario.limits, rng, scenario.failing),
    )
    link = RecordingLink(scenario.arrivals, scenario.successors)
    loop = Loop(scheduler, device, link, StatsKeeper(link, scheduler, device, clock=lambda: 0.0))
    (loop.run_overlapped if overlapped else loop.run_plain)()
    device.close()
    return scheduler, device, link


def check(scenario: Scenario, overlapped: bool, rng: random.Random) -> None:
    """Runs `scenario` through one loop; every claim of this file is asserted here or by the device."""
    scheduler, device, link = run(scenario, overlapped, rng)
    adds, aborted, vocabulary = scenario.adds(), scenario.aborted(), scenario.limits.vocabulary
    got = answers(link.sent)
    assert sum(map(len, got.values())) == len(adds), "each request ends exactly once"
    early, failed = 0, 0
    for add in adds:
        tokens, finish = got[add.request].pop(0)
        wanted_tokens, wanted_finish = expected(add, vocabulary, scenario.limits.context)
        if finish == "error" != wanted_finish:
            failed += 1
            assert tokens == wanted_tokens[: len(tokens)]
        elif finish == "abort":
            assert add.request in aborted
            assert tokens == wanted_tokens[: len(tokens)]
            assert len(tokens) < add.max_tokens
        else:
            assert (tokens, finish) == (wanted_tokens, wanted_finish)
        early += finish != "length"
    assert failed <= device.failed
    assert scheduler.idle
    assert scheduler.table.free == scenario.limits.slots
    assert scheduler.blocks.free == scheduler.blocks.count
    assert scheduler.blocks.taken == scheduler.blocks.returned == device.given
    assert scheduler.memory.found <= scheduler.memory.asked
    assert scenario.limits.reuse or not (scheduler.memory.found or scheduler.blocks.cached)
    # A step's later samples are a launch of their own.
    assert device.most_in_flight <= (3 if overlapped else 1)
    assert device.unread == 0
    assert scheduler.dropped <= (early if overlapped else 0), "an early end costs one row at most"
    assert [message for message in link.sent if isinstance(message, Stats)][-1].busy == 0


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_request_ends_once_with_its_own_tokens(batch):
    for seed in range(batch * SCENARIOS, (batch + 1) * SCENARIOS):
        scenario = random_scenario(random.Random(seed))
        for overlapped in (False, True):
            try:
                check(scenario, overlapped, random.Random(seed))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, overlapped {overlapped}: {error}\n{scenario}") from error


@pytest.mark.parametrize("overlapped", [False, True])
def test_an_abort_at_every_moment(overlapped):
    """Three requests on two slots, one of them in chunks; each is aborted at each moment of the run, also twice."""
    limits = Limits(slots=2, context=16, vocabulary=12, chunk=3, budget=4, slot_blocks=4, block=4, span=4)
    adds = [Add(0, [1, 2], 6, GREEDY), Add(1, [3, 4, 5, 6, 7, 8, 9, 1], 4, GREEDY), Add(2, [5], 5, GREEDY)]
    arrivals: list[tuple[int, ToRunner]] = [(0, add) for add in adds]
    _, _, undisturbed = run(Scenario(limits, arrivals, [], False), overlapped, random.Random(0))
    for moment in range(undisturbed.asked + 2):
        for request in range(3):
            for again in (None, 0, 1, 2):
                aborts = [(moment, Abort(request))] + ([] if again is None else [(moment + 1, Abort(again))])
                successor = msgspec.structs.replace(adds[0], request=request)
                scenario = Scenario(limits, sorted(arrivals + aborts, key=lambda a: a[0]), [successor], again == 2)
                check(scenario, overlapped, random.Random(moment))
