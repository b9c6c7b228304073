"""The operator's store: watch events and relists in any order must end in the same picture."""

import copy
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_operator.cache import Cache
from tandem_operator.kinds import CONFIG_MAP, DEPLOYMENT, MODEL, POD, Key, Obj
from tandem_testing.operator_world import KEY, UID, model, pod

SEEDS = int(os.environ.get("TANDEM_SEEDS", "100"))


def owned(revision: int, uid: str = "c", owner: str = UID) -> Obj:
    reference = {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "Model",
        "name": "coder",
        "uid": owner,
        "controller": True,
    }
    metadata = {"name": "tandem-m-coder", "namespace": "demo", "uid": uid, "resourceVersion": str(revision)}
    return {"metadata": {**metadata, "ownerReferences": [reference]}}


def test_an_event_of_the_past_changes_nothing() -> None:
    nudged: list[Key] = []
    cache = Cache(nudged.append)
    assert cache.put(CONFIG_MAP, owned(5))
    assert not cache.put(CONFIG_MAP, owned(5))
    assert not cache.put(CONFIG_MAP, owned(4))
    assert nudged == [KEY]


def test_what_was_deleted_does_not_come_back_by_an_older_list() -> None:
    cache = Cache(lambda _: None)
    cache.put(CONFIG_MAP, owned(5))
    assert cache.drop(CONFIG_MAP, owned(7))
    assert cache.replace(CONFIG_MAP, [owned(5)], 6) == 0
    assert cache.get(CONFIG_MAP, "demo", "tandem-m-coder") is None
    assert cache.put(CONFIG_MAP, owned(9, uid="new"))


def test_a_relist_finds_what_vanished_unseen_but_keeps_what_is_newer_than_itself() -> None:
    nudged: list[Key] = []
    cache = Cache(nudged.append)
    cache.put(CONFIG_MAP, owned(5))
    cache.put(DEPLOYMENT, owned(9))
    nudged.clear()
    assert cache.replace(CONFIG_MAP, [], 8) == 1
    assert cache.replace(DEPLOYMENT, [], 8) == 0
    assert cache.get(DEPLOYMENT, "demo", "tandem-m-coder") is not None
    assert nudged == [KEY]


def test_the_deletion_of_an_earlier_namesake_leaves_the_new_object() -> None:
    cache = Cache(lambda _: None)
    cache.put(CONFIG_MAP, owned(5, uid="old"))
    cache.put(CONFIG_MAP, owned(8, uid="new"))
    assert not cache.drop(CONFIG_MAP, owned(9, uid="old"))
    assert cache.get(CONFIG_MAP, "demo", "tandem-m-coder") is not None


def test_only_objects_of_this_very_model_are_its_own() -> None:
    cache = Cache(lambda _: None)
    cache.put(MODEL, model())
    cache.put(CONFIG_MAP, owned(5))
    cache.put(DEPLOYMENT, owned(6, uid="d", owner="an earlier one"))
    cache.put(POD, pod("mine"))
    cache.put(POD, pod("other", pool_uid="an earlier one"))
    assert [kind for kind, _ in cache.owned(KEY, UID)] == [CONFIG_MAP]
    assert [one["metadata"]["name"] for one in cache.pods(KEY, UID)] == ["mine"]
    assert cache.keys() == [KEY]


def test_a_model_is_nudged_by_its_pods_and_by_what_it_owns() -> None:
    nudged: list[Key] = []
    cache = Cache(nudged.append)
    cache.put(POD, pod("a"))
    cache.put(CONFIG_MAP, owned(3))
    cache.put(CONFIG_MAP, {"metadata": {"name": "foreign", "namespace": "demo", "resourceVersion": "4"}})
    assert nudged == [KEY, KEY]


def test_tombstones_are_forgotten_in_time() -> None:
    now = [0.0]
    cache = Cache(lambda _: None, lambda: now[0])
    cache.drop(CONFIG_MAP, owned(7))
    assert not cache.put(CONFIG_MAP, owned(6))
    now[0] = 3600.0
    cache.replace(CONFIG_MAP, [], 8)
    assert cache.put(CONFIG_MAP, owned(6))


def test_managed_fields_are_not_kept() -> None:
    cache = Cache(lambda _: None)
    obj = owned(5)
    obj["metadata"]["managedFields"] = [{"manager": "tandem-operator", "operation": "Update"}]
    cache.put(CONFIG_MAP, obj)
    entry = cache.get(CONFIG_MAP, "demo", "tandem-m-coder")
    assert entry is not None
    assert "managedFields" not in entry.obj["metadata"]
    assert entry.created_only


HISTORY = st.lists(st.sampled_from(["write", "delete", "create"]), min_size=1, max_size=12)


@settings(max_examples=SEEDS, derandomize=SEEDS == 100, deadline=None)
@given(HISTORY, st.data())
def test_a_relist_after_lost_and_late_events_ends_in_the_truth(history: list[str], data: st.DataObject) -> None:
    """A history of one name; some of its watch events are lost, old lists come late; a last list is the truth."""
    revision, uid, present = 1, 0, False
    events: list[tuple[str, Obj]] = []
    lists: list[tuple[int, list[Obj]]] = []
    current: Obj = {}
    for step in history:
        revision += 1
        if step == "create" and not present:
            uid, present = uid + 1, True
            current = owned(revision, uid=str(uid))
            events.append(("put", current))
        elif step == "write" and present:
            current = owned(revision, uid=str(uid))
            events.append(("put", current))
        elif step == "delete" and present:
            present = False
            events.append(("drop", owned(revision, uid=str(uid))))
        lists.append((revision, [copy.deepcopy(current)] if present else []))
    cache = Cache(lambda _: None)
    for event in events:
        if data.draw(st.booleans()):
            old_revision, old = data.draw(st.sampled_from(lists))
            if old_revision <= int(event[1]["metadata"]["resourceVersion"]):
                cache.replace(CONFIG_MAP, old, old_revision)
        if data.draw(st.booleans()):
            (cache.put if event[0] == "put" else cache.drop)(CONFIG_MAP, event[1])
    cache.replace(CONFIG_MAP, lists[-1][1], revision + 1)
    entry = cache.get(CONFIG_MAP, "demo", "tandem-m-coder")
    assert (entry is not None) == present
    if entry is not None:
        assert entry.obj["metadata"]["uid"] == str(uid)
        assert entry.obj["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"]
