"""Scheduling on a fake device with adversarial timing: whatever arrives whenever, each slot is released exactly once.

The fake keeps what a real device keeps by slot (poisoned with -1) and computes a launched step as late as it may:
only when its result is asked for, or when a step behind it is. No torch, no clock, no sleep.
"""

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.plan import BAD_ROW, NOTHING, StepPlan, StepResult
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Abort, Add, Sampling, Stats, Stop, TokenRow, Tokens, ToRunner

SEEDS = int(os.environ.get("TANDEM_SEEDS", "3"))
VOCABULARY = 50
STOP_TOKEN = 7
NAN_TOKEN = 49
LIMITS = Limits(slots=3, context=40, vocabulary=VOCABULARY, chunk=4, budget=6)


def next_token(history: list[int]) -> int:
    """The fake model: depends on the whole history; a prompt that holds NAN_TOKEN breaks it."""
    if NAN_TOKEN in history:
        return BAD_ROW
    return (sum((place + 1) * token for place, token in enumerate(history)) * 31 + len(history)) % (VOCABULARY - 1)


@dataclass
class FakeDevice:
    """Slots' caches as lists of tokens; refuses whatever a real device would silently compute wrongly."""

    slots: int
    device_seconds: float = 0.0
    queue: list["FakePending"] = field(default_factory=list)
    most_in_flight: int = 0
    unread: int = 0

    def __post_init__(self) -> None:
        self.cache: list[list[int]] = [[] for _ in range(self.slots)]
        self.last = [NOTHING] * self.slots
        self.dirty = [False] * self.slots
        self.numbers: list[int] = []

    def launch(self, plan: StepPlan) -> "FakePending":
        pending = FakePending(self, plan)
        self.queue.append(pending)
        self.unread += 1
        self.most_in_flight = max(self.most_in_flight, self.unread)
        assert plan.number == len(self.numbers) + 1
        self.numbers.append(plan.number)
        return pending

    def close(self) -> None:
        self.compute_up_to(None)

    def compute_up_to(self, pending: "FakePending | None") -> None:
        while self.queue and (pending is None or pending.outcome is None):
            first = self.queue.pop(0)
            first.outcome = self._compute(first.plan)

    def _compute(self, plan: StepPlan) -> StepResult:
        for slot in plan.cleared:
            self.dirty[slot] = False
        for admission in plan.admitted:
            assert not self.dirty[admission.slot], "a slot with broken numbers was given out uncleaned"
            self.cache[admission.slot] = []
            self.last[admission.slot] = NOTHING
        for row in plan.decode:
            assert self.last[row.slot] != NOTHING, "a decode row read a poisoned token"
            assert row.position == len(self.cache[row.slot])
            self.cache[row.slot].append(max(0, self.last[row.slot]))
        for chunk in plan.chunks:
            assert chunk.start == len(self.cache[chunk.slot])
            self.cache[chunk.slot] += chunk.tokens
            self.dirty[chunk.slot] |= NAN_TOKEN in chunk.tokens
        tokens = {}
        for slot, position in plan.samples:
            assert position == len(self.cache[slot])
            tokens[slot] = next_token(self.cache[slot])
            self.last[slot] = tokens[slot]
        assert len({*tokens}) == len(plan.samples), "a slot was sampled twice in one step"
        return StepResult(tokens)


@dataclass
class FakePending:
    device: FakeDevice
    plan: StepPlan
    outcome: StepResult | None = None

    def result(self) -> StepResult:
        self.device.compute_up_to(self)
        self.device.unread -= 1
        assert self.outcome is not None
        return self.outcome


def expected(add: Add) -> tuple[list[int], str]:
    """What the request gets when nothing interferes."""
    history, tokens = list(add.prompt), []
    while len(tokens) < add.max_tokens:
        token = next_token(history)
        if token == BAD_ROW:
            return tokens, "error"
        if token in add.stop_tokens:
            return tokens, "stop"
        tokens.append(token)
        history.append(token)
    return tokens, "length"


def run(arrivals: list[tuple[int, ToRunner]], overlapped: bool, link_class) -> tuple[Scheduler, FakeDevice, list]:
    scheduler, device, link = Scheduler(LIMITS), FakeDevice(LIMITS.slots), link_class(arrivals)
    loop = Loop(scheduler, device, link, StatsKeeper(link, scheduler, device, clock=lambda: 0.0))
    (loop.run_overlapped if overlapped else loop.run_plain)()
    device.close()
    return scheduler, device, link.sent


