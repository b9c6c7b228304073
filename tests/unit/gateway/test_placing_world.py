"""Two gateways and a pool in virtual time: whatever happens, the pods hold no copy too many and nothing busy goes.

The gateways' own code decides, each with its own counts; the pods are as simple as they can be and tell both the same.
"""

import os
import random
from dataclasses import dataclass, field, replace

import pytest

from tandem_api.report import ModelReport, ModelState, Report, RoomReport
from tandem_gateway.directory import Directory
from tandem_gateway.loads import Loads
from tandem_gateway.objects import ModelView, PodView
from tandem_gateway.placing import Choice

SEEDS = max(30, int(os.environ.get("TANDEM_SEEDS", "0")))
SLOTS = 2
SIZES = {"small": 3, "middle": 5, "large": 8}
MOST = {"small": None, "middle": 2, "large": 1}
CAPACITY, SEATS = 10, 2
MODELS = {
    name: ModelView("default", name, f"uid-{name}", slots=SLOTS, shared_pool="p", copies_max=MOST[name])
    for name in SIZES
}


@dataclass
class Copy:
    """One model in one pod: loaded, loading, failed, or only waited for."""

    state: ModelState = ModelState.UNLOADED
    running: list[int] = field(default_factory=list)
    """The gateways whose requests run."""
    waiting: list[int] = field(default_factory=list)

    @property
    def resident(self) -> bool:
        return self.state in (ModelState.LOADING, ModelState.LOADED)

    @property
    def idle(self) -> bool:
        return self.state is ModelState.LOADED and not self.running and not self.waiting


@dataclass
class Pod:
    """Loads what is asked for as soon as there is room, for which only idle models go."""

    copies: dict[str, Copy] = field(default_factory=lambda: {name: Copy() for name in SIZES})

    def free(self) -> int:
        return CAPACITY - sum(SIZES[name] for name, copy in self.copies.items() if copy.resident)

    def seats(self) -> int:
        return SEATS - sum(copy.resident for copy in self.copies.values())

    def room(self) -> RoomReport:
        idle = [name for name, copy in self.copies.items() if copy.idle]
        return RoomReport(
            free_bytes=self.free(),
            reach_bytes=self.free() + sum(SIZES[name] for name in idle),
            free_seats=self.seats(),
            reach_seats=self.seats() + len(idle),
        )

    def fits(self, name: str) -> bool:
        """Whether the model could be loaded without ending one that has requests."""
        told = self.room()
        return told.reach_bytes >= SIZES[name] and told.reach_seats >= 1

    def report(self) -> Report:
        entries = [
            ModelReport(
                name=name,
                state=copy.state,
                need_bytes=SIZES[name],
                busy=len(copy.running),
                queued=len(copy.waiting),
                slots=SLOTS if copy.state is ModelState.LOADED else 0,
            )
            for name, copy in self.copies.items()
        ]
        return Report(pod="", version="1", room=self.room(), models=entries)

    def go_on(self) -> None:
        """Loads and starts whatever can be."""
        for name, copy in self.copies.items():
            if copy.waiting and copy.state is ModelState.UNLOADED and self.fits(name):
                for other in self.copies.values():
                    if other.idle and (self.free() < SIZES[name] or self.seats() < 1):
                        other.state = ModelState.UNLOADED
                copy.state = ModelState.LOADING
            while copy.state is ModelState.LOADED and copy.waiting and len(copy.running) < SLOTS:
                copy.running.append(copy.waiting.pop(0))


class World:
    """Three pods of one pool and two gateways."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.opened = 0
        self.fresh = False
        """Nobody has asked since the last reports."""
        self.pods = {f"{seed}-{number}": Pod() for number in range(3)}
        view = PodView("default", "", "", "uid-p", "10.0.0.1", ready=True, shared_pool="p")
        views = {uid: replace(view, name=uid, uid=uid) for uid in self.pods}
        self.gateways = [Directory(Loads(lambda: self.now), "default") for _ in range(2)]
        for gateway in self.gateways:
            gateway.follow({model.uid: model for model in MODELS.values()}, views)
        self.report()

    def report(self) -> None:
        """Both gateways hear the same of every pod at the same time."""
        for uid, pod in self.pods.items():
            for gateway in self.gateways:
                gateway.loads.observe_report(uid, pod.report())
        self.fresh = True

    def holders(self, name: str) -> int:
        copies = [pod.copies[name] for pod in self.pods.values()]
        return sum(copy.resident or bool(copy.waiting) for copy in copies)

    def ask(self, number: int, name: str) -> None:
        """A gateway gets a request for the model."""
        choice = self.gateways[number].choose(MODELS[name])
        if self.fresh:
            self.check(name, choice)
        self.fresh = False
        uid = choice.pods[0].uid
        self.gateways[number].loads.begin(uid, name)
        copy = self.pods[uid].copies[name]
        if copy.state is ModelState.FAILED:
            copy.state = ModelState.UNLOADED
        copy.waiting.append(number)
        self.opened += choice.further is not None
        most = MOST[name]
        assert most is None or self.holders(name) <= most

    def check(self, name: str, choice: Choice) -> None:
        """Whether the gateways agree, and the choice is right by what the pods are."""
        cold = not self.holders(name)
        other = self.gateways[0].choose(MODELS[name]), self.gateways[1].choose(MODELS[name])
        if cold:
            assert other[0].pods[0] == other[1].pods[0] == choice.pods[0]
            pods = [pod for pod in self.pods.values() if pod.copies[name].state is not ModelState.FAILED]
            assert self.pods[choice.pods[0].uid].fits(name) or not any(pod.fits(name) for pod in pods)
        if choice.further is not None:
            told = self.pods[choice.further.pod.uid].room()
            assert told.free_bytes >= SIZES[name]
            assert told.free_seats >= 1
        if other[0].further and other[1].further:
            assert other[0].further.pod == other[1].further.pod

    def finish(self, uid: str, name: str, requests: list[int]) -> None:
        for number in requests:
            self.gateways[number].loads.end(uid, name)
        requests.clear()

    def step(self) -> None:
        self.now += self.chance.uniform(0.5, 1.5)
        for uid, pod in self.pods.items():
            for name, copy in pod.copies.items():
                luck = self.chance.random()
                if copy.state is ModelState.LOADING and luck < 0.3:
                    copy.state = ModelState.LOADED
                elif copy.state is ModelState.LOADING and luck < 0.35:
                    copy.state = ModelState.FAILED
                    self.finish(uid, name, copy.waiting)
                elif (copy.state is ModelState.FAILED and luck < 0.2) or (copy.idle and luck < 0.1):
                    copy.state = ModelState.UNLOADED
                elif luck < 0.4:
                    self.finish(uid, name, copy.running)
            pod.go_on()
        self.report()


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_no_copy_too_many_and_nothing_busy_goes(first: int) -> None:
    opened = 0
    for seed in range(first, first + 10):
        world = World(seed)
        # Most of the traffic is for one model at a time, so that its queue lasts.
        for _ in range(6):
            favourite = world.chance.choice(sorted(SIZES))
            for _ in range(25):
                names = [favourite] * world.chance.randint(0, 4) + [world.chance.choice(sorted(SIZES))]
                name = world.chance.choice(names)
                for _ in range(world.chance.randint(0, 4)):
                    world.ask(world.chance.randrange(2), name)
                    if world.chance.random() < 0.5:
                        world.report()
                world.step()
        opened += world.opened
    assert opened >= 3, "the schedules do open further copies"
