"""Admission: the bounded first-in, first-out queue in front of one model's slots.

First on the path of a request inside the pod. `line.Line` is pure and decides; `Admission` gives it the time and wakes
those who wait. A request holds its slot until the runner's final row for it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from tandem_api.dialects import ApiError
from tandem_server.line import Line, Place, Refusal, Refused, Ticket

REJECTED_WINDOW = 300.0


class PodBound:
    """How many requests may wait in the whole pod, over all models.

    Half of the places are for whoever comes; the other half is shared out evenly among the models, so that the queue
    of one never takes the last place of another.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Over all models."""
        return sum(self._waiting.values())

    def join(self, model: str) -> None:
        """The pod has this model."""
        self._waiting.setdefault(model, 0)

    def leave(self, model: str) -> None:
        """The pod has it no more; nobody waits for it."""
        self._waiting.pop(model, None)

    def count(self, model: str, more: int) -> None:
        """So many more wait for the model; fewer when negative."""
        self._waiting[model] = self._waiting.get(model, 0) + more

    def has_room(self, model: str) -> bool:
        """Whether one more may wait for this model."""
        share = self.limit // (2 * max(1, len(self._waiting)))
        kept = sum(max(0, share - waiting) for name, waiting in self._waiting.items() if name != model)
        own = self._waiting.get(model, 0) < share
        return self.waiting < self.limit and (own or self.waiting + kept < self.limit)


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

    def too_late(self) -> ApiError:
        """What a request is told that got a slot, but no memory for it by its deadline."""
        return self._admission.too_late()

    def leave(self) -> None:
        """Gives the slot or the place in line back; may be called any number of times."""
        self._admission.leave(self)


class Admission:
    """One model's line on the running event loop, with counters for the report.

    Args:
        on_refused: told of each refusal, for metrics and the summed-up log line.
        on_use: told whenever more or fewer requests run or wait.
    """

    def __init__(
        self,
        model: str,
        queue_max: int,
        timeout: float,
        bound: PodBound,
        on_refused: Callable[[Refusal], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
        on_use: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.line = Line(queue_max, timeout)
        self.admitted_total = 0
        self.rejected_total = 0
        self._bound = bound
        bound.join(model)
        self._on_refused = on_refused
        self.on_use = on_use
        self._clock = clock
        self._passes: dict[Ticket, Pass] = {}
        self._rejections: deque[float] = deque(maxlen=100_000)
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> Pass:
        """Takes a place in line now, in order of calls. Raises ApiError (503) when there is none."""
        now = self._clock()
        try:
            ticket = self.line.enter(now, self._bound.has_room(self.model))
        except Refused as refused:
            raise self._refusal(refused.reason, refused.retry_after) from None
        access = Pass(self, ticket)
        self._passes[ticket] = access
        if ticket.place is Place.RUNNING:
            self._granted([ticket])
        else:
            self._bound.count(self.model, 1)
            loop = asyncio.get_running_loop()
            access.timer = loop.call_later(ticket.deadline - now, self._expire, access)
        self.on_use()
        return access

    def leave(self, access: Pass) -> None:
        """See `Pass.leave`."""
        if self._passes.pop(access.ticket, None) is None:
            return
        if access.timer is not None:
            access.timer.cancel()
        if access.ticket.place is Place.WAITING:
            self._bound.count(self.model, -1)
        access.future.cancel()
        self._granted(self.line.leave(access.ticket, self._clock()))
        if not self.line.running:
            self._idle.set()
        self.on_use()

    def too_late(self) -> ApiError:
        """See `Pass.too_late`."""
        return self._refusal(Refusal.QUEUE_TIMEOUT, self.line.expected_wait(self._clock()))

    def resize(self, slots: int) -> None:
        """The model has so many slots from now on; 0 holds everyone."""
        self._granted(self.line.resize(slots, self._clock()))
        self.on_use()

    def hand_back(self, error: ApiError | None = None) -> int:
        """Ends the wait of all who wait, with `error` or as draining; returns how many."""
        tickets = self.line.hand_back()
        for ticket in tickets:
            access = self._passes.pop(ticket)
            self._bound.count(self.model, -1)
            if access.timer is not None:
                access.timer.cancel()
            self._fail(access, error or self._refusal(Refusal.DRAINING, 1.0))
        self.on_use()
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
                self._bound.count(self.model, -1)
            if not access.future.done():
                access.future.set_result(None)

    def _expire(self, access: Pass) -> None:
        access.timer = None
        ticket = access.ticket
        if self.line.expire(ticket, max(self._clock(), ticket.deadline)):
            del self._passes[ticket]
            self._bound.count(self.model, -1)
            self._fail(access, self.too_late())
            self.on_use()

    def _fail(self, access: Pass, error: ApiError) -> None:
        if not access.future.done():
            access.future.set_exception(error)
            access.future.exception()  # told or not: an error that nobody waits for any more is not a fault

    def _limit_words(self) -> str:
        line, bound = self.line, self._bound
        if len(line.waiting) >= line.queue_max:
            return f"queue.max is {line.queue_max}"
        return f"{bound.waiting} in the whole pod, which takes {bound.limit} (maxQueue) with a share for each model"

    def _refusal(self, reason: Refusal, retry_after: float) -> ApiError:
        self.rejected_total += 1
        self._rejections.append(self._clock())
        self._on_refused(reason)
        line = self.line
        message = {
            Refusal.QUEUE_FULL: f"the queue of model '{self.model}' is full: {len(line.running)} requests run, "
            f"{len(line.waiting)} wait, and {self._limit_words()}",
            Refusal.QUEUE_TIMEOUT: f"the request waited {line.timeout:g} s for a slot of model '{self.model}' "
            "(queue.timeoutSeconds) and none came free",
            Refusal.DRAINING: "this server is shutting down and takes no further requests",
        }[reason]
        return ApiError(503, message, code=reason.value, refused=reason.value, retry_after=retry_after)
