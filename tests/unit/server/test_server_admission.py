"""The line in front of the slots: a table of cases, a property over random operations, and the event-loop shell."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_site import until

from tandem_api.dialects import ApiError, Dialect, answer
from tandem_server.admission import Admission, PodBound
from tandem_server.line import Gate, Line, Place, Refusal, Refused


def entered(line: Line, count: int, now: float = 0.0) -> list:
    """What `count` newcomers get: their tickets, or the reason they were refused."""
    out = []
    for _ in range(count):
        try:
            out.append(line.enter(now))
        except Refused as refused:
            out.append(refused.reason)
    return out


@pytest.mark.parametrize(
    ("slots", "queue_max", "gate", "newcomers", "running", "waiting", "refused"),
    [
        (4, 16, Gate.OPEN, 40, 4, 16, 20),
        (4, 0, Gate.OPEN, 6, 4, 0, 2),
        (0, 3, Gate.OPEN, 5, 0, 3, 2),
        (2, 5, Gate.NO_WAITING, 4, 2, 0, 2),
        (2, 5, Gate.CLOSED, 4, 0, 0, 4),
        (1024, 65_536, Gate.OPEN, 1500, 1024, 476, 0),
    ],
)
def test_who_runs_who_waits_who_is_refused(slots, queue_max, gate, newcomers, running, waiting, refused):
    line = Line(queue_max, 30.0, slots=slots, gate=gate)
    got = entered(line, newcomers)
    reason = Refusal.QUEUE_FULL if gate is Gate.OPEN else Refusal.DRAINING
    assert (len(line.running), len(line.waiting), got.count(reason)) == (running, waiting, refused)


def test_slots_go_to_those_who_wait_in_order():
    line = Line(10, 30.0, slots=1)
    first, second, third = entered(line, 3)
    assert line.leave(first, 1.0) == [second]
    assert line.leave(first, 1.0) == [], "leaving twice frees nothing"
    assert line.leave(third, 1.0) == []
    assert third not in line.waiting
    assert line.leave(second, 1.0) == []
    assert (line.running, line.waiting) == ({}, {})


def test_fewer_slots_start_nobody_until_enough_have_left():
    line = Line(10, 30.0, slots=3)
    tickets = entered(line, 5)
    assert line.resize(1, 0.0) == []
    assert [line.leave(ticket, 0.0) for ticket in tickets[:2]] == [[], []]
    assert line.leave(tickets[2], 0.0) == [tickets[3]]
    assert line.resize(2, 0.0) == [tickets[4]]


def test_only_who_still_waits_at_the_deadline_expires():
    line = Line(10, 30.0, slots=1)
    runs, waits = entered(line, 2)
    assert not line.expire(runs, 100.0)
    assert not line.expire(waits, 29.9)
    assert line.expire(waits, 30.0)
    assert waits.place is Place.GONE


def test_the_wait_that_is_told_follows_the_measured_service():
    line = Line(100, 30.0, slots=2)
    assert line.expected_wait(0.0) == 0.5, "nothing measured: the first guess"
    first, *_ = entered(line, 6)
    assert line.expected_wait(8.0) == 8.0 * 5 / 2, "nothing ended: those who run have held their slots for so long"
    line.leave(first, 4.0)
    assert line.service_seconds == 4.0
    assert line.expected_wait(4.0) == 4.0 * 4 / 2


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "expire", "resize", "hand back", "gate"]), st.integers(0, 30)),
    max_size=120,
)


@settings(max_examples=200, deadline=None)
@given(operations=OPERATIONS, queue_max=st.integers(0, 6))
def test_whatever_happens_the_bounds_and_the_order_hold(operations, queue_max):
    line = Line(queue_max, 5.0, slots=2)
    tickets: list = []
    started: list = []
    now = 0.0
    for kind, number in operations:
        now += 1.0
        line.gate = Gate.OPEN
        before = len(line.running)
        if kind == "enter":
            try:
                ticket = line.enter(now)
                tickets.append(ticket)
                started += [ticket] if ticket.place is Place.RUNNING else []
            except Refused:
                assert len(line.waiting) == queue_max
                assert len(line.running) >= line.slots or line.waiting
        elif kind == "leave" and tickets:
            started += line.leave(tickets[number % len(tickets)], now)
        elif kind == "expire" and tickets:
            line.expire(tickets[number % len(tickets)], now)
        elif kind == "resize":
            started += line.resize(number % 5, now)
        elif kind == "hand back":
            line.hand_back()
        assert len(line.waiting) <= queue_max
        assert len(line.running) <= max(line.slots, before)
        assert not (line.waiting and len(line.running) < line.slots), "a slot is free while somebody waits"
        assert not line.running.keys() & line.waiting.keys()
        places = {ticket: ticket.place for ticket in tickets}
        assert {ticket for ticket, place in places.items() if place is Place.RUNNING} == set(line.running)
        assert {ticket for ticket, place in places.items() if place is Place.WAITING} == set(line.waiting)
    order = [tickets.index(ticket) for ticket in started]
    assert order == sorted(order), "somebody overtook"
    assert len(set(order)) == len(order), "somebody started twice"


def make(queue_max=10, timeout=30.0, slots=1, limit=100, reasons=None):
    bound = PodBound(limit)
    admission = Admission("m", queue_max, timeout, bound, on_refused=(reasons if reasons is not None else []).append)
    admission.resize(slots)
    return admission, bound


async def request(admission):
    """Waits for a slot as a request does, and holds it until it is cancelled."""
    access = admission.enter()
    try:
        await access.granted()
        await asyncio.Event().wait()
    finally:
        access.leave()


async def test_a_cancelled_wait_leaves_no_trace():
    admission, bound = make()
    running = admission.enter()
    waiting = asyncio.create_task(request(admission))
    await until(lambda: bound.waiting == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (bound.waiting, len(admission.line.waiting), admission.rejected_total) == (0, 0, 0)
    running.leave()
    await asyncio.wait_for(admission.idle(), 1)


async def test_a_slot_granted_in_the_moment_of_the_cancel_is_given_back():
    admission, _ = make()
    running = admission.enter()
    waiting = asyncio.create_task(request(admission))
    await until(lambda: admission.line.waiting)
    running.leave()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert admission.line.running == {}


async def test_an_expired_wait_is_refused_with_its_reason():
    reasons: list = []
    admission, bound = make(timeout=0.02, reasons=reasons)
    admission.enter()
    with pytest.raises(ApiError) as caught:
        await admission.enter().granted()
    told = answer(caught.value, Dialect.OPENAI)
    assert (told.status, told.body["error"]["code"]) == (503, "queue_timeout")
    assert told.headers["x-tandem-refused"] == "queue_timeout"
    assert 1 <= int(told.headers["Retry-After"]) <= 60
    assert (reasons, bound.waiting, admission.rejected_recently()) == ([Refusal.QUEUE_TIMEOUT], 0, 1)


async def test_handed_back_requests_are_told_to_go_elsewhere():
    admission, bound = make()
    running = admission.enter()
    waits = [asyncio.create_task(admission.enter().granted()) for _ in range(3)]
    await until(lambda: bound.waiting == 3)
    assert admission.hand_back() == 3
    for error in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(error, ApiError)
        assert error.refused == "draining"
    assert running.ticket.place is Place.RUNNING
    assert bound.waiting == 0


async def test_one_models_queue_leaves_a_share_to_each_other():
    bound = PodBound(12)
    lines = [Admission(name, 100, 30.0, bound) for name in ("a", "b", "c")]
    for _ in range(8):
        lines[0].enter()
    with pytest.raises(ApiError, match=r"8 wait, and 8 in the whole pod, which takes 12 \(maxQueue\)"):
        lines[0].enter()
    for line in lines[1:]:
        line.enter(), line.enter()
        with pytest.raises(ApiError):
            line.enter()
    assert bound.waiting == 12
    bound.leave("a")
    assert bound.waiting == 4


async def test_the_pod_wide_bound_holds_over_models():
    bound = PodBound(2)
    lines = [Admission(name, 10, 30.0, bound) for name in ("a", "b", "c")]
    lines[0].enter()
    waits = lines[1].enter()
    with pytest.raises(ApiError):
        lines[2].enter()
    waits.leave()
    lines[2].enter()
    assert bound.waiting == 2
    lines[0].resize(1)
    assert bound.waiting == 1
