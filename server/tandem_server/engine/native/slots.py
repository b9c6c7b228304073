"""Slots: who holds which. The lowest free one is given out first, so that a step's rows stay few and contiguous."""

import heapq


class SlotTable:
    """Gives out slots and takes each back exactly once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._holder: dict[int, int] = {}

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    @property
    def busy(self) -> int:
        """How many are held."""
        return len(self._holder)

    def take(self, request: int) -> int:
        """The lowest free slot, now held by `request`."""
        slot = heapq.heappop(self._free)
        assert slot not in self._holder, f"slot {slot} was given out while request {self._holder[slot]} holds it"
        self._holder[slot] = request
        return slot

    def release(self, slot: int, request: int) -> None:
        """Takes the slot back from `request`, which must hold it."""
        holder = self._holder.pop(slot, None)
        assert holder == request, f"slot {slot} was released by request {request}, but {holder} holds it"
        heapq.heappush(self._free, slot)
