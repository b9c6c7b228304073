"""Who holds how much of which device, and what may be decided about it: the state of residency, without a clock.

Below `rules`, which decides, and `room`, which gives it time and carries out. A device's memory is promised when a
load is granted, corrected to what was measured when the model is loaded, and free again when its process is gone.
"""

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

NEVER = math.inf


class Phase(enum.Enum):
    """Where a model stands with the memory. It moves downwards only; who is gone is no longer in the ledger."""

    WAITING = "waiting"
    """Wants to load; holds nothing."""
    LOADING = "loading"
    LOADED = "loaded"
    LEAVING = "leaving"
    """Its runner is being ended; it holds its memory until the process is gone."""


@dataclass(frozen=True)
class Need:
    """Bytes of a runner.

    Attributes:
        minimum: with less it cannot be loaded.
        wanted: with so much it gets the context that was asked for. More than `minimum` only where it may shrink.
    """

    minimum: int
    wanted: int


@dataclass
class Resident:
    """One model that holds memory or waits for it.

    Attributes:
        since: when it began to wait, which is its place in line.
        modest: nobody has asked for it: it loads where there is room, and otherwise when somebody does.
        device: index of the device that it lies on.
        bytes: what it holds there.
        granted: what it might have taken; less than `need.wanted` when it was shrunk.
        running: requests that hold a slot.
        queued: requests that wait for one.
        yielding: it takes no further requests, since another has waited for its room for long.
        expires: when its keep-alive ends.
        quiet_since: when its last request ended, or when it was loaded.
    """

    name: str
    need: Need
    since: float
    pinned: bool = False
    modest: bool = False
    phase: Phase = Phase.WAITING
    device: int = 0
    bytes: int = 0
    granted: int = 0
    running: int = 0
    queued: int = 0
    yielding: bool = False
    loaded_at: float = 0.0
    quiet_since: float = 0.0
    expires: float = NEVER

    @property
    def idle(self) -> bool:
        """Whether ending it hurts no request: a yielding one's queue goes on when it is loaded again."""
        return self.phase is Phase.LOADED and not self.running and (self.yielding or not self.queued)

    @property
    def evictable(self) -> bool:
        """Whether another may have its room now."""
        return self.idle and not self.pinned


@dataclass
class Ledger:
    """All of them, and the devices.

    Attributes:
        capacity: bytes of each device that runners may hold together.
        lost: bytes of each device held by processes that could not be ended.
        most: how many models may be loaded at once.
    """

    capacity: list[int]
    most: int
    lost: list[int] = field(default_factory=list)
    residents: dict[str, Resident] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lost = self.lost or [0] * len(self.capacity)

    def on(self, device: int, *phases: Phase) -> Iterable[Resident]:
        """Models that hold memory of `device`, in these phases only if any are named."""
        return (
            one
            for one in self.residents.values()
            if one.phase is not Phase.WAITING and one.device == device and (not phases or one.phase in phases)
        )

    def held(self, device: int) -> int:
        """Bytes that are promised or taken."""
        return self.lost[device] + sum(one.bytes for one in self.on(device))

    def free(self, device: int) -> int:
        """Bytes that can be promised now; negative when a runner took more than it was granted."""
        return self.capacity[device] - self.held(device)

    def ceiling(self, device: int, name: str = "") -> int:
        """Bytes that the model `name` could ever have there: all but what pinned models and lost processes hold."""
        pinned = sum(one.bytes for one in self.on(device) if one.pinned and one.name != name)
        return self.capacity[device] - self.lost[device] - pinned

    def reach(self, device: int) -> int:
        """Bytes that could be had without waiting for a busy model."""
        gives = (one for one in self.on(device) if one.phase is Phase.LEAVING or one.evictable)
        return self.free(device) + sum(one.bytes for one in gives)

    def waiting(self) -> list[Resident]:
        """Who waits for room, the longest first."""
        return sorted(
            (one for one in self.residents.values() if one.phase is Phase.WAITING),
            key=lambda one: (one.since, one.name),
        )

    def loaded(self) -> list[Resident]:
        """Who is loaded, the one that was used least recently first."""
        return sorted(
            (one for one in self.residents.values() if one.phase is Phase.LOADED),
            key=lambda one: (not one.yielding, one.quiet_since, one.name),
        )

    @property
    def leaving(self) -> int:
        """Models whose runners are being ended."""
        return sum(one.phase is Phase.LEAVING for one in self.residents.values())

    @property
    def count(self) -> int:
        """Models that are loaded or being loaded or ended: each has a process."""
        return sum(one.phase is not Phase.WAITING for one in self.residents.values())


class Why(enum.Enum):
    """Why a model is unloaded."""

    EXPIRED = "its keep-alive ended"
    ROOM = "another model needed its room"
    GROWS = "there is memory for more context"


@dataclass(frozen=True)
class Grant:
    """A waiting model may load, with so many bytes of this device."""

    name: str
    device: int
    bytes: int


@dataclass(frozen=True)
class Leave:
    """A loaded model without requests is to be unloaded; `room_for` names the model that needs its room."""

    name: str
    why: Why
    room_for: str = ""

    @property
    def because(self) -> str:
        """The end of a sentence: since ..."""
        return f"model {self.room_for} needed its room" if self.room_for else self.why.value


@dataclass(frozen=True)
class Yield:
    """A busy model takes no further requests, so that it becomes idle and `room_for` gets its room."""

    name: str
    room_for: str


@dataclass(frozen=True)
class Resume:
    """A model that yielded need not any more."""

    name: str


@dataclass(frozen=True)
class Refuse:
    """A waiting model can never be loaded here as things are."""

    name: str
    sentence: str


@dataclass(frozen=True)
class Later:
    """A waiting model that nobody has asked for finds no room; it waits no more."""

    name: str


Decision = Grant | Leave | Yield | Resume | Refuse | Later
