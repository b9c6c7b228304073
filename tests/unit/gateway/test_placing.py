"""In which order pods are asked, where a cold model goes, and when a further copy is due."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_api import placement
from tandem_api.report import RoomReport
from tandem_gateway.objects import PodView
from tandem_gateway.placing import CROWDED_SECONDS, Choice, PodLoad, Want, Warmth, choose, fits, fits_beside

WANT = Want("uid-of-model", size=10)
FIRST, SECOND, THIRD, FOURTH = placement.order(WANT.uid, ["a", "b", "c", "d"])
LONG = CROWDED_SECONDS


def pod(uid: str, **state: object) -> PodView:
    return replace(PodView("default", uid, uid, "pool", "10.0.0.1", ready=True), **state)  # type: ignore[arg-type]


def order(pods: list[PodView], loads: dict[str, PodLoad] | None = None) -> list[str]:
    known = loads or {}
    return [each.uid for each in choose(pods, lambda each: known.get(each.uid, PodLoad(slots=4)), lambda _: 0.0).pods]


def test_ready_pods_hide_all_others() -> None:
    terminating, unready = pod("a", terminating=True), pod("b", ready=False, was_ready=True)
    assert order([terminating, unready, pod("c")]) == ["c"]
    assert order([terminating, unready]) == ["b", "a"]


def test_pods_that_cannot_answer_are_never_named() -> None:
    starting = pod("a", ready=False)
    ended = pod("b", terminating=True, running=False)
    nowhere = pod("c", ip="")
    assert order([starting, ended, nowhere]) == []


def test_load_counts_in_relation_to_slots() -> None:
    loads = {
        "a": PodLoad(3, 4),
        "b": PodLoad(4, 16),
        "c": PodLoad(0, 4, suspect=True),
        "d": PodLoad(0, 4, draining=True),
    }
    assert order([pod("a"), pod("b"), pod("c"), pod("d")], loads) == ["b", "a", "c", "d"]


def test_a_pod_that_holds_the_model_comes_before_one_that_would_have_to_load_it() -> None:
    loads = {"a": PodLoad(9, 4), "b": PodLoad(0, 4, warmth=Warmth.COLD), "c": PodLoad(0, 4, warmth=Warmth.ABSENT)}
    assert order([pod("c"), pod("b"), pod("a")], loads) == ["a", "b", "c"]


def room(free: int = 0, reach: int = 0, free_seats: int = 1, reach_seats: int = 1) -> RoomReport:
    return RoomReport(free_bytes=free, reach_bytes=reach, free_seats=free_seats, reach_seats=reach_seats)


ROOMY = room(10, 10)
BUSY = room(0, 9)
"""A model that has requests is in the way."""


def cold(has: RoomReport | None = ROOMY, **state: object) -> PodLoad:
    return replace(PodLoad(slots=4, warmth=Warmth.COLD, room=has), **state)  # type: ignore[arg-type]


def holder(queue: float = 9, seconds: float = LONG, **state: object) -> PodLoad:
    """A pod that holds the model, with so many waiting beyond its 4 slots, for so long more than 4."""
    return replace(PodLoad(4 + queue, 4, crowded_seconds=seconds), **state)  # type: ignore[arg-type]


def chosen(loads: dict[str, PodLoad], want: Want = WANT) -> Choice:
    return choose([pod(uid) for uid in loads], lambda each: loads[each.uid], lambda _: 0.0, want)


def first(loads: dict[str, PodLoad], want: Want = WANT) -> str:
    return chosen(loads, want).pods[0].uid


@pytest.mark.parametrize(
    ("has", "within_reach", "beside"),
    [
        (None, True, False),
        (room(10, 10), True, True),
        (room(9, 10), True, False),
        (room(9, 9), False, False),
        (room(10, 10, 0, 1), True, False),
        (room(10, 10, 0, 0), False, False),
    ],
)
def test_what_fits(has: RoomReport | None, within_reach: bool, beside: bool) -> None:
    assert (fits(cold(has), 10), fits_beside(cold(has), 10)) == (within_reach, beside)


def test_a_cold_model_goes_to_the_first_pod_where_no_busy_model_is_in_the_way() -> None:
    assert first({FIRST: cold(), SECOND: cold()}) == FIRST
    assert first({FIRST: cold(BUSY), SECOND: cold(), THIRD: cold()}) == SECOND
    assert first({FIRST: cold(BUSY), SECOND: cold(room(0, 10)), THIRD: cold()}) == SECOND, "idle ones may go"
    assert first({FIRST: cold(BUSY), SECOND: cold(None)}) == SECOND
    assert first({FIRST: cold(room(99, 99, 0, 0)), SECOND: cold()}) == SECOND, "no seat"


def test_where_none_fits_it_goes_to_the_first_all_the_same() -> None:
    assert first({SECOND: cold(BUSY), FIRST: cold(BUSY), THIRD: cold(BUSY)}) == FIRST


def test_of_a_model_whose_size_nobody_knows_every_pod_with_a_seat_has_room() -> None:
    unknown = Want(WANT.uid)
    assert first({FIRST: cold(BUSY), SECOND: cold()}, unknown) == FIRST
    assert first({FIRST: cold(room(0, 0, 0, 0)), SECOND: cold()}, unknown) == SECOND


def test_a_pod_that_could_not_load_it_comes_last() -> None:
    assert first({FIRST: cold(warmth=Warmth.ABSENT), SECOND: cold(BUSY)}) == SECOND


def test_a_second_cold_request_follows_the_first() -> None:
    """Wherever that went: since then the first pod of the order may have room, and others are free."""
    loads = {FIRST: cold(), SECOND: cold(BUSY, warmth=Warmth.LOADING, pending=500, own=500), THIRD: cold()}
    assert first(loads) == SECOND
    assert chosen(loads).further is None


def test_a_further_copy_goes_to_the_first_pod_of_the_order_that_has_room_beside_what_it_holds() -> None:
    loads = {FIRST: cold(room(9, 99)), SECOND: holder(), THIRD: cold(), FOURTH: cold()}
    choice = chosen(loads)
    assert choice.further is not None
    assert (choice.pods[0].uid, choice.further.pod.uid) == (THIRD, THIRD)
    assert ([each.uid for each in choice.further.holders], choice.further.seconds) == ([SECOND], LONG)
    assert [each.uid for each in choice.pods[1:]] == [SECOND, FIRST, FOURTH]


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({FIRST: holder(seconds=LONG - 0.1)}, WANT),
        ({SECOND: holder(0, seconds=0.0)}, WANT),
        ({SECOND: cold(warmth=Warmth.LOADING, own=5)}, WANT),
        ({THIRD: cold(room(9, 99))}, WANT),
        ({THIRD: cold(room(99, 99, 0, 9))}, WANT),
        ({THIRD: cold(None)}, WANT),
        ({THIRD: cold(suspect=True)}, WANT),
        ({THIRD: cold(draining=True)}, WANT),
        ({THIRD: cold(warmth=Warmth.ABSENT)}, WANT),
        ({}, replace(WANT, most=2)),
        ({}, replace(WANT, computing=False)),
        ({}, replace(WANT, size=11)),
    ],
)
def test_no_further_copy(change: dict[str, PodLoad], want: Want) -> None:
    """Each change alone prevents what would be."""
    loads = {FIRST: holder(), SECOND: holder(), THIRD: cold()}
    due = chosen(loads, replace(WANT, most=3)).further
    assert due is not None
    assert due.pod.uid == THIRD
    choice = chosen({**loads, **change}, want)
    assert choice.further is None
    assert choice.pods[0].uid in (FIRST, SECOND)


def test_while_a_further_copy_loads_it_gets_its_share_of_those_who_wait_and_no_more() -> None:
    def told(own: int, **crowd: float) -> str:
        loading = cold(warmth=Warmth.LOADING, own=own, pending=own)
        return first({FIRST: holder(**crowd), SECOND: loading, THIRD: cold()})

    assert [told(own) for own in (0, 1, 4)] == [SECOND] * 3, "one that opened it and as many as it has slots"
    assert told(5) == FIRST
    assert told(1, queue=0, seconds=0.0) == FIRST, "once a holder's queue is short its slots are nearer than a load"


def test_pods_that_would_load_a_copy_too_many_are_not_named() -> None:
    loads = {FIRST: holder(0, 0.0), SECOND: cold(), THIRD: cold(warmth=Warmth.ABSENT)}
    assert [each.uid for each in chosen(loads, replace(WANT, most=1)).pods] == [FIRST]
    loading = {**loads, FIRST: cold(warmth=Warmth.LOADING)}
    assert [each.uid for each in chosen(loading, replace(WANT, most=1)).pods] == [FIRST]


@pytest.mark.parametrize("trouble", ["suspect", "draining"])
def test_where_the_only_copy_does_not_answer_another_may_be_loaded(trouble: str) -> None:
    loads = {FIRST: holder(0, 0.0, **{trouble: True}), SECOND: cold()}
    assert first(loads, replace(WANT, most=1)) == SECOND


def test_a_copy_too_many_is_left_to_its_keep_alive() -> None:
    """`copies.max` was made smaller, or a copy came back: the first of the order stay."""
    loads = {FIRST: holder(3, 0.0), SECOND: holder(0, 0.0), THIRD: holder(0, 0.0)}
    assert [each.uid for each in chosen(loads, replace(WANT, most=2)).pods] == [SECOND, FIRST, THIRD]
    assert first(loads, replace(WANT, most=1)) == FIRST
    assert first({**loads, FIRST: cold(warmth=Warmth.LOADING)}, replace(WANT, most=1)) == SECOND


flags = st.booleans()
pods = st.lists(
    st.builds(
        pod,
        st.integers(0, 10**9).map(str),
        ready=flags,
        terminating=flags,
        running=flags,
        was_ready=flags,
        ip=st.sampled_from(["", "10.0.0.1"]),
    ),
    max_size=8,
    unique_by=lambda each: each.uid,
)
load = st.builds(PodLoad, st.floats(0, 100), st.none() | st.integers(0, 64), flags, flags)


@settings(max_examples=80, deadline=None)
@given(pods, st.lists(load, min_size=8, max_size=8))
def test_no_unready_pod_while_a_ready_one_exists(group: list[PodView], loads: list[PodLoad]) -> None:
    known = {each.uid: one for each, one in zip(group, loads, strict=False)}
    named = choose(group, lambda each: known[each.uid], lambda _: 0.5).pods
    ready = {each.uid for each in group if each.ready and not each.terminating and each.ip}
    assert len({each.uid for each in named}) == len(named)
    if ready:
        assert {each.uid for each in named} == ready
    assert all(each.ip and (each.running or each.ready) for each in named)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32))
def test_requests_spread_evenly_over_equal_pods(count: int, seed: int) -> None:
    """Each pod in turn is the least loaded, so after n x k requests each has exactly n."""
    chance = random.Random(seed)
    group = [pod(str(number)) for number in range(count)]
    pending = dict.fromkeys((each.uid for each in group), 0)
    for _ in range(10 * count):
        first = choose(group, lambda each: PodLoad(pending[each.uid], 4), lambda _: chance.random()).pods[0]
        pending[first.uid] += 1
    assert set(pending.values()) == {10}


rooms = st.none() | st.builds(
    # Who unloads something has no less room than before.
    lambda free, more, seats, further: room(free, free + more, seats, seats + further),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 2),
    st.integers(0, 2),
)
placed = st.builds(
    PodLoad,
    pending=st.integers(0, 20).map(float),
    slots=st.integers(1, 4),
    suspect=st.just(False) | flags,
    draining=st.just(False) | flags,
    warmth=st.sampled_from(Warmth),
    crowded_seconds=st.sampled_from([0.0, LONG]),
    room=rooms,
)
wants = st.builds(Want, st.text("xyz", max_size=3), st.integers(0, 20), st.none() | st.integers(1, 4))
groups = st.dictionaries(st.integers(0, 10**6).map(str), placed, min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(groups, wants, st.randoms(use_true_random=False))
def test_gateways_with_the_same_reports_load_in_the_same_pod(
    loads: dict[str, PodLoad], want: Want, chance: random.Random
) -> None:
    def ask() -> Choice:
        """As another gateway would: pods in another order, other coins."""
        group = [pod(uid) for uid in chance.sample(sorted(loads), len(loads))]
        return choose(group, lambda each: loads[each.uid], lambda _: chance.random(), want)

    one, other = ask(), ask()
    assert one.further == other.further
    if one.pods:
        warmth = loads[one.pods[0].uid].warmth
        assert loads[other.pods[0].uid].warmth == warmth
        assert warmth < Warmth.COLD or one.pods[0] == other.pods[0]


@settings(max_examples=150, deadline=None)
@given(groups, wants)
def test_nothing_busy_is_in_the_way_while_another_pod_has_room(loads: dict[str, PodLoad], want: Want) -> None:
    sound = {uid: load for uid, load in loads.items() if not load.suspect and not load.draining}
    choice = chosen(loads, want)
    where = choice.pods[0].uid
    if where in sound and loads[where].warmth is Warmth.COLD:
        cold_ones = [load for load in sound.values() if load.warmth is Warmth.COLD]
        assert fits(loads[where], want.size) or not any(fits(load, want.size) for load in cold_ones)
    if choice.further is not None:
        assert where == choice.further.pod.uid
        assert fits_beside(loads[where], want.size)
        holders = [load for load in loads.values() if load.warmth <= Warmth.LOADING and not load.draining]
        assert want.most is None or len(holders) < want.most
        assert all(load.crowded_seconds >= LONG for load in holders)
