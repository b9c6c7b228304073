"""When the annotation of a pod is touched so that the kubelet refreshes its catalog."""

import itertools

from tandem_operator.kinds import Obj
from tandem_operator.observe import PodView, Seen
from tandem_operator.refresh import Refresher
from tandem_testing.operator_world import loaded, running, seen


class Bench:
    """A refresher with a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.refresher = Refresher(lambda: self.now)

    def due(self, told: Seen, revision: str = "new", pod: Obj | None = None) -> list[str]:
        touches, self.again = self.refresher.due([PodView(pod or running(), told)], revision)
        return [touch.value for touch in touches]


def test_a_pod_that_has_read_the_catalog_or_has_not_reported_is_left_alone() -> None:
    bench = Bench()
    assert bench.due(seen(loaded(), revision="new")) == []
    assert bench.due(Seen()) == []
    assert bench.again is None


def test_a_pod_behind_is_touched_at_once_and_again_after_a_second() -> None:
    bench = Bench()
    old = seen(loaded(), revision="old", at=0.0)
    assert bench.due(old) == ["new"]
    assert bench.again == 1.0
    bench.now = 0.5
    assert bench.due(old) == []
    bench.now = 1.1
    assert bench.due(old) == [], "nothing was heard of the pod since"
    assert bench.due(seen(loaded(), revision="old", at=1.05)) == ["new.2"]
    assert bench.again == 2.0
    assert bench.due(seen(loaded(), revision="new", at=1.3)) == []
    assert bench.again is None


def test_a_pod_that_never_reads_it_is_touched_less_and_less() -> None:
    bench = Bench()
    touched = []
    for second in range(600):
        bench.now = float(second)
        if bench.due(seen(loaded(), revision="old", at=bench.now)):
            touched.append(second)
    gaps = [later - earlier for earlier, later in itertools.pairwise(touched)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 1
    assert gaps[-1] == 60
    assert len(touched) < 20


def test_another_change_is_touched_at_once() -> None:
    bench = Bench()
    old = seen(loaded(), revision="old")
    assert bench.due(old, "new") == ["new"]
    assert bench.due(old, "newer") == ["newer"]


def test_after_a_restart_the_value_differs_from_the_one_that_is_there() -> None:
    pod = running()
    pod["metadata"]["annotations"] = {"tandem.dev/catalog-revision": "new"}
    (value,) = Bench().due(seen(loaded(), revision="old"), "new", pod)
    assert value != "new"
