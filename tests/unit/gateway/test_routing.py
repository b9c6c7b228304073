"""The routing table: which Model a name means, and which pods its pool has."""

from dataclasses import replace

import pytest

from tandem_gateway.objects import ModelView, PodView, model_view, pod_view
from tandem_gateway.routing import Table, build, public_name, resolve

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


def test_the_pods_of_a_shared_pool_serve_every_model_that_names_it() -> None:
    one, two = replace(model("one"), shared_pool="shared"), replace(model("two"), shared_pool="shared")
    other = replace(model("other", "team"), shared_pool="shared")
    shared = pod("a", pool_uid="pool-1", shared_pool="shared")
    table = build([one, two, other, model("coder")], [shared, pod("b")])
    assert table.pods_of(one) == table.pods_of(two) == (shared,)
    assert table.pods_of(other) == (), "a pool serves its own namespace only"
    assert [each.uid for each in table.pods_of(model("coder"))] == ["b"]


def test_views_of_objects_are_lenient() -> None:
    assert model_view({}) is None
    assert pod_view({"metadata": {"name": "a", "uid": "b"}}) is None
    odd = model_view(
        {
            "metadata": {"name": "a", "uid": "b", "namespace": 3},
            "spec": {"aliases": ["x", 4], "slots": "Auto", "copies": {"max": "many"}},
            "status": {"conditions": "none", "artifact": {"parameters": "many"}, "context": "long"},
        }
    )
    assert odd == ModelView("", "a", "b", ("x",))


def test_a_models_view_has_its_pool_and_the_most_copies() -> None:
    item = {"metadata": {"name": "a", "uid": "b"}, "spec": {"pool": "p", "copies": {"min": 1, "max": 3}}}
    assert model_view(item) == ModelView("", "a", "b", shared_pool="p", copies_max=3)
    del item["spec"]["copies"]["max"]  # type: ignore[attr-defined]
    assert model_view(item) == ModelView("", "a", "b", shared_pool="p")


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
