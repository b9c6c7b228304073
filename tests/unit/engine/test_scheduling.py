"""Scheduling: who gets what in which step, and when a slot is free again. No torch, no clock, no sleep."""

from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from fake_device import NAN_TOKEN, FakeDevice, expected

from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.plan import StepResult
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Add, Sampling, Stop, TokenRow, Tokens, ToRunner

LIMITS = Limits(slots=3, context=40, vocabulary=50, chunk=4, budget=6, slot_blocks=10, block=4, span=4, reuse=False)


def run(arrivals: list[tuple[int, ToRunner]], overlapped: bool, link_class) -> tuple[Scheduler, FakeDevice, list]:
    scheduler, device, link = Scheduler(LIMITS), FakeDevice(LIMITS), link_class(arrivals)
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


def add(request: int, prompt: int = 3, most: int = 5, stops: tuple[int, ...] = ()) -> Add:
    return Add(request, list(range(1, prompt + 1)), most, Sampling(temperature=0.0), list(stops))


def test_max_tokens_costs_no_row_and_misses_none(recording_link):
    scheduler, device, sent = run([(0, add(1, most=9))], True, recording_link)
    assert len(rows_by_request(sent)[1]) == 9
    assert scheduler.dropped == 0
    assert device.launched == 9, "one prompt step that samples, eight decode steps"


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


def test_a_long_prompt_does_not_hold_up_short_ones_behind_it():
    """Nor do ever new short ones starve it: chunks go round."""
    scheduler = Scheduler(LIMITS)
    scheduler.add(add(1, prompt=30, most=5))
    assert step(scheduler) == [(0, 0)]
    scheduler.add(add(2, prompt=3, most=1))
    assert step(scheduler) == [(0, 4)], "the budget of 6 has no room for a second one of 3 beside the first one's 4"
    assert step(scheduler) == [(1, 0)], "then it is the short one's turn, and a second one of 4 has no room"
    seen = []
    for request in range(3, 40):
        scheduler.add(add(request, prompt=4, most=1))
        seen += step(scheduler)
    own = [(when, start) for when, (slot, start) in enumerate(seen) if slot == 0][:6]
    assert [start for _, start in own] == [8, 12, 16, 20, 24, 28]
    waits = [later - earlier for (earlier, _), (later, _) in pairwise(own)]
    assert max(waits) <= LIMITS.slots


