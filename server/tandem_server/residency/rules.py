"""The rules of residency: who loads where, who must go for it, who yields. Pure, over a `Ledger` and a time.

On the path of a request for a model that is not loaded; `room` calls `decide` after everything that happens. Waiting
models are served in order of arrival; what one of them waits for is not given to those behind it, so that none
starves. Idle models go in order of last use, never one that has requests. Before the context is shrunk all idle
models go; when busy ones are in the way, it is shrunk after `patience`, or, where that does not help, they are made
to yield: they take no more requests, end those that run, and line up again.
"""

from dataclasses import dataclass, field

from tandem_server.residency.ledger import (
    NEVER,
    Decision,
    Grant,
    Later,
    Leave,
    Ledger,
    Phase,
    Refuse,
    Resident,
    Resume,
    Why,
    Yield,
)

GROWTH = 1.05
"""A shrunk model is loaded again for at least so much more memory."""


@dataclass(frozen=True)
class Times:
    """Seconds.

    Attributes:
        patience: that a model waits for busy ones to become idle by themselves.
        stay: that a model is loaded at least before it is made to yield.
        quiet: that a shrunk model must have been without requests before it is loaded again to grow.
    """

    patience: float = 5.0
    stay: float = 20.0
    quiet: float = 5.0


@dataclass
class _Space:
    """What is left of one device while decisions are made."""

    free: int
    coming: int
    """Of models that are leaving."""
    claimed: int = 0
    """By models further ahead in line that could not be granted yet."""
    spoken_for: bool = False
    """Its idle models are kept for one that waits for busy ones beside them."""

    @property
    def now(self) -> int:
        """Bytes that can be granted without touching what is claimed."""
        return self.free - max(0, self.claimed - self.coming)

    @property
    def soon(self) -> int:
        """Bytes there will be when all have left that are leaving."""
        return self.free + self.coming - self.claimed


@dataclass
class _Option:
    """A way to give a waiting model room on one device."""

    device: int
    bytes: int
    victims: list[Resident] = field(default_factory=list)


