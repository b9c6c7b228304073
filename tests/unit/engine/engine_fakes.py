"""What stands in for front end, device and allocator in the engine's tests. No torch, no clock, no sleep."""

import random
from collections import deque
from collections.abc import Iterable, Set

from tandem_server.engine.native.blocks import Choice
from tandem_server.engine.wire import Add, FromRunner, Stop, Tokens, ToRunner


class RecordingLink:
    """A front end that says what it was told to, then `Stop` once every awaited request has ended."""

    def __init__(self, arrivals: list[tuple[int, ToRunner]], successors: Iterable[Add] = ()) -> None:
        self._arrivals = deque(arrivals)
        """(how many times the engine has asked before, message)."""
        self._successors = list(successors)
        """Requests under an id that was used before: each is sent when its predecessor has ended."""
        self._due: list[ToRunner] = []
        self.asked = 0
        self.sent: list[FromRunner] = []

    def receive(self, timeout: float | None) -> list[ToRunner]:
        """What is due by now; when the engine would sleep, what comes next, or `Stop` at the end."""
        self.asked += 1
        due, self._due = self._due, []
        while self._arrivals and (self._arrivals[0][0] <= self.asked or (timeout is None and not due)):
            due.append(self._arrivals.popleft()[1])
        return due or ([Stop()] if timeout is None else [])

    def send(self, message: FromRunner) -> None:
        """Keeps it."""
        self.sent.append(message)
        for row in message.rows if isinstance(message, Tokens) else ():
            following = next((add for add in self._successors if row.finish and add.request == row.request), None)
            if following is not None:
                self._successors.remove(following)
                self._due.append(following)


def answers(sent: Iterable[FromRunner]) -> dict[int, list[tuple[list[int], str]]]:
    """For each id, tokens and finish of each request that had it, in order. Fails on one that did not end."""
    ended: dict[int, list[tuple[list[int], str]]] = {}
    open_: dict[int, list[int]] = {}
    for message in sent:
        for row in message.rows if isinstance(message, Tokens) else ():
            tokens = open_.setdefault(row.request, [])
            tokens += row.tokens
            if row.finish:
                ended.setdefault(row.request, []).append((open_.pop(row.request), row.finish))
    assert not open_, f"requests {sorted(open_)} never ended"
    return ended


def scattered(rng: random.Random) -> Choice:
    """An allocator that gives out free blocks in any order: what a long-lived shared pool comes to."""

    def choose(free: Set[int], count: int, home: int) -> tuple[int, ...]:
        return tuple(rng.sample(sorted(free), count))

    return choose