def step(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Plans and commits one step; (slot, start) of its chunks."""
    planned = scheduler.plan()
    assert planned
    scheduler.commit(planned, StepResult(dict.fromkeys((slot for slot, _ in planned.plan.samples), 3)))
    return [(chunk.slot, chunk.start) for chunk in planned.plan.chunks]


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


CACHED = replace(LIMITS, reuse=True)


def run_alone(scheduler: Scheduler, device: FakeDevice, request: Add, tokens: int = 1000) -> list[int]:
    """Runs `request`, alone and at most until it has made so many tokens; what it made."""
    assert scheduler.add(request) is None
    made: list[int] = []
    while len(made) < tokens and (planned := scheduler.plan()):
        rows = scheduler.commit(planned, device.launch(planned.plan).result())
        made += [token for row in rows for token in row.tokens]
    return made


def test_a_second_turn_computes_only_what_is_new():
    scheduler, device = Scheduler(CACHED), FakeDevice(CACHED)
    first = add(1, prompt=10, most=7)
    answer = run_alone(scheduler, device, first)
    assert device.computed == 10
    again = replace_request(first, 2, prompt=[*first.prompt, *answer, 8, 9])
    run_alone(scheduler, device, again)
    # Of 17 tokens of the first turn 16 were put in, which is 4 blocks of 4; 3 of 19 are computed.
    assert device.computed == 10 + 3
    assert (scheduler.memory.asked, scheduler.memory.found) == (29, 16)


@pytest.mark.parametrize(("change", "found"), [({}, 8), ({"salt": "other"}, 0), ({"prompt": [*range(2, 12)]}, 0)])
def test_only_the_same_beginning_under_the_same_salt_is_found(change, found):
    scheduler, device = Scheduler(CACHED), FakeDevice(CACHED)
    run_alone(scheduler, device, add(1, prompt=10))
    salted = {"sampling": Sampling(temperature=0.0, seed=1)} if "salt" in change else {}
    run_alone(scheduler, device, replace_request(add(2, prompt=10), 2, **change, **salted))
    assert scheduler.memory.found == found


def test_the_last_token_of_a_prompt_is_always_computed():
    scheduler, device = Scheduler(CACHED), FakeDevice(CACHED)
    for request in (1, 2):
        run_alone(scheduler, device, add(request, prompt=8))
    assert scheduler.memory.found == 4, "the second block of 4 ends with the last token"


def test_a_running_neighbour_shares_its_prompt_once_its_first_token_is_there():
    scheduler, device = Scheduler(CACHED), FakeDevice(CACHED)
    run_alone(scheduler, device, add(1, prompt=9, most=20), tokens=2)
    run_alone(scheduler, device, add(2, prompt=9, most=1), tokens=1)
    assert scheduler.memory.found == 8


@pytest.mark.parametrize(("accepted", "found"), [(0, 8), (3, 12), (99, 16)])
def test_tokens_behind_a_stop_string_are_not_kept(accepted, found):
    """The front end aborts at a stop string and tells how many tokens come before it."""
    scheduler, device = Scheduler(CACHED), FakeDevice(CACHED)
    first = add(1, prompt=9, most=20)
    answer = run_alone(scheduler, device, first, tokens=8)
    assert scheduler.abort(1, accepted) is not None
    run_alone(scheduler, device, replace_request(first, 2, prompt=[*first.prompt, *answer, 5], max_tokens=1))
    assert scheduler.memory.found == found


def test_a_token_of_a_step_in_flight_is_not_kept():
    scheduler, device = Scheduler(CACHED), FakeDevice(CACHED)
    scheduler.add(add(1, prompt=9, most=20))
    planned = [scheduler.plan() for _ in range(4)]
    for step in planned[:3]:
        assert step
        scheduler.commit(step, device.launch(step.plan).result())
    assert scheduler.blocks.cached == 2, "the prompt's full blocks; the step of its last chunk is committed"
    assert planned[3]


def test_a_failed_prompt_is_not_kept():
    scheduler, device = Scheduler(CACHED), FakeDevice(CACHED)
    assert run_alone(scheduler, device, replace_request(add(1, prompt=12), 1, prompt=[1] * 11 + [NAN_TOKEN])) == []
    assert scheduler.blocks.cached == 0


def test_a_large_request_is_not_overtaken_in_a_shared_pool():
    limits, order = replace(LIMITS, pool_blocks=12), list[int]()
    scheduler, device = Scheduler(limits, lambda add, slot: order.append(add.request)), FakeDevice(limits)
    for request, prompt in ((1, 20), (2, 32), (3, 2)):
        scheduler.add(add(request, prompt=prompt, most=8))
    alone = 0
    for later in range(4, 60):
        scheduler.add(add(later, prompt=2, most=2))
        planned = scheduler.plan()
        assert planned
        alone += order == [1]
        scheduler.commit(planned, device.launch(planned.plan).result())
    assert alone >= 8, "7 blocks of 12 are held; the second one needs 10, and nobody is let past it"
    assert order[:3] == [1, 2, 3]
    assert order == sorted(order)


def test_who_shifts_in_a_shared_pool_needs_no_block_of_others():
    """It gives its blocks back and takes as many: were some of them others' too, there might not be enough."""
    limits = Limits(slots=2, context=6, vocabulary=50, chunk=4, budget=6, slot_blocks=3, block=2, span=2, pool_blocks=5)
    scheduler, device = Scheduler(limits), FakeDevice(limits)
    run_alone(scheduler, device, Add(1, [1, 2, 3], 3, Sampling(temperature=0.0)), tokens=1)
    shifting = Add(2, [1, 2, 9], 10, Sampling(temperature=0.0), keep=0)
    assert scheduler.add(shifting) is None
    planned = scheduler.plan()
    assert planned
    assert not planned.admitted, "it needs 3 blocks of its own and 2 are free"
    scheduler.commit(planned, device.launch(planned.plan).result())
    made: list[int] = []
    while planned := scheduler.plan():
        rows = scheduler.commit(planned, device.launch(planned.plan).result())
        made += [token for row in rows if row.request == 2 for token in row.tokens]
    assert (made, "length") == expected(shifting, 50, 6)
    assert scheduler.blocks.taken == scheduler.blocks.returned


def test_a_shift_keeps_the_beginning_and_the_newer_half():
    limits = replace(CACHED, context=12, slot_blocks=3)
    scheduler, device = Scheduler(limits), FakeDevice(limits)
    request = Add(1, [1, 2, 3, 4, 5], 20, Sampling(temperature=0.0), keep=4)
    made = run_alone(scheduler, device, request)
    assert len(made) == 20, "neither lost nor doubled"
    assert (made, "length") == expected(request, 50, 12)
    # 12 positions are full after 7 tokens and the 8th is known: 4 stay, of the next 8 half go, 5 and the 4 are read.
    # So it is again after every 4 tokens; of the 9 the first block is found each time.
    assert device.computed == 5 + 5 * 3
    assert scheduler.memory.asked == 5


def replace_request(add: Add, request: int, **changes: object) -> Add:
    return msgspec.structs.replace(add, request=request, **changes)


def test_releasing_a_slot_twice_is_noticed():
    scheduler = Scheduler(LIMITS)
    slot = scheduler.table.take(1)
    scheduler.table.release(slot, 1)
    with pytest.raises(AssertionError, match="slot 0 was released by request 1, but None holds it"):
        scheduler.table.release(slot, 1)


def test_stop_ends_the_loop_with_work_in_flight(recording_link):
    link = recording_link([(0, add(1, most=20)), (4, Stop())])
    scheduler, device = Scheduler(LIMITS), FakeDevice(LIMITS)
    Loop(scheduler, device, link, StatsKeeper(link, scheduler, device)).run_overlapped()
    device.close()
    assert not scheduler.idle