class _Turn:
    """One round of decisions; changes the ledger as it decides."""

    def __init__(self, ledger: Ledger, times: Times, now: float) -> None:
        self._ledger, self._times, self._now = ledger, times, now
        self.decisions: list[Decision] = []
        self.wake = NEVER
        self._spaces = [
            _Space(ledger.free(device), sum(one.bytes for one in ledger.on(device, Phase.LEAVING)))
            for device in range(len(ledger.capacity))
        ]
        self._claimed_seats = 0
        self._yielding: set[str] = set()

    def run(self) -> None:
        for one in self._ledger.loaded():
            self._expire(one)
        for waiter in self._ledger.waiting():
            self._serve(waiter)
        for one in self._ledger.loaded():
            if one.yielding and one.name not in self._yielding:
                one.yielding = False
                self.decisions.append(Resume(one.name))
        if not self._ledger.waiting():
            for one in self._ledger.loaded():
                self._grow(one)

    def _expire(self, one: Resident) -> None:
        if one.pinned or not one.idle:
            return
        if one.expires <= self._now:
            self._leave(one, Why.EXPIRED)
        else:
            self.wake = min(self.wake, one.expires)

    def _leave(self, one: Resident, why: Why, room_for: str = "") -> None:
        one.phase = Phase.LEAVING
        self._spaces[one.device].coming += one.bytes
        self.decisions.append(Leave(one.name, why, room_for))

    def _serve(self, waiter: Resident) -> None:
        ledger, need = self._ledger, waiter.need
        ceilings = [ledger.ceiling(device, waiter.name) for device in range(len(self._spaces))]
        pinned = sum(one.pinned for one in ledger.residents.values() if one.phase is not Phase.WAITING)
        if max(ceilings) < need.minimum or pinned >= ledger.most:
            del ledger.residents[waiter.name]
            self.decisions.append(Refuse(waiter.name, _never(ledger, waiter, max(ceilings), pinned)))
            return
        targets = [min(need.wanted, ceiling) for ceiling in ceilings]
        best = max(targets)
        options = [self._reach(device, best) for device, target in enumerate(targets) if target == best]
        impatient = self._now >= waiter.since + self._times.patience
        if not any(options) and impatient and need.minimum < best:
            most = [self._most(device) for device in range(len(self._spaces))]
            options = [
                self._reach(device, min(amount, target))
                for device, (amount, target) in enumerate(zip(most, targets, strict=True))
                if min(amount, target) >= need.minimum and amount == max(most)
            ]
        found = [option for option in options if option is not None]
        if waiter.modest and not waiter.queued:
            found = [option for option in found if self._is_there(option)]
            if not found:
                del ledger.residents[waiter.name]
                self.decisions.append(Later(waiter.name))
                return
        if found:
            self._take(waiter, min(found, key=self._cost))
            return
        if not impatient:
            self.wake = min(self.wake, waiter.since + self._times.patience)
        self._claim_and_press(waiter, ceilings, impatient)

    def _victims(self, device: int) -> list[Resident]:
        """Models on `device` that can go now, in the order in which they should."""
        if self._spaces[device].spoken_for:
            return []
        return [one for one in self._ledger.loaded() if one.device == device and one.evictable]

    def _most(self, device: int) -> int:
        """Bytes that can be had on `device` without waiting for a busy model."""
        return self._spaces[device].soon + sum(one.bytes for one in self._victims(device))

    def _reach(self, device: int, target: int) -> _Option | None:
        """How to have `target` bytes and a seat on `device`, with as few evictions of the longest unused as can be."""
        chosen: list[Resident] = []
        lacking = target - self._spaces[device].soon
        for one in self._victims(device):
            if lacking <= sum(each.bytes for each in chosen):
                break
            chosen.append(one)
        if lacking > sum(one.bytes for one in chosen):
            return None
        for one in list(reversed(chosen)):  # the most recently used is spared first
            if lacking <= sum(each.bytes for each in chosen if each is not one):
                chosen.remove(one)
        seats = self._seats() + len(chosen)
        for one in self._ledger.loaded():
            if seats >= 1:
                break
            if one.evictable and one not in chosen and not self._spaces[one.device].spoken_for:
                chosen.append(one)
                seats += 1
        return _Option(device, target, chosen) if seats >= 1 else None

    def _seats(self) -> int:
        """Models that may be loaded beside those that are and those that have a claim."""
        return self._ledger.most - (self._ledger.count - self._ledger.leaving) - self._claimed_seats

    def _cost(self, option: _Option) -> tuple[int, float, int]:
        latest = max((one.quiet_since for one in option.victims), default=0.0)
        return len(option.victims), latest, -self._spaces[option.device].soon

    def _is_there(self, option: _Option) -> bool:
        """Whether nobody has to go for it, or to be gone first."""
        seat = self._ledger.count + self._claims() < self._ledger.most
        return not option.victims and self._spaces[option.device].now >= option.bytes and seat

    def _take(self, waiter: Resident, option: _Option) -> None:
        """Grants, or lets the victims go and keeps what they leave for the waiter."""
        space = self._spaces[option.device]
        if self._is_there(option):
            waiter.phase, waiter.device = Phase.LOADING, option.device
            waiter.bytes = waiter.granted = option.bytes
            space.free -= option.bytes
            self.decisions.append(Grant(waiter.name, option.device, option.bytes))
            return
        for one in option.victims:
            self._yielding.add(one.name)
            self._leave(one, Why.ROOM, waiter.name)
        space.claimed += option.bytes
        self._claimed_seats += 1

    def _claims(self) -> int:
        """Seats that are promised and must come from those that exist: more than the leaving ones give back."""
        return max(0, self._claimed_seats - self._ledger.leaving)

    def _claim_and_press(self, waiter: Resident, ceilings: list[int], impatient: bool) -> None:
        """Keeps a device for the waiter; once it has waited for long, makes busy models there yield."""
        possible = [device for device, ceiling in enumerate(ceilings) if ceiling >= waiter.need.minimum]
        device = max(possible, key=lambda each: (not self._spaces[each].spoken_for, self._most(each), -each))
        space, lacking = self._spaces[device], waiter.need.minimum - self._most(device)
        seats = self._seats() + sum(len(self._victims(each)) for each in range(len(self._spaces)))
        if impatient and not space.spoken_for:
            for one in self._ledger.loaded():
                elsewhere = one.device != device
                if (lacking <= 0 or elsewhere) and (seats >= 1 or lacking > 0):
                    continue
                if one.pinned or one.evictable:
                    continue
                if self._now < one.loaded_at + self._times.stay:
                    self.wake = min(self.wake, one.loaded_at + self._times.stay)
                    continue
                self._press(one, waiter.name)
                lacking -= one.bytes
                seats += 1
        space.claimed += min(waiter.need.wanted, ceilings[device])
        space.spoken_for = True
        self._claimed_seats += 1

    def _press(self, one: Resident, room_for: str) -> None:
        self._yielding.add(one.name)
        if not one.yielding:
            one.yielding = True
            self.decisions.append(Yield(one.name, room_for))

    def _grow(self, one: Resident) -> None:
        if one.granted >= one.need.wanted or not one.idle:
            return
        target = min(one.need.wanted, self._ledger.ceiling(one.device, one.name))
        if target < one.granted * GROWTH or self._spaces[one.device].now + one.bytes < target:
            return
        if self._now < one.quiet_since + self._times.quiet:
            self.wake = min(self.wake, one.quiet_since + self._times.quiet)
            return
        self._leave(one, Why.GROWS)


def decide(ledger: Ledger, times: Times, now: float) -> tuple[list[Decision], float]:
    """What is to be done now, in order, and when to ask again if nothing happens before.

    The ledger counts each decision as carried out: a granted model is loading, one that is to leave is leaving.
    """
    turn = _Turn(ledger, times, now)
    turn.run()
    return turn.decisions, turn.wake


def _never(ledger: Ledger, waiter: Resident, ceiling: int, pinned: int) -> str:
    if pinned >= ledger.most:
        return f"{pinned} pinned models are loaded, as many as this pod may hold (maxLoadedModels {ledger.most})"
    kept = sorted(one.name for one in ledger.residents.values() if one.pinned and one.bytes)
    beside = f" beside the pinned models {', '.join(kept)}" if kept else ""
    return (
        f"the model needs at least {_mib(waiter.need.minimum)} and a device of this pod gives {_mib(max(0, ceiling))}"
        f"{beside}; give the pod more memory, or lower slots or context"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