def rows_by_request(sent: list) -> dict[int, list[TokenRow]]:
    rows: dict[int, list[TokenRow]] = {}
    for message in sent:
        for row in message.rows if isinstance(message, Tokens) else ():
            rows.setdefault(row.request, []).append(row)
    return rows


@st.composite
def traffic(draw) -> list[tuple[int, ToRunner]]:
    """Requests at random moments, some aborted at random moments, even before they came or after they ended."""
    arrivals: list[tuple[int, ToRunner]] = []
    for request in range(draw(st.integers(1, 14))):
        moment = draw(st.integers(0, 40))
        prompt = draw(st.lists(st.integers(0, VOCABULARY - 2), min_size=1, max_size=15))
        if draw(st.integers(0, 9)) == 0:
            prompt[0] = NAN_TOKEN
        stops = draw(st.sampled_from([[], [STOP_TOKEN], list(range(10))]))
        arrivals.append((moment, Add(request, prompt, draw(st.integers(1, 20)), Sampling(temperature=0.0), stops)))
        if draw(st.integers(0, 3)) == 0:
            arrivals.append((moment + draw(st.integers(-2, 20)), Abort(request)))
    return sorted(arrivals, key=lambda arrival: arrival[0])


@pytest.mark.parametrize("overlapped", [False, True])
@settings(max_examples=50 * SEEDS, deadline=None, derandomize=SEEDS <= 3, suppress_health_check=[HealthCheck.too_slow])
@given(arrivals=traffic())
def test_every_request_ends_once_with_its_own_tokens(recording_link, overlapped, arrivals):
    scheduler, device, sent = run(arrivals, overlapped, recording_link)
    rows = rows_by_request(sent)
    aborted = {message.request for _, message in arrivals if isinstance(message, Abort)}
    adds = [message for _, message in arrivals if isinstance(message, Add)]
    for add in adds:
        own = rows[add.request]
        assert [row.finish is not None for row in own] == [False] * (len(own) - 1) + [True]
        tokens, finish = [token for row in own for token in row.tokens], own[-1].finish
        wanted_tokens, wanted_finish = expected(add)
        assert len(tokens) <= add.max_tokens
        if finish == "abort":
            assert add.request in aborted
            assert tokens == wanted_tokens[: len(tokens)]
        else:
            assert (tokens, finish) == (wanted_tokens, wanted_finish)
    assert scheduler.idle
    assert scheduler.table.free == LIMITS.slots
    assert device.most_in_flight <= (2 if overlapped else 1)
    ended_early = sum(expected(add)[1] in ("stop", "error") or add.request in aborted for add in adds)
    assert scheduler.dropped <= (ended_early if overlapped else 0), "an early end costs one row at most"
    assert [message for message in sent if isinstance(message, Stats)][-1].busy == 0


def add(request: int, prompt: int = 3, most: int = 5, stops: tuple[int, ...] = ()) -> Add:
    return Add(request, list(range(1, prompt + 1)), most, Sampling(temperature=0.0), list(stops))


def test_max_tokens_costs_no_row_and_misses_none(recording_link):
    scheduler, device, sent = run([(0, add(1, most=9))], True, recording_link)
    assert len(rows_by_request(sent)[1]) == 9
    assert scheduler.dropped == 0
    assert len(device.numbers) == 9, "one prompt step that samples, eight decode steps"


def test_the_next_step_is_launched_before_the_last_one_is_known(recording_link):
    _, overlapped, _ = run([(0, add(1, most=9))], True, recording_link)
    _, plain, _ = run([(0, add(1, most=9))], False, recording_link)
    assert (overlapped.most_in_flight, plain.most_in_flight) == (2, 1)


def test_admission_is_first_in_first_out():
    order: list[tuple[int, int]] = []
    scheduler = Scheduler(LIMITS, lambda add, slot: order.append((add.request, slot)))
    for request in (5, 4, 9, 1, 2):
        assert scheduler.add(add(request)) is None
    scheduler.plan()
    assert order == [(5, 0), (4, 1), (9, 2)]
    assert scheduler.abort(4) == TokenRow(4, [], "abort")
    scheduler.plan()
    assert order == [(5, 0), (4, 1), (9, 2)], "its slot is still written to by the first step"


