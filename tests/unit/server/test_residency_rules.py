"""The rules of residency by example: grants, evictions, shrinking, yielding, growing, refusals."""

import math

from tandem_server.residency.ledger import (
    Grant,
    Later,
    Leave,
    Ledger,
    Need,
    Phase,
    Refuse,
    Resident,
    Resume,
    Why,
    Yield,
)
from tandem_server.residency.rules import Times, decide

TIMES = Times(patience=5.0, stay=20.0, quiet=5.0)


class Desk:
    """A ledger with words for what happens to it."""

    def __init__(self, *capacity: int, most: int = 99) -> None:
        self.ledger = Ledger(list(capacity), most)
        self.wake = math.inf

    def wants(self, name: str, minimum: int, wanted: int | None = None, at: float = 0.0, pinned: bool = False) -> None:
        self.ledger.residents[name] = Resident(name, Need(minimum, wanted or minimum), at, pinned, queued=1)

    def loads(self, name: str, device: int, size: int, at: float = 0.0, **fields: object) -> Resident:
        one = Resident(name, Need(size, size), at, phase=Phase.LOADED, device=device, bytes=size, granted=size)
        one.loaded_at = one.quiet_since = at
        for field, value in fields.items():
            setattr(one, field, value)
        self.ledger.residents[name] = one
        return one

    def decide(self, now: float = 0.0) -> list[object]:
        decisions, self.wake = decide(self.ledger, TIMES, now)
        return decisions

    def gone(self, name: str) -> None:
        del self.ledger.residents[name]


def test_a_model_gets_what_it_wants_on_the_emptier_device():
    desk = Desk(100, 100)
    desk.loads("a", 0, 30, running=1)
    desk.wants("b", 40)
    assert desk.decide() == [Grant("b", 1, 40)]


def test_several_load_at_once_while_memory_lasts_and_in_order():
    desk = Desk(100)
    desk.wants("b", 60, at=1.0)
    desk.wants("a", 30, at=2.0)
    desk.wants("c", 20, at=3.0)
    assert desk.decide(3.0) == [Grant("b", 0, 60), Grant("a", 0, 30)]


def test_the_longest_unused_idle_model_goes_and_only_when_its_memory_is_back_the_next_loads():
    desk = Desk(100)
    desk.loads("old", 0, 40, at=1.0)
    desk.loads("new", 0, 40, at=2.0)
    desk.wants("next", 50, at=3.0)
    assert desk.decide(3.0) == [Leave("old", Why.ROOM, "next")]
    assert desk.decide(3.1) == []
    desk.gone("old")
    assert desk.decide(3.2) == [Grant("next", 0, 50)]


def test_no_more_go_than_must():
    desk = Desk(100)
    desk.loads("small", 0, 10, at=1.0)
    desk.loads("large", 0, 90, at=2.0)
    desk.wants("next", 80, at=3.0)
    assert desk.decide(3.0) == [Leave("large", Why.ROOM, "next")]


def test_neither_busy_nor_pinned_models_go():
    desk = Desk(100)
    desk.loads("busy", 0, 40, running=1)
    desk.loads("held", 0, 30, pinned=True)
    desk.wants("next", 50)
    assert desk.decide() == []
    assert desk.wake == TIMES.patience


def test_with_all_seats_taken_the_longest_unused_of_all_devices_goes():
    desk = Desk(100, 100, most=2)
    desk.loads("a", 0, 10, at=1.0)
    desk.loads("b", 1, 10, at=2.0)
    desk.wants("c", 10, at=3.0)
    assert desk.decide(3.0) == [Leave("a", Why.ROOM, "c")]
    assert desk.decide(3.0) == []
    desk.gone("a")
    assert desk.decide(3.0) == [Grant("c", 0, 10)]


def test_what_can_never_fit_is_refused_with_numbers():
    desk = Desk(100 * 2**20)
    desk.loads("held", 0, 30 * 2**20, pinned=True)
    desk.wants("next", 80 * 2**20)
    (refusal,) = desk.decide()
    assert isinstance(refusal, Refuse)
    assert "at least 80 MiB and a device of this pod gives 70 MiB beside the pinned models held" in refusal.sentence
    assert "next" not in desk.ledger.residents


def test_a_device_too_small_for_all_of_it_shrinks_it_at_once():
    desk = Desk(100)
    desk.wants("next", 40, 500)
    assert desk.decide() == [Grant("next", 0, 100)]


def test_before_it_is_shrunk_idle_models_go():
    desk = Desk(100)
    desk.loads("idle", 0, 40)
    desk.wants("next", 40, 100)
    assert desk.decide() == [Leave("idle", Why.ROOM, "next")]


