"""A pod's residency in virtual time: many models, arrivals, cancels, failing loads, crashes; asserts what must hold.

The real `Room`, `Line` and `Holds` run; loads, requests and unloads are events of a heap.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem_server.line import Line, Place, Refused, Ticket
from tandem_server.residency.holds import Holds, Wish
from tandem_server.residency.ledger import Grant, Leave, Need, Phase, Why
from tandem_server.residency.room import Room
from tandem_server.residency.rules import Times

TIMES = Times(patience=2.0, stay=6.0, quiet=3.0)
LONGEST_REQUEST, LONGEST_LOAD, LONGEST_STOP = 8.0, 4.0, 1.0


@dataclass(eq=False)
class Ring:
    """A timer of the world."""

    call: Callable[[], None]
    on: bool = True

    def cancel(self) -> None:
        """Rings no more."""
        self.on = False


class World:
    """Virtual time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self._heap: list[tuple[float, int, Ring]] = []
        self._order = itertools.count()
        draw = self.random
        capacity = [draw.choice((60, 100, 150)) for _ in range(draw.choice((1, 1, 2, 3)))]
        self.room = Room(capacity, draw.choice((2, 3, 6, 99)), self.later, TIMES, lambda: self.now)
        self.models = [Model(f"m{number}", self) for number in range(draw.randint(2, 8))]

    def later(self, seconds: float, call: Callable[[], None]) -> Ring:
        """As an event loop's `call_later`."""
        ring = Ring(call)
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), ring))
        return ring

    def run(self, until: float) -> None:
        """All events until then, each followed by a look at the invariants."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, ring = heapq.heappop(self._heap)
            if ring.on:
                ring.on = False
                ring.call()
                self.check()
        self.now = until

    def check(self) -> None:
        """What must hold at every moment."""
        ledger = self.room.ledger
        for device, capacity in enumerate(ledger.capacity):
            assert ledger.held(device) <= capacity, f"more is promised of device {device} than there is"
        assert ledger.count <= ledger.most
        for model in self.models:
            model.check()


@dataclass(eq=False)
class Model:
    """A tenant with a line of requests, as `host` is."""

    name: str
    world: World
    need: Need = field(init=False)
    pinned: bool = False
    line: Line = field(default_factory=lambda: Line(queue_max=20, timeout=math.inf))
    slots: int = 1
    state: str = "unloaded"
    left: Why | None = None
    refused_until: float = -1.0

    def __post_init__(self) -> None:
        draw = self.world.random
        minimum = draw.randint(5, 90)
        self.need = Need(minimum, minimum if draw.random() < 0.5 else minimum + draw.randint(1, 80))
        self.slots = draw.randint(1, 4)
        self.pinned = draw.random() < 0.08
        usual = draw.choice((0.0, 3.0, 30.0, math.inf))
        self.holds = Holds(usual, usual)

    # What happens to it.

    def arrive(self) -> None:
        """A request; it may be cancelled at any time, waiting or running."""
        world = self.world
        if world.now < self.refused_until:
            world.counts["refused"] += 1
            return
        wish = Wish(f"c{world.random.randint(0, 3)}", world.random.choice((None, None, 0.0, -1.0)))
        self.holds.used(wish, world.now)
        try:
            ticket = self.line.enter(world.now)
        except Refused:
            world.counts["refused"] += 1
            return
        world.counts["arrived"] += 1
        if ticket.place is Place.RUNNING:
            self.start(ticket)
        if world.random.random() < 0.2:
            world.later(world.random.uniform(0.0, 10.0), lambda: self.end(ticket, "cancelled"))
        if self.state == "unloaded":
            self.ask()
        else:
            self.tell()

    def start(self, ticket: Ticket) -> None:
        assert self.state == "loaded", f"a request of {self.name} starts while it is {self.state}"
        self.world.later(self.world.random.uniform(0.1, LONGEST_REQUEST), lambda: self.end(ticket, "served"))

    def end(self, ticket: Ticket, how: str) -> None:
        if ticket.place is Place.GONE:
            return
        self.world.counts[how] += 1
        for started in self.line.leave(ticket, self.world.now):
            self.start(started)
        self.tell()

    def tell(self) -> None:
        self.world.room.use(self.name, len(self.line.running), len(self.line.waiting), self.holds.end())

    def resize(self, slots: int) -> None:
        for ticket in self.line.resize(slots, self.world.now):
            self.start(ticket)
        self.tell()

    def ask(self) -> None:
        self.state = "asking"
        modest = self.world.random.random() < 0.1
        self.world.room.ask(self.name, self.need, self, len(self.line.waiting), self.pinned, modest)

    # What it is told.

    def granted(self, grant: Grant) -> None:
        draw, world = self.world.random, self.world
        assert self.need.minimum <= grant.bytes <= self.need.wanted
        self.state = "loading"
        fails = draw.random() < 0.1
        size = grant.bytes - draw.randint(0, 2)
        world.later(draw.uniform(0.1, LONGEST_LOAD), self.gone if fails else lambda: self.is_loaded(size))

    def refused(self, sentence: str) -> None:
        assert sentence
        world = self.world
        self.state = "unloaded"
        self.refused_until = world.now + 5.0
        for ticket in self.line.hand_back():
            ticket.place = Place.GONE
            world.counts["refused"] += 1
            world.counts["arrived"] -= 1

    def is_loaded(self, size: int) -> None:
        self.state = "loaded"
        self.world.counts["loads"] += 1
        self.holds.loaded(self.world.now)
        self.world.room.loaded(self.name, size, self.holds.end())
        if self.state == "loaded":
            self.resize(self.slots)

    def later(self) -> None:
        assert not self.line.waiting
        self.state = "unloaded"
        self.world.counts["later"] += 1

    def leave(self, order: Leave) -> None:
        why = order.why
        assert self.state == "loaded"
        assert not self.line.running, f"{self.name} is evicted while it is busy"
        assert not self.line.waiting or self.line.slots == 0
        assert not (self.pinned and why is not Why.GROWS)
        self.world.counts[why.name] += 1
        self.state, self.left = "leaving", why
        self.line.resize(0, self.world.now)
        self.world.later(self.world.random.uniform(0.0, LONGEST_STOP), self.gone)

    def pause(self) -> None:
        self.world.counts["yields"] += 1
        self.line.resize(0, self.world.now)

    def resume(self) -> None:
        if self.state == "loaded":
            self.resize(self.slots)

    def crash(self) -> None:
        """The runner dies with all that runs on it."""
        if self.state != "loaded":
            return
        self.world.counts["crashes"] += 1
        self.state = "leaving"
        self.world.room.leaving(self.name)
        self.line.resize(0, self.world.now)
        for ticket in list(self.line.running):
            self.end(ticket, "failed")
        self.world.later(0.1, self.gone)

    def gone(self) -> None:
        grows, self.left = self.left is Why.GROWS, None
        self.state = "unloaded"
        self.world.room.gone(self.name)
        if self.state == "unloaded" and (self.line.waiting or grows):
            self.ask()

    def check(self) -> None:
        """A waiting request belongs to a model that is on its way."""
        one = self.world.room.of(self.name)
        assert (one is None) == (self.state == "unloaded")
        if self.line.waiting:
            assert self.state != "unloaded", f"{self.name} has lost its {len(self.line.waiting)} waiting requests"
        if one is not None and one.phase is Phase.WAITING:
            bound = patience_bound(self.world)
            assert self.world.now - one.since <= bound, f"{self.name} waits for longer than {bound:g} s"


def patience_bound(world: World) -> float:
    """Seconds in which a waiting model must have got room: everyone before it takes its turn."""
    turn = TIMES.patience + TIMES.stay + LONGEST_REQUEST + 2 * LONGEST_STOP + LONGEST_LOAD
    return turn * (len(world.models) + 1)
