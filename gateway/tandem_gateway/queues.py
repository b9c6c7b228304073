"""Since when the queue of a model in a pod has been longer than its slots.

Beside `loads`, which tells it after every change; `placing` reads it through `PodLoad.crowded_seconds`. Only a queue
that was seen to last calls for a further copy: a burst is over before one could be loaded.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

GAP_SECONDS = 5.0
"""What happened between two words of a pod that are further apart is not known."""

Key = tuple[str, str]
"""UID of a pod, name of a model."""


@dataclass(slots=True)
class _Long:
    since: float
    heard: float
    """When the pod itself last said something by which it is still so."""


class LongQueues:
    """The queues that are long now.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._long: dict[Key, _Long] = {}

    def note(self, key: Key, long: bool, *, heard: bool) -> None:
        """Whether the queue is long now; `heard`: the pod itself has just spoken of it."""
        if not long:
            self._long.pop(key, None)
            return
        now = self._clock()
        known = self._long.get(key)
        if known is None or (heard and now - known.heard > GAP_SECONDS):
            self._long[key] = _Long(now, now)
        elif heard:
            known.heard = now

    def seconds(self, key: Key) -> float:
        """For how long it was seen to be long; 0.0 when it is not, or when the pod has not spoken for too long."""
        known = self._long.get(key)
        if known is None or self._clock() - known.heard > GAP_SECONDS:
            return 0.0
        return known.heard - known.since

    def forget_all_but(self, pod_uids: Collection[str]) -> None:
        """Drops what is known of pods that are gone."""
        for key in [key for key in self._long if key[0] not in pod_uids]:
            del self._long[key]
