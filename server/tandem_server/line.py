"""The rules of the queue in front of one model's slots, without a clock or an event loop.

First on the path of a request inside the pod; `admission` gives the rules the time and wakes those who wait.
"""

import enum
from dataclasses import dataclass, field

from tandem_api import names

FIRST_GUESS_SECONDS = 1.0
"""Told as the wait before anything was measured."""
SMOOTHING = 0.2
"""Weight of the newest completion in the measured service time."""


class Refusal(enum.StrEnum):
    """Why a request was turned away unserved; the value of the `x-tandem-refused` header."""

    QUEUE_FULL = names.REFUSED_QUEUE_FULL
    QUEUE_TIMEOUT = names.REFUSED_QUEUE_TIMEOUT
    DRAINING = names.REFUSED_DRAINING


class Refused(Exception):
    """Raised by `Line.enter`; `retry_after` is in seconds, unbounded."""

    def __init__(self, reason: Refusal, retry_after: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class Place(enum.Enum):
    """Where a ticket is. A ticket only ever moves downwards."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


@dataclass(eq=False)
class Ticket:
    """One request's place in line."""

    entered: float
    deadline: float
    place: Place = Place.WAITING
    started: float = 0.0


class Gate(enum.Enum):
    """What the line does with newcomers."""

    OPEN = "open"
    NO_WAITING = "no waiting"
    """Draining: who finds a free slot is served, who would wait is sent elsewhere."""
    CLOSED = "closed"


@dataclass(eq=False)
class Line:
    """The queue's state and rules. Every method that may start requests returns those that start now, in order."""

    queue_max: int
    timeout: float
    slots: int = 0
    """0 while the model is not loaded: everyone waits."""
    gate: Gate = Gate.OPEN
    running: dict[Ticket, None] = field(default_factory=dict)
    waiting: dict[Ticket, None] = field(default_factory=dict)
    service_seconds: float | None = None
    """Smoothed time that a request holds a slot."""

    def enter(self, now: float, room_elsewhere: bool = True) -> Ticket:
        """Takes a place, running if a slot is free. `room_elsewhere` is False when the pod-wide bound is reached.

        Raises Refused.
        """
        free = not self.waiting and len(self.running) < self.slots
        if self.gate is Gate.CLOSED or (self.gate is Gate.NO_WAITING and not free):
            raise Refused(Refusal.DRAINING, 1.0)
        if not free and (len(self.waiting) >= self.queue_max or not room_elsewhere):
            raise Refused(Refusal.QUEUE_FULL, self.expected_wait(now))
        ticket = Ticket(entered=now, deadline=now + self.timeout)
        if free:
            self._start(ticket, now)
        else:
            self.waiting[ticket] = None
        return ticket

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Gives up the place, whichever it is; a second call does nothing."""
        if ticket.place is Place.RUNNING:
            del self.running[ticket]
            held = now - ticket.started
            before = self.service_seconds
            self.service_seconds = held if before is None else before + SMOOTHING * (held - before)
        elif ticket.place is Place.WAITING:
            del self.waiting[ticket]
        ticket.place = Place.GONE
        return self._fill(now)

    def expire(self, ticket: Ticket, now: float) -> bool:
        """Takes the ticket out if it still waits at its deadline; True if it did."""
        if ticket.place is not Place.WAITING or now < ticket.deadline:
            return False
        self.leave(ticket, now)
        return True

    def resize(self, slots: int, now: float) -> list[Ticket]:
        """Changes the number of slots. With fewer than are in use, nobody starts until enough have left."""
        self.slots = slots
        return self._fill(now)

    def hand_back(self) -> list[Ticket]:
        """Takes out everyone who waits."""
        out = list(self.waiting)
        self.waiting.clear()
        for ticket in out:
            ticket.place = Place.GONE
        return out

    def expected_wait(self, now: float) -> float:
        """Seconds until a newcomer at the end of the line would start, by the measured rate of service."""
        service = self.service_seconds
        if service is None:
            ages = [now - ticket.started for ticket in self.running]
            service = max([FIRST_GUESS_SECONDS, *ages])
        return service * (len(self.waiting) + 1) / max(1, self.slots)

    def _start(self, ticket: Ticket, now: float) -> None:
        ticket.place = Place.RUNNING
        ticket.started = now
        self.running[ticket] = None

    def _fill(self, now: float) -> list[Ticket]:
        started = []
        while self.waiting and len(self.running) < self.slots:
            ticket = next(iter(self.waiting))
            del self.waiting[ticket]
            self._start(ticket, now)
            started.append(ticket)
        return started
