"""Thousands of random schedules of residency: nothing promised twice, nobody busy evicted, lost or starved."""

import os
from collections import Counter

import pytest
from residency_world import LONGEST_REQUEST, World, patience_bound

SEEDS = max(400, 20 * int(os.environ.get("TANDEM_SEEDS", "0")))


def play(seed: int, busy: float = 60.0) -> World:
    """A while of traffic, then quiet until all is served."""
    world = World(seed)
    draw = world.random
    for _ in range(draw.randint(10, 120)):
        model = draw.choice(world.models)
        world.later(draw.uniform(0.0, busy), model.crash if draw.random() < 0.05 else model.arrive)
    world.run(busy + 2 * patience_bound(world) + 25 * LONGEST_REQUEST)
    return world


@pytest.mark.timeout(120 + SEEDS // 10)
def test_random_schedules():
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        world = play(seed)
        ended = sum(world.counts[how] for how in ("served", "cancelled", "failed"))
        assert world.counts["arrived"] == ended, f"seed {seed}: {world.counts}"
        assert not any(model.line.running or model.line.waiting for model in world.models), f"seed {seed}"
        counts += world.counts
    for what in ("served", "cancelled", "failed", "refused", "yields", "crashes", "ROOM", "EXPIRED", "GROWS"):
        assert counts[what] > SEEDS / 20, f"the schedules hardly show {what}: {counts}"


def test_with_busy_models_all_the_time_every_model_has_its_turn():
    """Requests for each model come faster than they can be served, with room for a third of the models."""
    world = World(7)
    room = world.room
    room.ledger.capacity, room.ledger.most = [100], 99
    room.ledger.lost = [0]
    for model in world.models:
        model.need = type(model.need)(45, 45)
        model.pinned = False

    def again(model):
        model.arrive()
        world.later(0.2, lambda: again(model))

    for model in world.models:
        again(model)
    served = Counter()
    for _ in range(40):
        world.run(world.now + 25.0)
        served.update(model.name for model in world.models if model.state == "loaded")
    assert len(served) == len(world.models)


@pytest.mark.parametrize("broken", ["starves", "evicts"])
def test_a_broken_rule_is_caught(monkeypatch, broken):
    from tandem_server.residency.ledger import Ledger, Resident

    if broken == "evicts":
        monkeypatch.setattr(Resident, "idle", property(lambda one: one.phase.name == "LOADED" and not one.queued))
    else:
        order = Ledger.waiting
        monkeypatch.setattr(Ledger, "waiting", lambda ledger: list(reversed(order(ledger)))[:1])

    def play_many():
        for seed in range(40):
            play(seed)

    with pytest.raises(AssertionError):
        play_many()
