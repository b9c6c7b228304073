"""Who leads, decided from what a Lease was seen to be. Pure: no I/O and no clock of its own.

First in the life of an operator process, before anything is watched; `election` carries out what is decided here.

Another process's clock is never read: of the times in a Lease none is looked at. A holder is taken for dead when the
Lease has not changed for as long as the holder promised, by the clock of the one who looks, counted from the moment
when it looked. The holder itself stops `renew` seconds after it *sent* its last accepted write, by its own clock, so
it has stopped before anybody takes over, as long as `renew` < `lease` and the clocks run about equally fast.
"""

from dataclasses import dataclass

NEVER = float("-inf")


@dataclass(frozen=True)
class Times:
    """In seconds, retry < renew < lease.

    Attributes:
        lease: for how long after a sign of life nobody else takes over.
        renew: for how long after its last accepted write the holder leads.
        retry: between two looks or renewals.
    """

    lease: int
    renew: float
    retry: float


@dataclass(frozen=True)
class Seen:
    """A Lease as the API server has it. `version` is its resourceVersion, `holder` "" when nobody holds it."""

    version: str
    holder: str
    seconds: float
    transitions: int
    acquired: str


@dataclass(frozen=True)
class Read:
    """Look at the Lease."""


@dataclass(frozen=True)
class Write:
    """Write the Lease, if it still has `version`; "" creates it. `acquired` "" means now."""

    version: str
    holder: str
    transitions: int
    acquired: str


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Lost:
    """This process has led and does so no more; it is not to try again."""

    why: str


Action = Read | Write | Wait | Lost


class Candidate:
    """What one process knows of a Lease, and what it is to do next. `now` is its own clock, which only grows."""

    def __init__(self, identity: str, times: Times) -> None:
        self.identity = identity
        self.seen: Seen | None = None
        self.looked = False
        """Whether the API server has ever said how the Lease is."""
        self.valid_until = NEVER
        self._times = times
        self._led = False
        self._fresh = False
        self._missing = False
        self._changed_at = NEVER
        self._next_at = NEVER
        self._cause = "no attempt came to an end"

    def leads(self, now: float) -> bool:
        """Whether this process may write at this moment."""
        return now < self.valid_until

    def next(self, now: float) -> Action:
        """What to do at `now`; each Read and Write is to be followed by one call that says how it ended."""
        if self._led and not self.leads(now):
            return Lost(f"the Lease could not be renewed for {self._times.renew:g} s: {self._cause}")
        if self._led and self.seen is not None and self.seen.holder != self.identity:
            self.valid_until = NEVER
            return Lost(f"{self.seen.holder or 'nobody'} holds the Lease now, by no doing of this process")
        if now < self._next_at:
            return Wait(min(self._next_at, self.valid_until if self._led else self._next_at) - now)
        if not self._fresh:
            return Read()
        held_until = self._held_until()
        if now < held_until:
            self._fresh = False
            self._next_at = min(now + self._times.retry, held_until)
            return Wait(self._next_at - now)
        return self._claim()

    def _held_until(self) -> float:
        """Until when the Lease is another's. One that was deleted stays so until its holder must have noticed."""
        if self.seen is None or self.seen.holder in ("", self.identity):
            return NEVER
        return self._changed_at + self.seen.seconds

    def _claim(self) -> Write:
        seen = self.seen
        if seen is None:
            return Write("", self.identity, 0, "")
        version = "" if self._missing else seen.version
        if seen.holder == self.identity:
            return Write(version, self.identity, seen.transitions, seen.acquired)
        return Write(version, self.identity, seen.transitions + 1, "")

    def patience(self, now: float) -> float:
        """How long a request that is sent at `now` may take: there must be time for a second one."""
        left = self.valid_until - now if self._led else self._times.renew
        return max(0.0, min(self._times.renew / 2, left))

    def read(self, seen: Seen | None, now: float) -> None:
        """The API server answered a Read, or told by a Write's answer how the Lease is; None when there is none."""
        self.looked = self._fresh = True
        self._missing = seen is None
        if seen is not None and (self.seen is None or self.seen.version != seen.version):
            self.seen = seen
            self._changed_at = now

    def wrote(self, seen: Seen, sent: float, now: float) -> None:
        """A Write of ours that was sent at `sent` was accepted, and left the Lease like this."""
        self.read(seen, now)
        self._next_at = sent + self._times.retry
        # An answer that took too long proves nothing: others may count from the moment of sending. It also never
        # takes back what a shorter request has proved since.
        self.valid_until = max(self.valid_until, sent + self._times.renew)
        self._led = self._led or self.leads(now)

    def conflict(self, now: float) -> None:
        """The Lease was not as a Write supposed; an earlier one of ours, whose answer was lost, may be the reason."""
        self._fresh = False
        self._next_at = now + self._times.retry / 5
        self._cause = "it was changed by others"

    def failed(self, cause: str, now: float) -> None:
        """A Read or Write had no useful answer. A Write may have been carried out all the same."""
        self._fresh = False
        self._next_at = now + self._times.retry
        self._cause = cause

    def resign(self) -> None:
        """This process writes no more from now on."""
        self.valid_until = NEVER
