"""Which requests find their model loaded: our rules and Ollama's on one trace, both simulated in virtual time.

Half of `residency.py`. Eight models of one size, room for three; requests by Zipf's law, one after the other in a
random process, short beside the time between them. Our side is the real `Room` with its rules. Ollama's is its
scheduler's rule (`server/sched.go`): when another model needs room, of the idle ones the one goes whose keep-alive is
the shortest, and among equals the first by name.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem_server.residency.holds import Holds, Wish
from tandem_server.residency.ledger import Grant, Leave, Need
from tandem_server.residency.room import Room

MODELS, ROOM = 8, 3
LOAD_SECONDS, SERVICE_SECONDS = 2.0, 0.5


@dataclass(frozen=True)
class Arrival:
    """One request."""

    at: float
    model: int


def trace(seed: int, requests: int = 3000, mean_gap: float = 8.0, exponent: float = 1.0) -> list[Arrival]:
    """Requests by Zipf's law over the models; which of them is the most wanted is drawn, so that names mean nothing."""
    draw = random.Random(seed)
    ranks = list(range(MODELS))
    draw.shuffle(ranks)
    weights = [1.0 / (rank + 1) ** exponent for rank in ranks]
    now, found = 0.0, []
    for _ in range(requests):
        now += draw.expovariate(1.0 / mean_gap)
        found.append(Arrival(now, draw.choices(range(MODELS), weights)[0]))
    return found


def keep_alives(seed: int, kind: str) -> list[float]:
    """Of each model, seconds: the usual 5 minutes for `same`, else drawn from what people write."""
    draw = random.Random(seed + 1)
    return [300.0 if kind == "same" else draw.choice((60.0, 300.0, 1800.0, math.inf)) for _ in range(MODELS)]


def ollama(arrivals: Sequence[Arrival], keeps: Sequence[float]) -> float:
    """Share of requests that find their model loaded, by Ollama's rule; loads happen one at a time."""
    loaded: dict[int, float] = {}
    """When each is idle again, or since when it is."""
    warm, free_at = 0, 0.0
    for arrival in arrivals:
        now = max(arrival.at, free_at)
        for name in [name for name, idle in loaded.items() if idle + keeps[name] <= now and name != arrival.model]:
            del loaded[name]
        if arrival.model in loaded and loaded[arrival.model] + keeps[arrival.model] > arrival.at:
            warm += 1
            loaded[arrival.model] = max(loaded[arrival.model], arrival.at) + SERVICE_SECONDS
            continue
        loaded.pop(arrival.model, None)
        if len(loaded) >= ROOM:
            idle = [name for name, since in loaded.items() if since <= now] or [
                min(loaded, key=lambda one: loaded[one])
            ]
            gone = min(idle, key=lambda name: (keeps[name], name))
            now = max(now, loaded.pop(gone))
        free_at = now + LOAD_SECONDS
        loaded[arrival.model] = free_at + SERVICE_SECONDS
    return warm / len(arrivals)


class _Ours:
    """The real room in virtual time; each model serves one request after the other."""

    def __init__(self, keeps: Sequence[float]) -> None:
        self.now, self.warm = 0.0, 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.room = Room([ROOM], MODELS, self.later, clock=lambda: self.now)
        self.models = [_Model(f"m{number}", self, keep) for number, keep in enumerate(keeps)]

    def later(self, seconds: float, call: Callable[[], None]) -> "_Timer":
        timer = _Timer(call)
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), timer.ring))
        return timer

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = until


class _Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def ring(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class _Model:
    """A tenant of the room."""

    def __init__(self, name: str, world: _Ours, keep: float) -> None:
        self.name, self.state, self.waiting, self.running = name, "unloaded", 0, 0
        self._world = world
        self._holds = Holds(keep, keep)

    def arrive(self) -> None:
        world = self._world
        world.warm += self.state == "loaded"
        self._holds.used(Wish(), world.now)
        if self.state == "loaded" and not self.running:
            self._start()
        else:
            self.waiting += 1
        self._tell()
        if self.state == "unloaded":
            self._ask()

    def granted(self, grant: Grant) -> None:
        self.state = "loading"
        self._world.later(LOAD_SECONDS, self._loaded)

    def leave(self, order: Leave) -> None:
        self.state = "leaving"
        self._world.later(0.0, self._gone)

    def refused(self, sentence: str) -> None:
        raise AssertionError(sentence)

    def later(self) -> None:
        raise AssertionError("somebody asks")

    def pause(self) -> None:
        self.state = "paused"

    def resume(self) -> None:
        self.state = "loaded"
        self._go_on()

    def _ask(self) -> None:
        self.state = "asking"
        self._world.room.ask(self.name, Need(1, 1), self, self.waiting)

    def _loaded(self) -> None:
        self.state = "loaded"
        self._world.room.loaded(self.name, 1, self._holds.end())
        self._go_on()

    def _gone(self) -> None:
        self.state = "unloaded"
        self._world.room.gone(self.name)
        if self.waiting:
            self._ask()

    def _go_on(self) -> None:
        if self.waiting and not self.running and self.state == "loaded":
            self.waiting -= 1
            self._start()
        self._tell()

    def _start(self) -> None:
        self.running = 1
        self._world.later(SERVICE_SECONDS, self._ended)

    def _ended(self) -> None:
        self.running = 0
        self._holds.ended("", self._world.now)
        self._go_on()

    def _tell(self) -> None:
        self._world.room.use(self.name, self.running, self.waiting, self._holds.end())


def ours(arrivals: Sequence[Arrival], keeps: Sequence[float]) -> float:
    """Share of requests that find their model loaded, by the rules of this project."""
    world = _Ours(keeps)
    for arrival in arrivals:
        world.run(arrival.at)
        world.models[arrival.model].arrive()
    return world.warm / len(arrivals)
