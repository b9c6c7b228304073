"""What a gateway believes of a pod's load, from its own counts, answers' headers and reports."""

import pytest

from tandem_api.load import Load
from tandem_api.report import ModelReport, ModelState, Report, RoomReport
from tandem_gateway.loads import OBSERVATION_SECONDS, SUSPECT_SECONDS, Loads
from tandem_gateway.objects import PodView
from tandem_gateway.placing import PodLoad, Warmth
from tandem_gateway.queues import GAP_SECONDS

POD = PodView("default", "a", "a", "pool", "10.0.0.1")
SHARED = PodView("default", "a", "a", "pool", "10.0.0.1", shared_pool="shared")
ROOM = RoomReport(free_bytes=1, reach_bytes=2, free_seats=3, reach_seats=4)


def report(*models: ModelReport, pod: str = "a") -> Report:
    return Report(pod=pod, version="1", models=list(models), room=ROOM)


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
    assert loads.of(POD, "m") == PodLoad(6, 8, own=1)
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
    loading = ModelReport(name="n", state=ModelState.LOADING, queued=9)
    loads.observe_report("a", Report(pod="a", version="1", draining=True, models=[loaded, loading]))
    assert loads.of(POD, "m") == PodLoad(3, 4, draining=True)
    assert loads.of(POD, "n") == PodLoad(9, draining=True, warmth=Warmth.LOADING)
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
    assert loads.of(POD, "m") == PodLoad(1, own=1)
    loads.end("a", "m")
    assert loads.of(POD, "m") == PodLoad()


def test_a_pod_of_a_shared_pool_holds_nothing_that_it_has_not_told(loads: Loads) -> None:
    assert (loads.of(POD, "m").warmth, loads.of(SHARED, "m").warmth) == (Warmth.LOADED, Warmth.COLD)
    loads.observe("a", "m", Load(0, 0, 4))
    assert loads.of(SHARED, "m").warmth is Warmth.LOADED


def test_where_a_request_waits_the_model_is_being_loaded(loads: Loads, clock: Clock) -> None:
    """Of this gateway's own it is known at once, of others' by the report."""
    unloaded = ModelReport(name="m", state=ModelState.UNLOADED)
    loads.observe_report("a", report(unloaded, ModelReport(name="n", state=ModelState.FAILED)))
    assert loads.of(SHARED, "m").warmth is Warmth.COLD
    loads.begin("a", "m")
    loads.begin("a", "n")
    assert loads.of(SHARED, "m").warmth is Warmth.LOADING
    assert loads.of(SHARED, "n").warmth is Warmth.ABSENT, "a failed load is told, not waited for"
    loads.end("a", "m")
    assert loads.of(SHARED, "m").warmth is Warmth.COLD
    loads.observe_report("a", report(unloaded.model_copy(update={"queued": 2})))
    assert loads.of(SHARED, "m") == PodLoad(2, warmth=Warmth.LOADING, room=ROOM)
    clock.now += 1
    loads.observe("a", "m", Load(0, 3, 0))
    assert loads.of(SHARED, "m").warmth is Warmth.LOADING, "a refusal tells no slots and is no proof of a copy"


def test_an_unloaded_model_has_no_load(loads: Loads) -> None:
    loads.observe("a", "m", Load(4, 9, 4))
    loads.observe_report("a", report(ModelReport(name="m", state=ModelState.UNLOADED)))
    assert loads.of(SHARED, "m") == PodLoad(warmth=Warmth.COLD, room=ROOM)


def test_the_size_is_the_largest_that_any_pod_of_the_pool_tells(loads: Loads) -> None:
    other = PodView("default", "b", "b", "pool", "10.0.0.2")
    assert loads.size([POD, other], "m") == 0
    loads.observe_report("a", report(ModelReport(name="m", state=ModelState.UNLOADED, need_bytes=5)))
    assert loads.size([POD, other], "m") == 5
    loads.observe_report("b", report(ModelReport(name="m", state=ModelState.LOADED, size_bytes=7), pod="b"))
    assert (loads.size([POD, other], "m"), loads.size([POD], "m")) == (7, 5)


def test_a_stale_reports_room_is_not_known(loads: Loads) -> None:
    loads.observe_report("a", report())
    assert loads.of(POD, "m").room == ROOM
    loads.unreachable("a")
    assert loads.of(POD, "m").room is None


def crowded(loads: Loads, clock: Clock, *steps: tuple[float, int]) -> float:
    """The pod says after each of these pauses that so many run or wait for its 4 slots."""
    for seconds, said in steps:
        clock.now += seconds
        loads.observe("a", "m", Load(min(said, 4), max(0, said - 4), 4))
    return loads.of(POD, "m").crowded_seconds


def test_a_queue_is_long_while_the_pod_says_so_again_and_again(loads: Loads, clock: Clock) -> None:
    assert crowded(loads, clock, (0, 8), (9, 8)) == 0, "as many wait as there are slots: not more"
    assert crowded(loads, clock, (0, 9)) == 0
    assert crowded(loads, clock, (2, 9), (2, 99)) == 4
    assert crowded(loads, clock, (2, 8), (1, 9), (2, 9)) == 2, "it was short meanwhile"


def test_what_was_not_told_is_not_taken_for_a_long_queue(loads: Loads, clock: Clock) -> None:
    assert crowded(loads, clock, (0, 9), (GAP_SECONDS + 1, 9)) == 0, "in between it may have been short"
    assert crowded(loads, clock, (1, 9)) == 1
    clock.now += GAP_SECONDS + 1
    assert loads.of(POD, "m").crowded_seconds == 0, "the last word is too old"


def test_own_requests_make_and_end_a_long_queue(loads: Loads, clock: Clock) -> None:
    crowded(loads, clock, (0, 8))
    loads.begin("a", "m")
    assert crowded(loads, clock, (3, 9)) == 3, "from the request on, which is no later than the pod's word of it"
    for _ in range(2):
        loads.begin("a", "m")
    for _ in range(3):
        loads.end("a", "m")
    assert loads.of(POD, "m").crowded_seconds == 0


def test_a_pod_that_pauses_a_model_keeps_its_long_queue(loads: Loads, clock: Clock) -> None:
    """It tells no slots while another model has its turn."""
    crowded(loads, clock, (0, 9))
    clock.now += 3
    loads.observe("a", "m", Load(0, 12, 0))
    assert loads.of(POD, "m") == PodLoad(12, 4, crowded_seconds=3)


def test_a_queue_behind_slots_that_nobody_told_is_not_long(loads: Loads, clock: Clock) -> None:
    for _ in range(99):
        loads.begin("a", "m")
    clock.now += 9
    assert loads.of(POD, "m").crowded_seconds == 0
