"""When a runner counts as hung: rules without a clock or a process.

Beside the path of every request; `runner` looks once a second and ends what is hung, since requests that hang are
worse than a restart. Four rules, from the surest: an abort that is not confirmed; no heartbeat, so the process is
stopped or hangs as a whole; no step and no CPU time while requests run, as in a deadlock; no step for very long.
A long prompt takes CPU time, and a slow load beats: neither is mistaken for a hang.
"""

from dataclasses import dataclass

from tandem_server.config import Settings

IDLE_SHARE = 0.02
"""Of one CPU: a process that takes less does not compute."""
LATE_SECONDS = 2.0
"""A look that comes so much too late says that this process itself stood still: everything is measured from then."""


@dataclass(frozen=True)
class Look:
    """What is seen of a runner at one moment. Times are in seconds.

    Attributes:
        now: the time, of any clock.
        beaten: whether a heartbeat came since the last look.
        state: the process's state letter of /proc, empty when unknown.
        running: requests that run on it.
        quiet_since: when it last said anything, or its first request came if that is later.
        oldest_abort: when the oldest abort that is not confirmed was sent, or None.
        cpu_seconds: CPU time of all its processes, None where it was not asked for.
    """

    now: float
    beaten: bool
    state: str
    running: int
    quiet_since: float
    oldest_abort: float | None
    cpu_seconds: float | None = None


class Watchdog:
    """The rules with the little they remember. `interval` is how often to look."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        bounds = (settings.heartbeat_seconds, settings.wedge_seconds, settings.stall_seconds, settings.abort_seconds)
        self.interval = min(1.0, *(bound / 4 for bound in bounds))
        self._missed = 0
        self._last = self._awake_since = 0.0
        self._still: tuple[float, float] | None = None
        """Since when it may be wedged, and the CPU time at that moment."""

    def asks_for_cpu(self, look: Look) -> bool:
        """Whether the rules need `cpu_seconds` now; it costs a walk through /proc."""
        return look.running > 0 and self._since(look, look.quiet_since) > self._settings.wedge_seconds / 2

    def hung(self, look: Look) -> str | None:
        """Why the runner is to be killed, as the predicate of a sentence; None while it is well."""
        settings = self._settings
        if self._last and look.now - self._last > self.interval + LATE_SECONDS:
            self._awake_since = look.now
        self._last = look.now
        # Looks are counted, not seconds: while this process was stopped or the machine slept, no beat could come.
        self._missed = 0 if look.beaten else self._missed + 1
        if look.oldest_abort is not None and self._since(look, look.oldest_abort) > settings.abort_seconds:
            return f"did not end an aborted request within {settings.abort_seconds:g} s and was killed"
        if self._missed * self.interval > settings.heartbeat_seconds:
            stopped = " (it is stopped, as by SIGSTOP or a debugger)" if look.state in ("T", "t") else ""
            return f"gave no sign of life for {settings.heartbeat_seconds:g} s{stopped} and was killed"
        if not look.running:
            self._still = None
            return None
        quiet = self._since(look, look.quiet_since)
        if quiet > settings.stall_seconds:
            return f"made no step for {settings.stall_seconds:g} s while requests ran and was killed"
        return self._wedged(look, quiet)

    def _since(self, look: Look, moment: float) -> float:
        return look.now - max(moment, self._awake_since)

    def _wedged(self, look: Look, quiet: float) -> str | None:
        if look.cpu_seconds is None or not self.asks_for_cpu(look):
            self._still = None
            return None
        since, used = self._still or (look.now, look.cpu_seconds)
        if look.cpu_seconds - used > IDLE_SHARE * (look.now - since) + IDLE_SHARE:
            since, used = look.now, look.cpu_seconds
        self._still = (since, used)
        if quiet > self._settings.wedge_seconds and look.now - since > self._settings.wedge_seconds / 2:
            return (
                f"made no step and used no CPU for {quiet:.0f} s while requests ran, as in a deadlock, and was killed"
            )
        return None
