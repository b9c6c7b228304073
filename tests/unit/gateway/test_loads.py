"""What a gateway believes of a pod's load, from its own counts, answers' headers and reports."""

import pytest

from tandem_api.load import Load
from tandem_api.report import ModelReport, ModelState, Report
from tandem_gateway.loads import OBSERVATION_SECONDS, SUSPECT_SECONDS, Loads
from tandem_gateway.objects import PodView
from tandem_gateway.routing import PodLoad, Warmth

POD = PodView("default", "a", "a", "pool", "10.0.0.1")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loads(clock: Clock) -> Loads:
    return Loads(clock)


def test_own_requests_count_at_once(loads: Loads) -> None:
    loads.begin("a", "m")
    loads.begin("a", "m")
    loads.begin("a", "other")
    assert (loads.of(POD, "m").pending, loads.in_flight("a")) == (2, 3)
    loads.end("a", "m")
    assert loads.of(POD, "m").pending == 1


def test_the_pods_word_is_corrected_by_what_followed(loads: Loads) -> None:
    loads.begin("a", "m")
    loads.observe("a", "m", Load(busy=4, queued=2, slots=8))
    assert loads.of(POD, "m") == PodLoad(6, 8)
    loads.begin("a", "m")
    assert loads.of(POD, "m").pending == 7
    loads.end("a", "m")
    loads.end("a", "m")
    assert loads.of(POD, "m").pending == 5


def test_own_requests_are_the_least_that_is_pending(loads: Loads) -> None:
    for _ in range(3):
        loads.begin("a", "m")
    loads.observe("a", "m", Load(0, 0, 4))
    assert loads.of(POD, "m").pending == 3


def test_an_old_word_counts_no_more_but_the_slots_stay(loads: Loads, clock: Clock) -> None:
    loads.observe("a", "m", Load(4, 4, 8))
    clock.now += OBSERVATION_SECONDS + 1
    assert loads.of(POD, "m") == PodLoad(0, 8)


def test_a_suspect_is_cleared_by_time_and_by_an_answer(loads: Loads, clock: Clock) -> None:
    loads.suspect("a")
    assert loads.of(POD, "m").suspect
    clock.now += SUSPECT_SECONDS + 1
    assert not loads.of(POD, "m").suspect
    loads.suspect("a")
    loads.draining("a")
    loads.answered("a")
    assert loads.of(POD, "m") == PodLoad()


def test_a_report_tells_of_loaded_models_and_of_draining(loads: Loads) -> None:
    loaded = ModelReport(name="m", state=ModelState.LOADED, busy=1, queued=2, slots=4)
    loading = ModelReport(name="n", state=ModelState.LOADING, busy=9, slots=9)
    loads.observe_report("a", Report(pod="a", version="1", draining=True, models=[loaded, loading]))
    assert loads.of(POD, "m") == PodLoad(3, 4, draining=True)
    assert loads.of(POD, "n") == PodLoad(draining=True, warmth=Warmth.COLD)
    assert loads.of(POD, "o").warmth is Warmth.ABSENT
    assert loads.moving("a")
    loads.observe("a", "n", Load(0, 0, 4))
    assert loads.of(POD, "n").warmth is Warmth.LOADED, "an answer is newer than the report"
    loads.unreachable("a")
    assert loads.reports["a"].stale


def test_what_is_gone_is_forgotten_but_running_requests_still_end(loads: Loads) -> None:
    loads.begin("a", "m")
    loads.observe_report("a", Report(pod="a", version="1", models=[ModelReport(name="m", state=ModelState.LOADED)]))
    loads.suspect("a")
    loads.draining("a")
    loads.forget_all_but({"b"})
    assert loads.reports == {}
    assert loads.of(POD, "m") == PodLoad(1)
    loads.end("a", "m")
    assert loads.of(POD, "m") == PodLoad()