def test_an_abort_frees_the_slot_within_two_steps_and_not_before_the_step_in_flight_is_done():
    scheduler = Scheduler(LIMITS)
    scheduler.add(add(1))
    first = scheduler.plan()
    second = scheduler.plan()
    assert first
    assert second
    assert scheduler.abort(1) == TokenRow(1, [], "abort")
    assert scheduler.abort(1) is None, "an abort is answered once"
    assert scheduler.table.busy == 1
    assert scheduler.commit(first, StepResult({0: 3})) == []
    assert scheduler.table.busy == 1
    assert scheduler.commit(second, StepResult({0: 4})) == []
    assert scheduler.table.busy == 0
    assert scheduler.idle


def test_a_long_prompt_does_not_starve_decoding():
    scheduler = Scheduler(LIMITS)
    scheduler.add(add(1, prompt=1, most=30))
    first = scheduler.plan()
    assert first
    scheduler.commit(first, StepResult({0: 3}))
    scheduler.add(add(2, prompt=30, most=5))
    steps = 0
    while True:
        planned = scheduler.plan()
        assert planned
        assert [row.slot for row in planned.plan.decode][:1] == [0], "the first request decodes in every step"
        assert sum(len(chunk.tokens) for chunk in planned.plan.chunks) <= LIMITS.budget
        steps += 1
        scheduler.commit(planned, StepResult(dict.fromkeys((slot for slot, _ in planned.plan.samples), 3)))
        if any(chunk.final for chunk in planned.plan.chunks):
            break
    assert steps == 7, "chunks of 4, one a step, since two exceed the budget of 6; the last two, of 4 and 2, do not"


def test_chunk_borders_depend_on_the_request_alone():
    def borders(neighbours: int) -> list[tuple[int, int]]:
        scheduler = Scheduler(LIMITS)
        for request in range(neighbours):
            scheduler.add(add(100 + request, prompt=6 + request, most=20))
        scheduler.add(add(1, prompt=15, most=1))
        seen: list[tuple[int, int]] = []
        for _ in range(20):
            planned = scheduler.plan()
            if planned:
                seen += [(c.start, len(c.tokens)) for c in planned.plan.chunks if c.slot == neighbours]
                scheduler.commit(planned, StepResult(dict.fromkeys((slot for slot, _ in planned.plan.samples), 3)))
        return seen

    assert borders(0) == borders(1) == borders(2) == [(0, 4), (4, 4), (8, 4), (12, 3)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Add(1, [], 3, Sampling()), "no tokens"),
        (Add(1, [50], 3, Sampling()), "token id 50 of the prompt is outside the vocabulary of 50"),
        (Add(1, [3, -1], 3, Sampling()), "token id -1"),
        (Add(1, [3], 0, Sampling()), "max_tokens is 0"),
        (Add(1, [3] * 38, 3, Sampling()), "exceed the context of 40 tokens"),
    ],
)
def test_a_bad_request_is_answered_and_takes_no_slot(bad, said):
    scheduler = Scheduler(LIMITS)
    row = scheduler.add(bad)
    assert row
    assert row.finish == "error"
    assert said in (row.error or "")
    assert scheduler.idle


def test_a_request_id_used_twice_ends_with_one_final_row(recording_link):
    scheduler, _, sent = run([(0, add(1, most=20)), (6, add(1, most=20)), (9, add(2))], True, recording_link)
    rows = rows_by_request(sent)
    assert [row.finish for row in rows[1] if row.finish] == ["error"]
    assert rows[1][-1].error == "request id 1 is in use already"
    assert rows[2][-1].finish == "length"
    assert scheduler.table.free == LIMITS.slots


def test_releasing_a_slot_twice_is_noticed():
    scheduler = Scheduler(LIMITS)
    slot = scheduler.table.take(1)
    scheduler.table.release(slot, 1)
    with pytest.raises(AssertionError, match="slot 0 was released by request 1, but None holds it"):
        scheduler.table.release(slot, 1)


def test_stop_ends_the_loop_with_work_in_flight(recording_link):
    link = recording_link([(0, add(1, most=20)), (4, Stop())])
    scheduler, device = Scheduler(LIMITS), FakeDevice(LIMITS.slots)
    Loop(scheduler, device, link, StatsKeeper(link, scheduler, device)).run_overlapped()
    device.close()
    assert not scheduler.idle