def test_for_busy_ones_it_waits_a_while_and_is_shrunk_then():
    desk = Desk(100)
    desk.loads("busy", 0, 40, running=1)
    desk.wants("next", 40, 100)
    assert desk.decide() == []
    assert desk.decide(TIMES.patience) == [Grant("next", 0, 60)]


def test_where_shrinking_does_not_help_a_busy_one_yields_after_its_stay():
    desk = Desk(100)
    busy = desk.loads("busy", 0, 60, at=0.0, running=2, queued=3)
    desk.wants("next", 70, at=1.0)
    assert desk.decide(6.0) == []
    assert desk.wake == TIMES.stay
    assert desk.decide(20.0) == [Yield("busy", "next")]
    assert desk.decide(20.1) == []
    busy.running = 0
    assert desk.decide(21.0) == [Leave("busy", Why.ROOM, "next")]
    desk.gone("busy")
    assert desk.decide(21.5) == [Grant("next", 0, 70)]


def test_who_yielded_resumes_when_nobody_waits_for_its_room_any_more():
    desk = Desk(100)
    desk.loads("busy", 0, 60, running=1)
    desk.wants("next", 70)
    assert desk.decide(20.0) == [Yield("busy", "next")]
    desk.gone("next")
    assert desk.decide(20.1) == [Resume("busy")]


def test_who_waits_first_is_not_overtaken_on_its_device_and_others_pass_elsewhere():
    desk = Desk(100, 50)
    desk.loads("busy", 0, 40, running=1)
    desk.wants("first", 90, at=0.0)
    desk.wants("second", 30, at=1.0)
    desk.wants("third", 30, at=2.0)
    assert desk.decide(2.0) == [Grant("second", 1, 30)]


def test_memory_of_leaving_models_beyond_the_claim_is_for_others():
    desk = Desk(100)
    desk.loads("a", 0, 60)
    desk.wants("first", 70, at=0.0)
    desk.wants("second", 30, at=1.0)
    assert desk.decide(1.0) == [Leave("a", Why.ROOM, "first"), Grant("second", 0, 30)]
    desk.gone("a")
    assert desk.decide(1.1) == [Grant("first", 0, 70)]


def test_a_keep_alive_ends_an_idle_model_once_and_never_a_busy_one():
    desk = Desk(100)
    one = desk.loads("a", 0, 10, running=1, expires=5.0)
    assert desk.decide(9.0) == []
    one.running = 0
    one.expires = 12.0
    assert desk.decide(11.0) == []
    assert desk.wake == 12.0
    assert desk.decide(12.0) == [Leave("a", Why.EXPIRED)]
    assert desk.decide(13.0) == []


def test_a_pinned_model_does_not_expire():
    desk = Desk(100)
    desk.loads("a", 0, 10, expires=0.0, pinned=True)
    assert desk.decide(1.0) == []


def test_a_shrunk_model_grows_when_it_is_idle_and_memory_is_free():
    desk = Desk(100)
    one = desk.loads("a", 0, 40, at=0.0, need=Need(20, 80), running=1)
    other = desk.loads("b", 0, 60, at=0.0)
    assert desk.decide(10.0) == []
    one.running, one.quiet_since = 0, 10.0
    assert desk.decide(30.0) == []
    desk.gone(other.name)
    assert desk.decide(31.0) == [Leave("a", Why.GROWS)]


def test_it_grows_after_a_quiet_time_and_not_where_the_device_gives_no_more():
    desk = Desk(100)
    desk.loads("a", 0, 40, at=8.0, need=Need(20, 80))
    assert desk.decide(10.0) == []
    assert desk.wake == 13.0
    small = Desk(41)
    small.loads("a", 0, 40, at=0.0, need=Need(20, 80))
    assert small.decide(100.0) == []


def test_what_a_lost_process_holds_is_not_given_away():
    desk = Desk(100)
    desk.ledger.lost[0] = 50
    desk.wants("a", 60)
    (refusal,) = desk.decide()
    assert isinstance(refusal, Refuse)


def test_what_nobody_asked_for_does_not_push_others_out():
    desk = Desk(100)
    desk.loads("a", 0, 60)
    desk.wants("b", 50)
    desk.ledger.residents["b"].modest, desk.ledger.residents["b"].queued = True, 0
    assert desk.decide() == [Later("b")]
    desk.wants("b", 50)
    desk.ledger.residents["b"].modest = True
    assert desk.decide() == [Leave("a", Why.ROOM, "b")]
    desk.wants("c", 40)
    desk.ledger.residents["c"].modest, desk.ledger.residents["c"].queued = True, 0
    desk.gone("a")
    assert desk.decide() == [Grant("b", 0, 50), Grant("c", 0, 40)]
