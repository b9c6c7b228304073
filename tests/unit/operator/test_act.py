"""Carrying out plans against an API server in memory."""

import pytest

from tandem_operator.act import Actor, Outcome, Owner
from tandem_operator.api import ApiError
from tandem_operator.cache import Cache
from tandem_operator.kinds import CONFIG_MAP, DEPLOYMENT, MODEL, OWNED, SECRET, SERVICE, Obj
from tandem_operator.observe import observe
from tandem_operator.plan import Plan, plan
from tandem_testing.operator_world import CONFIG, KEY, MASTER, FakeApi, model

NAME = "tandem-m-coder"


class Bench:
    """One operator's memory in front of an API server; `restart` forgets all but the server's."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.restart()

    def restart(self) -> None:
        self.cache = Cache(lambda _: None)
        self.actor = Actor(self.api, self.cache)
        for (kind, _, _), obj in self.api.objects.items():
            self.cache.put(kind, obj)

    async def reconcile(self, drop: tuple[str, ...] = (), **spec: object) -> Outcome:
        live = self.api.objects.get((MODEL, KEY.namespace, KEY.name))
        if live is None or live["spec"] != model(**spec)["spec"]:
            self.cache.put(MODEL, self.api.put(MODEL, model(**spec)))
        observed = observe(self.cache, {}, KEY)
        assert observed is not None
        assert observed.pool is not None
        made = plan(observed.pool, {}, CONFIG, MASTER)
        kept = tuple(one for one in made.objects if one.kind.name not in drop)
        return await self.actor.act(Owner(KEY, observed.member.uid, 1, observed.own), Plan(kept, made.catalog))

    def live(self, kind: object) -> Obj:
        return self.api.objects[kind, KEY.namespace, NAME]  # type: ignore[index]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_creates_each_object_once(bench: Bench) -> None:
    outcome = await bench.reconcile()
    assert outcome.created == [(kind, NAME) for kind in OWNED]
    assert bench.api.writes == [("create", kind.name, NAME) for kind in OWNED]
    assert (await bench.reconcile()) == Outcome()
    assert len(bench.api.writes) == len(OWNED)


async def test_a_restart_writes_nothing(bench: Bench) -> None:
    await bench.reconcile(slots=2)
    bench.api.writes.clear()
    bench.restart()
    assert await bench.reconcile(slots=2) == Outcome()
    assert bench.api.writes == []


@pytest.mark.parametrize("survived", range(len(OWNED) + 1))
async def test_a_crash_between_two_writes_is_made_good(bench: Bench, survived: int) -> None:
    await bench.reconcile()
    for kind in OWNED[survived:]:
        del bench.api.objects[kind, KEY.namespace, NAME]
    bench.api.writes.clear()
    bench.restart()
    await bench.reconcile()
    assert bench.api.writes == [("create", kind.name, NAME) for kind in OWNED[survived:]]


async def test_only_what_changed_is_applied_and_the_creation_is_taken_over_first(bench: Bench) -> None:
    await bench.reconcile()
    bench.api.writes.clear()
    outcome = await bench.reconcile(slots=9)
    assert bench.api.writes == [("patch", "ConfigMap", NAME), ("apply", "ConfigMap", NAME)]
    assert [(kind, name) for kind, name, _ in outcome.changed] == [(CONFIG_MAP, NAME)]
    bench.api.writes.clear()
    await bench.reconcile(slots=10)
    assert bench.api.writes == [("apply", "ConfigMap", NAME)]


async def test_a_change_by_somebody_else_is_undone(bench: Bench) -> None:
    await bench.reconcile()
    changed = bench.live(DEPLOYMENT)
    changed["spec"]["replicas"] = 7
    bench.cache.put(DEPLOYMENT, bench.api.put(DEPLOYMENT, changed))
    outcome = await bench.reconcile()
    assert outcome.changed == [(DEPLOYMENT, NAME, "spec.replicas")]
    assert bench.live(DEPLOYMENT)["spec"]["replicas"] == 1


async def test_what_an_apply_cannot_change_is_not_applied_for_ever(bench: Bench) -> None:
    """An admission webhook that puts its own value back must not make a loop of writes."""
    await bench.reconcile()

    def stubborn(obj: Obj) -> Obj:
        obj["spec"]["replicas"] = 7
        return obj

    real_put = bench.api.put
    bench.api.put = lambda kind, obj: real_put(kind, stubborn(obj) if kind == DEPLOYMENT else obj)  # type: ignore[method-assign]
    bench.cache.put(DEPLOYMENT, bench.api.put(DEPLOYMENT, bench.live(DEPLOYMENT)))
    bench.api.writes.clear()
    for _ in range(3):
        await bench.reconcile()
    assert bench.api.writes.count(("apply", "Deployment", NAME)) == 1


@pytest.mark.parametrize("watched", [True, False], ids=["with our label", "outside our watch"])
@pytest.mark.parametrize("kind", OWNED, ids=lambda kind: kind.name)
async def test_an_object_of_somebody_else_is_never_touched(bench: Bench, kind: object, watched: bool) -> None:
    assert isinstance(kind, type(SECRET))
    foreign = bench.api.put(kind, {"metadata": {"name": NAME, "namespace": KEY.namespace}, "data": {"mine": "yes"}})
    if watched:
        bench.cache.put(kind, foreign)
    outcome = await bench.reconcile()
    assert bench.live(kind) == foreign
    (told,) = outcome.conflicts
    assert f"{kind.name} {NAME}" in told
    assert len(bench.api.writes) == len(OWNED) - 1


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (None, "nobody's controller reference"),
        ({"kind": "Model", "name": "coder", "uid": "earlier", "controller": True}, "earlier Model of this name"),
        ({"kind": "Job", "name": "other", "uid": "x", "controller": True}, "belongs to the Job other"),
    ],
)
async def test_a_conflict_says_whose_it_is(bench: Bench, owner: Obj | None, words: str) -> None:
    metadata = {"name": NAME, "namespace": KEY.namespace, "ownerReferences": [owner] if owner else []}
    bench.api.put(SERVICE, {"metadata": metadata})
    (told,) = (await bench.reconcile()).conflicts
    assert words in told


async def test_our_own_object_without_its_label_is_found_and_repaired(bench: Bench) -> None:
    await bench.reconcile()
    stripped = bench.live(SERVICE)
    stripped["metadata"]["labels"] = {}
    bench.cache.drop(SERVICE, bench.api.put(SERVICE, stripped))  # it left the watch
    bench.api.writes.clear()
    outcome = await bench.reconcile()
    assert outcome.conflicts == []
    assert bench.live(SERVICE)["metadata"]["labels"]["tandem.dev/pool"] == "coder"


async def test_prunes_what_it_owns_and_no_longer_wants(bench: Bench) -> None:
    await bench.reconcile()
    outcome = await bench.reconcile(drop=("Service",))
    assert outcome.deleted == [(SERVICE, NAME)]
    assert (SERVICE, KEY.namespace, NAME) not in bench.api.objects


async def test_a_refusal_is_told_and_the_rest_of_it_is_kept(bench: Bench) -> None:
    bench.api.refuse = ApiError(403, "Forbidden", "exceeded quota")
    assert (await bench.reconcile()).refused == "exceeded quota"


@pytest.mark.parametrize("code", [0, 409, 429, 500, 503])
async def test_what_may_pass_by_itself_is_raised(bench: Bench, code: int) -> None:
    bench.api.refuse = ApiError(code, "", "later")
    with pytest.raises(ApiError, match="later"):
        await bench.reconcile()
