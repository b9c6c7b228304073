"""The plain and the overlapped loop, side by side: the same scheduler, decoder and sampler, the same tokens.

The heart of a runner. Plain: plan a step, compute it, tell its tokens. Overlapped: plan and launch the next step
while this one computes, then tell this one's tokens; the next one takes its input tokens from the device, so the
host never waits for a token in order to launch. The price: a sequence that ends by a stop token or an abort has
one row in the step that was launched already; its token is dropped.
"""

from tandem_server.engine.interface import Link, Stopped
from tandem_server.engine.native.executors import Executor, Pending
from tandem_server.engine.native.scheduler import Planned, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Abort, Add, Stop, TokenRow, Tokens, ToRunner


class Loop:
    """What both loops share: commands in, tokens and figures out."""

    def __init__(self, scheduler: Scheduler, executor: Executor, link: Link, stats: StatsKeeper) -> None:
        self._scheduler, self._executor, self._link, self._stats = scheduler, executor, link, stats

    def run_plain(self) -> None:
        """One step after the other. Returns when told to stop."""
        while self._take_commands(wait=self._scheduler.idle):
            step = self._launch()
            if step:
                self._commit(step)

    def run_overlapped(self) -> None:
        """Two steps in flight. Returns when told to stop."""
        computing: tuple[Planned, Pending] | None = None
        while self._take_commands(wait=self._scheduler.idle):
            following = self._launch()
            if computing:
                self._commit(computing)
            computing = following

    def _launch(self) -> tuple[Planned, Pending] | None:
        planned = self._scheduler.plan()
        return (planned, self._executor.launch(planned.plan)) if planned else None

    def _commit(self, step: tuple[Planned, Pending]) -> None:
        planned, pending = step
        self._tell(planned.plan.number, self._scheduler.commit(planned, pending.result()))
        self._stats.after_step()

    def _tell(self, step: int, rows: list[TokenRow]) -> None:
        if rows:
            self._link.send(Tokens(step, rows))

    def _take_commands(self, wait: bool) -> bool:
        """Takes in what the front end sent; False when it asked to stop. Sleeps on the socket when `wait`."""
        if wait:
            self._stats.falling_idle()
        try:
            messages = self._link.receive(None if wait else 0)
            if wait:
                self._stats.waking()
            rows = [row for message in messages if (row := self._take(message))]
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
            case Stop():
                raise Stopped
            case _:
                return TokenRow(message.request, [], "error", "this model makes text; it has no embeddings to give")
