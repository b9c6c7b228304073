"""Until when a model is kept loaded: its keep-alive, and what requests wish. Rules without a clock.

Beside the path of a request; `host` tells of requests and asks for the end. A shared pod is not one user's machine: a
wish speaks for its caller only, and the model goes when the longest of them ends. A caller who owns the model
(everybody under `tandem serve`, as with Ollama) decides for all.
"""

import math
from dataclasses import dataclass, field

CALLERS = 1000
"""Callers that are remembered one by one; of more, only the latest end of those that are forgotten."""


@dataclass(frozen=True)
class Wish:
    """What a request says of the model's keep-alive.

    Attributes:
        caller: who asks, as far as is known.
        seconds: negative for ever; None when the request says nothing.
        owner: whether the caller may decide for all.
    """

    caller: str = ""
    seconds: float | None = None
    owner: bool = False


NO_WISH = Wish()


@dataclass
class _Hold:
    seconds: float
    last: float

    @property
    def end(self) -> float:
        return self.last + self.seconds


@dataclass
class Holds:
    """The callers' holds on one model. Seconds; `math.inf` is for ever.

    Attributes:
        usual: how long a request without a wish keeps the model.
        most: the longest that a wish may be.
    """

    usual: float
    most: float
    _holds: dict[str, _Hold] = field(default_factory=dict)
    _rest: float = -math.inf

    def configure(self, usual: float, most: float | None) -> None:
        """New settings; what callers wished before is cut to them, and who wished nothing gets the new default."""
        before, self.usual = self.usual, usual
        self.most = max(usual, most if most is not None else usual)
        for hold in self._holds.values():
            hold.seconds = usual if hold.seconds == before else min(hold.seconds, self.most)

    def used(self, wish: Wish, now: float) -> float:
        """A request came; without a wish its caller's last one stands. Returns the seconds that it gets.

        An owner's wish is not bounded, and replaces what all others wished.
        """
        before = self._holds.get(wish.caller)
        seconds = before.seconds if before is not None else self.usual
        if wish.seconds is not None:
            seconds = math.inf if wish.seconds < 0 else wish.seconds
            seconds = seconds if wish.owner else min(seconds, self.most)
            if wish.owner:
                self._holds.clear()
                self._rest = -math.inf
        self._holds[wish.caller] = _Hold(seconds, now)
        self._forget(now)
        return seconds

    def ended(self, caller: str, now: float) -> None:
        """A request of `caller` ended: its hold begins now."""
        hold = self._holds.get(caller)
        if hold is not None:
            hold.last = now

    def loaded(self, now: float) -> None:
        """It was loaded: kept for the usual time where nobody has asked for it yet."""
        if not self._holds:
            self._rest = max(self._rest, now + self.usual)

    def end(self) -> float:
        """When nobody wants it any more; in the past when that is so already, or nobody ever asked."""
        return max([self._rest, *(hold.end for hold in self._holds.values())])

    def _forget(self, now: float) -> None:
        if len(self._holds) <= CALLERS:
            return
        self._holds = {caller: hold for caller, hold in self._holds.items() if hold.end > now}
        while len(self._holds) > CALLERS:
            caller = min(self._holds, key=lambda each: self._holds[each].last)
            self._rest = max(self._rest, self._holds.pop(caller).end)
