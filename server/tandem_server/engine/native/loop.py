"""The plain and the overlapped loop, side by side: the same scheduler, decoder and sampler, the same tokens.

The heart of a runner. Plain: plan a step, compute it, tell its tokens. Overlapped: plan and launch the next step
while this one computes, then tell this one's tokens; the next one takes its input tokens from the device, so the
host never waits for a token in order to launch. The price: a sequence that ends by a stop token or an abort has
one row in the step that was launched already; its token is dropped. Rows that follow a grammar are computed with all
others, but sampled once the step before is told, while the device still computes: nobody else waits for them.
"""

from dataclasses import dataclass

from tandem_server.engine.interface import Link, Stopped
from tandem_server.engine.native.executors import Executor, Pending
from tandem_server.engine.native.scheduler import Planned, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.native.timeline import Launched, Timeline
from tandem_server.engine.wire import Abort, Add, Stop, TokenRow, Tokens, ToRunner, Trace, Traced

GRAMMAR_SECONDS = 0.002
"""Between two looks at grammars in the making, while there is nothing else to do."""


@dataclass
class InFlight:
    """A launched step, and when it was launched."""

    planned: Planned
    pending: Pending
    times: Launched
    late: Pending | None = None
    """The samples that were launched later."""


class Loop:
    """What both loops share: commands in, tokens and figures out."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        link: Link,
        stats: StatsKeeper,
        timeline: Timeline | None = None,
    ) -> None:
        self._scheduler, self._executor, self._link, self._stats = scheduler, executor, link, stats
        self._timeline = timeline or Timeline()
        self._woken = False

    def run_plain(self) -> None:
        """One step after the other. Returns when told to stop."""
        while self._take_commands():
            step = self._launch()
            if step:
                self._launch_late(step)
                self._commit(step)

    def run_overlapped(self) -> None:
        """Two steps in flight. Returns when told to stop."""
        computing: InFlight | None = None
        while self._take_commands():
            following = self._launch()
            if computing:
                self._commit(computing)
            if following:
                self._launch_late(following)
            computing = following

    def _launch(self) -> InFlight | None:
        clock, woken = self._timeline.clock, self._woken
        began = clock()
        planned = self._scheduler.plan()
        if planned is None:
            return None
        self._woken = False
        if self._scheduler.tells_seats:
            self._tell(planned.plan.number, planned.seats())
        decided = clock()
        pending = self._executor.launch(planned.plan)
        return InFlight(planned, pending, Launched(woken, began, decided, clock()))

    def _launch_late(self, step: InFlight) -> None:
        plan = self._scheduler.late(step.planned) if step.planned.late else None
        if plan:
            step.late = self._executor.launch(plan)

    def _commit(self, step: InFlight) -> None:
        clock, plan = self._timeline.clock, step.planned.plan
        asked = clock()
        result, times = step.pending.result(), step.pending.times
        if step.late:
            result, times = result.joined(step.late.result()), times._replace(ended=step.late.times.ended)
        known = clock()
        self._tell(plan.number, self._scheduler.commit(step.planned, result))
        self._stats.after_step()
        self._timeline.add(plan, step.times, times, asked, known)

    def _tell(self, step: int, rows: list[TokenRow]) -> None:
        if rows:
            self._link.send(Tokens(step, rows))

    def _take_commands(self) -> bool:
        """Takes in what the front end sent; False when it asked to stop. Sleeps on the socket where all is idle."""
        wait, resting = self._scheduler.idle, self._scheduler.resting
        if wait:
            self._stats.falling_idle()
        try:
            messages = self._link.receive(None if wait else GRAMMAR_SECONDS if resting else 0)
            if wait:
                self._woken = True
                self._stats.waking()
            rows = [row for message in messages if (row := self._take(message))]
            rows += self._scheduler.compiled()
        except Stopped:
            return False
        self._tell(self._scheduler.steps, rows)
        return True

    def _take(self, message: ToRunner) -> TokenRow | None:
        match message:
            case Add():
                return self._scheduler.add(message)
            case Abort():
                return self._scheduler.abort(message.request, message.accepted)
            case Trace():
                self._link.send(Traced(message.request, self._timeline.records()))
                return None
            case Stop():
                raise Stopped
            case _:
                return TokenRow(message.request, [], "error", "this model makes text; it has no embeddings to give")
