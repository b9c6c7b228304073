"""Keep-alive: the usual time, callers' wishes, owners."""

import math

from tandem_server.residency.holds import CALLERS, Holds, Wish


def test_a_request_without_a_wish_keeps_the_model_for_the_usual_time():
    holds = Holds(300.0, 300.0)
    assert holds.end() == -math.inf
    assert holds.used(Wish("a"), 10.0) == 300.0
    assert holds.end() == 310.0


def test_a_wish_is_cut_to_the_most_and_speaks_for_its_caller_only():
    holds = Holds(300.0, 600.0)
    holds.used(Wish("a"), 10.0)
    assert holds.used(Wish("b", 5.0), 10.0) == 5.0
    assert holds.end() == 310.0
    assert holds.used(Wish("b", -1.0), 10.0) == 600.0
    assert holds.end() == 610.0


def test_zero_ends_the_callers_own_hold_at_once():
    holds = Holds(300.0, 300.0)
    holds.used(Wish("a"), 10.0)
    holds.used(Wish("a", 0.0), 20.0)
    assert holds.end() == 20.0
    holds.used(Wish("b"), 30.0)
    holds.used(Wish("a", 0.0), 40.0)
    assert holds.end() == 330.0


def test_a_wish_stands_until_the_caller_says_another():
    holds = Holds(300.0, math.inf)
    holds.used(Wish("a", -1.0), 10.0)
    assert holds.used(Wish("a"), 20.0) == math.inf


def test_an_owner_decides_for_all_and_without_bound():
    holds = Holds(300.0, 300.0)
    holds.used(Wish("a"), 10.0)
    assert holds.used(Wish("", -1.0, owner=True), 11.0) == math.inf
    holds.used(Wish("", 0.0, owner=True), 12.0)
    assert holds.end() == 12.0


def test_who_was_loaded_for_nobody_is_kept_for_the_usual_time():
    holds = Holds(300.0, 300.0)
    holds.loaded(5.0)
    assert holds.end() == 305.0


def test_new_settings_hold_for_those_who_wished_nothing_and_bound_the_others():
    holds = Holds(300.0, 900.0)
    holds.used(Wish("a"), 0.0)
    holds.used(Wish("b", 800.0), 0.0)
    holds.configure(60.0, 100.0)
    assert holds.end() == 100.0


def test_many_callers_are_forgotten_but_not_their_latest_hold():
    holds = Holds(300.0, 1000.0)
    holds.used(Wish("long", 1000.0), 0.0)
    for number in range(CALLERS + 5):
        holds.used(Wish(f"c{number}", 500.0), 1.0)
    assert len(holds._holds) == CALLERS
    assert holds.end() == 1000.0


def test_a_hold_begins_anew_when_the_request_ends():
    holds = Holds(300.0, 300.0)
    holds.used(Wish("a"), 10.0)
    holds.ended("a", 50.0)
    holds.ended("unknown", 500.0)
    assert holds.end() == 350.0
