"""Whom a change nudges: pods and owned objects their pool and its Models, Models their pool and rivals, Secrets."""

from typing import Any

import pytest

from tandem_operator.cache import Cache
from tandem_operator.kinds import CONFIG_MAP, MODEL, MODEL_POOL, POD, SECRET, Key, Kind, Obj
from tandem_testing.operator_world import KEY, POOL_KEY, model, model_pool, pooled, running, secret

ONE, TWO = Key("Model", "demo", "one"), Key("Model", "demo", "two")


class World:
    """A cache, and whom it nudged since the last look."""

    def __init__(self) -> None:
        self.nudged: list[Key] = []
        self.cache = Cache(self.nudged.append)
        self.revision = 100

    def put(self, kind: Kind, obj: Obj, **metadata: Any) -> set[Key]:
        self.revision += 1
        changed = {**obj["metadata"], "resourceVersion": str(self.revision), **metadata}
        self.nudged.clear()
        self.cache.put(kind, {**obj, "metadata": changed})
        return set(self.nudged)

    def drop(self, kind: Kind, obj: Obj) -> set[Key]:
        self.revision += 1
        self.nudged.clear()
        self.cache.drop(kind, {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.revision)}})
        return set(self.nudged)


@pytest.fixture
def shared() -> World:
    """A ModelPool with two Models, and a Model of its own beside it."""
    world = World()
    world.put(MODEL_POOL, model_pool())
    world.put(MODEL, pooled("one", "uid-1"))
    world.put(MODEL, pooled("two", "uid-2"))
    world.put(MODEL, model())
    return world


def test_a_pod_of_a_shared_pool_concerns_the_pool_and_its_models(shared: World) -> None:
    assert shared.put(POD, running(pool=POOL_KEY)) == {POOL_KEY, ONE, TWO}
    assert shared.put(POD, running("own")) == {KEY}


def test_a_pool_concerns_its_models(shared: World) -> None:
    assert shared.put(MODEL_POOL, model_pool()) == {POOL_KEY, ONE, TWO}


def test_a_model_concerns_its_pool_when_its_spec_changes_but_not_when_its_status_does(shared: World) -> None:
    assert shared.put(MODEL, {**pooled("one", "uid-1"), "status": {"size": "1 GB"}}) == {ONE}
    assert shared.put(MODEL, pooled("one", "uid-1", slots=2), generation=2) == {ONE, POOL_KEY}
    assert shared.drop(MODEL, pooled("one", "uid-1")) == {ONE, POOL_KEY}


def test_a_model_that_moves_concerns_both_pools(shared: World) -> None:
    moved = pooled("one", "uid-1")
    moved["spec"]["pool"] = "other"
    other = Key("ModelPool", "demo", "other")
    assert shared.put(MODEL, moved, generation=2) == {ONE, POOL_KEY, other}
    assert shared.put(POD, running(pool=POOL_KEY)) == {POOL_KEY, TWO}


def test_models_that_share_a_name_concern_each_other() -> None:
    world = World()
    assert world.put(MODEL, model("one", "uid-1", aliases=["fast"])) == {ONE}
    assert world.put(MODEL, model("two", "uid-2", aliases=["fast"])) == {ONE, TWO}
    assert world.put(MODEL, model("two", "uid-2", aliases=["slow"]), generation=2) == {ONE, TWO}
    assert world.put(MODEL, model("two", "uid-2", aliases=["one"]), generation=3) == {ONE, TWO}
    assert world.drop(MODEL, model("two", "uid-2")) == {ONE, TWO}
    elsewhere = model("three", "uid-3", aliases=["fast"])
    elsewhere["metadata"]["namespace"] = "other"
    assert world.put(MODEL, elsewhere) == {Key("Model", "other", "three")}


def test_a_secret_concerns_the_models_that_name_it_and_their_pools(shared: World) -> None:
    shared.put(MODEL, pooled("one", "uid-1", secretRef={"name": "hub"}), generation=2)
    assert shared.put(SECRET, secret("hub")) == {ONE, POOL_KEY}
    assert shared.put(SECRET, secret("other")) == set()
    assert shared.drop(SECRET, secret("hub")) == {ONE, POOL_KEY}
    assert shared.put(SECRET, secret("hub", label="own")) == set()


def test_an_owned_object_concerns_its_pool(shared: World) -> None:
    owner = {"apiVersion": "tandem.dev/v1alpha1", "kind": "ModelPool", "name": "shared", "uid": "x", "controller": True}
    metadata = {"name": "tandem-p-shared", "namespace": "demo", "uid": "c", "ownerReferences": [owner]}
    assert shared.put(CONFIG_MAP, {"metadata": metadata}) == {POOL_KEY, ONE, TWO}
    foreign = {**owner, "apiVersion": "example.com/v1"}
    assert shared.put(CONFIG_MAP, {"metadata": {**metadata, "name": "x", "ownerReferences": [foreign]}}) == set()


@pytest.mark.parametrize(
    "spec",
    [{"aliases": "nonsense"}, {"aliases": [1, None]}, {"pool": 7}, {"secretRef": "x"}, {"secretRef": {}}],
    ids=str,
)
def test_odd_specs_of_old_objects_are_no_obstacle(spec: Obj) -> None:
    world = World()
    odd = model("one", "uid-1")
    odd["spec"] |= spec
    assert world.put(MODEL, odd) == {ONE}
    assert world.drop(MODEL, odd) == {ONE}


def test_a_model_without_a_spec_is_no_obstacle() -> None:
    world = World()
    bare = model("one", "uid-1")
    del bare["spec"]
    assert world.put(MODEL, bare) == {ONE}
