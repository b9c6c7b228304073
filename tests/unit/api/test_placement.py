"""Where models belong: the same for everybody, spread evenly, and steady while pods come and go."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tandem_api.placement import order, preloads

uids = st.lists(st.uuids().map(str), min_size=1, max_size=8, unique=True)


@given(uids, st.integers(0, 1000))
def test_the_order_does_not_depend_on_who_asks(pods: list[str], seed: int) -> None:
    shuffled = random.Random(seed).sample(pods, len(pods))
    assert order("m", pods) == order("m", shuffled)
    assert sorted(order("m", pods)) == sorted(pods)


@given(uids)
def test_a_pod_that_goes_moves_only_its_own_models(pods: list[str]) -> None:
    gone = order("m", pods)[0]
    assert order("m", [one for one in pods if one != gone]) == order("m", pods)[1:]


def test_models_are_spread_over_the_pods() -> None:
    pods = [f"pod-{number}" for number in range(4)]
    first = [order(f"model-{number}", pods)[0] for number in range(400)]
    assert all(70 <= first.count(pod) <= 130 for pod in pods)


@given(st.dictionaries(st.tuples(st.text("ab", min_size=1), st.uuids().map(str)), st.integers(0, 5), max_size=6), uids)
def test_every_model_has_its_copies_as_far_as_there_are_pods(
    copies: dict[tuple[str, str], int], pods: list[str]
) -> None:
    found = preloads(copies, {f"name-{uid}": uid for uid in pods})
    wanted = sorted(name for (name, _), count in copies.items() for _ in range(min(count, len(pods))))
    assert sorted(name for names in found.values() for name in names) == wanted
