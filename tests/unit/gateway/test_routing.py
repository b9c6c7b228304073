"""The routing table: which Model a name means, and in which order its pods are asked."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_api import placement
from tandem_gateway.objects import ModelView, PodView, model_view, pod_view
from tandem_gateway.routing import PodLoad, Table, Warmth, build, candidates, public_name, resolve

FIRST, SECOND = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def model(name: str, namespace: str = "default", *aliases: str, created: str = FIRST) -> ModelView:
    return ModelView(namespace, name, f"{namespace}.{name}", aliases, created)


def pod(uid: str, **state: object) -> PodView:
    return replace(PodView("default", uid, uid, "default.coder", "10.0.0.1", ready=True), **state)  # type: ignore[arg-type]


TABLE = build(
    [
        model("coder", "default", "coder:1b", "org/coder", "writer", "shared"),
        model("writer"),
        model("later", "default", "shared", created=SECOND),
        model("plain", "default", "tagged:latest"),
        model("coder", "team", "team-alias"),
        model("x", "org"),
    ],
    [],
)


@pytest.mark.parametrize(
    ("asked", "uid"),
    [
        ("coder", "default.coder"),
        ("coder:latest", "default.coder"),
        ("coder:1b", "default.coder"),
        ("coder:1b:latest", "default.coder"),
        ("tagged:latest", "default.plain"),
        ("tagged", None),
        ("team/coder", "team.coder"),
        ("team/team-alias", "team.coder"),
        ("team/team-alias:latest", "team.coder"),
        ("team-alias", None),
        ("default/coder", "default.coder"),
        ("org/coder", "default.coder"),
        ("org/x", "org.x"),
        ("x", None),
        ("other/coder", None),
        ("writer", "default.writer"),
        ("shared", "default.coder"),
        ("Coder", None),
        ("", None),
        ("/", None),
        ("/coder", None),
        ("coder/", None),
    ],
)
def test_names(asked: str, uid: str | None) -> None:
    found = resolve(TABLE, asked, "default")
    assert (found.uid if found else None) == uid


def test_public_names_resolve_to_their_models() -> None:
    for each in TABLE.models():
        assert resolve(TABLE, public_name(each, "default"), "default") == each


def test_a_pod_serves_only_the_pool_of_its_own_namespace_and_uid() -> None:
    coder = model("coder")
    mine = pod("a")
    others = [pod("b", namespace="team"), pod("c", pool_uid="default.coder-before"), pod("d", ip="")]
    assert build([coder], [mine, *others]).pods_of(coder) == (mine,)
    assert Table().pods_of(coder) == ()


def order(pods: list[PodView], loads: dict[str, PodLoad] | None = None) -> list[str]:
    known = loads or {}
    return [each.uid for each in candidates(pods, lambda each: known.get(each.uid, PodLoad(slots=4)), lambda _: 0.0)]


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


def test_every_gateway_sends_a_cold_model_to_the_same_pod() -> None:
    cold = dict.fromkeys("abcd", PodLoad(0, 4, warmth=Warmth.COLD))
    group = [pod(uid) for uid in "abcd"]
    chance = random.Random(7)
    first = {
        candidates(chance.sample(group, 4), lambda each: cold[each.uid], lambda _: chance.random(), "uid-of-model")[0]
        for _ in range(20)
    }
    assert {each.uid for each in first} == {placement.order("uid-of-model", "abcd")[0]}


def test_the_pods_of_a_shared_pool_serve_every_model_that_names_it() -> None:
    one, two = replace(model("one"), shared_pool="shared"), replace(model("two"), shared_pool="shared")
    other = replace(model("other", "team"), shared_pool="shared")
    shared = pod("a", pool_uid="pool-1", shared_pool="shared")
    table = build([one, two, other, model("coder")], [shared, pod("b")])
    assert table.pods_of(one) == table.pods_of(two) == (shared,)
    assert table.pods_of(other) == (), "a pool serves its own namespace only"
    assert [each.uid for each in table.pods_of(model("coder"))] == ["b"]


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
    named = candidates(group, lambda each: known[each.uid], lambda _: 0.5)
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
        first = candidates(group, lambda each: PodLoad(pending[each.uid], 4), lambda _: chance.random())[0]
        pending[first.uid] += 1
    assert set(pending.values()) == {10}


def test_views_of_objects_are_lenient() -> None:
    assert model_view({}) is None
    assert pod_view({"metadata": {"name": "a", "uid": "b"}}) is None
    odd = model_view(
        {
            "metadata": {"name": "a", "uid": "b", "namespace": 3},
            "spec": {"aliases": ["x", 4], "slots": "Auto"},
            "status": {"conditions": "none", "artifact": {"parameters": "many"}, "context": "long"},
        }
    )
    assert odd == ModelView("", "a", "b", ("x",))


def test_a_view_has_what_the_object_says() -> None:
    view = pod_view(
        {
            "metadata": {
                "name": "a",
                "uid": "b",
                "namespace": "c",
                "labels": {"tandem.dev/pool-uid": "p"},
                "deletionTimestamp": FIRST,
            },
            "status": {"phase": "Running", "podIP": "10.1.1.1", "conditions": [{"type": "Ready", "status": "True"}]},
        }
    )
    assert view == PodView("c", "a", "b", "p", "10.1.1.1", ready=True, terminating=True, running=True, was_ready=True)
