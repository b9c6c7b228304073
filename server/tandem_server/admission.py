"""Admission: the bounded first-in, first-out queue in front of one model's slots.

First on the path of a request inside the pod. `Line` is pure (no clock, no event loop) and decides; `Admission`
gives it the time and wakes those who wait. A request holds its slot until the runner's final row for it.
"""

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem_api import names
from tandem_api.dialects import ApiError

FIRST_GUESS_SECONDS = 1.0
"""Told as the wait before anything was measured."""
SMOOTHING = 0.2
"""Weight of the newest completion in the measured service time."""
REJECTED_WINDOW = 300.0


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


class PodBound:
    """How many requests may wait in the whole pod, over all models."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0


class Pass:
    """A request's way through admission: wait with `granted`, give the slot back with `leave`."""

    def __init__(self, admission: "Admission", ticket: Ticket) -> None:
        self._admission = admission
        self.ticket = ticket
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None

    async def granted(self) -> None:
        """Returns once a slot is held. Raises ApiError when the wait ended otherwise; leaves no trace if cancelled."""
        try:
            await self.future
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Gives the slot or the place in line back; may be called any number of times."""
        self._admission.leave(self)


class Admission:
    """One model's line on the running event loop, with counters for the report.

    Args:
        on_refused: told of each refusal, for metrics and the summed-up log line.
    """

    def __init__(
        self,
        model: str,
        queue_max: int,
        timeout: float,
        bound: PodBound,
        on_refused: Callable[[Refusal], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.line = Line(queue_max, timeout)
        self.admitted_total = 0
        self.rejected_total = 0
        self._bound = bound
        self._on_refused = on_refused
        self._clock = clock
        self._passes: dict[Ticket, Pass] = {}
        self._rejections: deque[float] = deque(maxlen=100_000)
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> Pass:
        """Takes a place in line now, in order of calls. Raises ApiError (503) when there is none."""
        now = self._clock()
        try:
            ticket = self.line.enter(now, self._bound.waiting < self._bound.limit)
        except Refused as refused:
            raise self._refusal(refused.reason, refused.retry_after) from None
        access = Pass(self, ticket)
        self._passes[ticket] = access
        if ticket.place is Place.RUNNING:
            self._granted([ticket])
        else:
            self._bound.waiting += 1
            loop = asyncio.get_running_loop()
            access.timer = loop.call_later(ticket.deadline - now, self._expire, access)
        return access

    def leave(self, access: Pass) -> None:
        """See `Pass.leave`."""
        if self._passes.pop(access.ticket, None) is None:
            return
        if access.timer is not None:
            access.timer.cancel()
        if access.ticket.place is Place.WAITING:
            self._bound.waiting -= 1
        access.future.cancel()
        self._granted(self.line.leave(access.ticket, self._clock()))
        if not self.line.running:
            self._idle.set()

    def resize(self, slots: int) -> None:
        """The model has so many slots from now on; 0 holds everyone."""
        self._granted(self.line.resize(slots, self._clock()))

    def hand_back(self, error: ApiError | None = None) -> int:
        """Ends the wait of all who wait, with `error` or as draining; returns how many."""
        tickets = self.line.hand_back()
        for ticket in tickets:
            access = self._passes.pop(ticket)
            self._bound.waiting -= 1
            if access.timer is not None:
                access.timer.cancel()
            self._fail(access, error or self._refusal(Refusal.DRAINING, 1.0))
        return len(tickets)

    async def idle(self) -> None:
        """Returns when nobody holds a slot."""
        await self._idle.wait()

    def rejected_recently(self) -> int:
        """Refusals of the last five minutes."""
        floor = self._clock() - REJECTED_WINDOW
        while self._rejections and self._rejections[0] < floor:
            self._rejections.popleft()
        return len(self._rejections)

    def _granted(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            self.admitted_total += 1
            self._idle.clear()
            access = self._passes[ticket]
            if access.timer is not None:
                access.timer.cancel()
                access.timer = None
                self._bound.waiting -= 1
            if not access.future.done():
                access.future.set_result(None)

    def _expire(self, access: Pass) -> None:
        access.timer = None
        ticket = access.ticket
        if self.line.expire(ticket, max(self._clock(), ticket.deadline)):
            del self._passes[ticket]
            self._bound.waiting -= 1
            self._fail(access, self._refusal(Refusal.QUEUE_TIMEOUT, self.line.expected_wait(self._clock())))

    def _fail(self, access: Pass, error: ApiError) -> None:
        if not access.future.done():
            access.future.set_exception(error)
            access.future.exception()  # told or not: an error that nobody waits for any more is not a fault

    def _refusal(self, reason: Refusal, retry_after: float) -> ApiError:
        self.rejected_total += 1
        self._rejections.append(self._clock())
        self._on_refused(reason)
        line = self.line
        message = {
            Refusal.QUEUE_FULL: f"the queue of model '{self.model}' is full: {len(line.running)} requests run, "
            f"{len(line.waiting)} wait, and queue.max is {line.queue_max}",
            Refusal.QUEUE_TIMEOUT: f"the request waited {line.timeout:g} s for a slot of model '{self.model}' "
            "(queue.timeoutSeconds) and none came free",
            Refusal.DRAINING: "this server is shutting down and takes no further requests",
        }[reason]
        return ApiError(503, message, code=reason.value, refused=reason.value, retry_after=retry_after)
