"""Hurries a changed catalog into running pods, after `act`.

The kubelet looks at a mounted ConfigMap again only every minute or so, but at once when the pod's own annotations
change. So an annotation is touched when a pod's report says an older catalog, and again, less and less often, as long
as it does. A pod that has not reported yet is left alone: it reads the file when it starts.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tandem_api.names import CATALOG_REVISION_ANNOTATION
from tandem_operator.observe import PodView

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class Touch:
    """One annotation to write."""

    pod: PodView
    value: str


@dataclass
class _Memory:
    revision: str
    attempts: int
    at: float


class Refresher:
    """Decides which pods to touch; remembers what was tried, by pod UID."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tried: dict[str, _Memory] = {}

    def due(self, pods: Iterable[PodView], revision: str) -> tuple[list[Touch], float | None]:
        """The touches to make now, and in how many seconds to look again (None: never)."""
        now = self._clock()
        touches: list[Touch] = []
        waits: list[float] = []
        for pod in pods:
            report = pod.seen.report
            if pod.terminating or report is None or report.catalog_revision == revision:
                self._tried.pop(pod.uid, None)
                continue
            tried = self._tried.get(pod.uid)
            if tried is None or tried.revision != revision:
                tried = self._tried[pod.uid] = _Memory(revision, 0, 0.0)
            delay = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** (tried.attempts - 1)) if tried.attempts else 0.0
            # Only a report that came later than the pause may say that the touch did not help.
            if tried.attempts == 0 or (
                now - tried.at >= delay and pod.seen.at >= tried.at + min(delay, _FIRST_SECONDS)
            ):
                tried.attempts += 1
                tried.at = now
                touches.append(Touch(pod, _value(pod, revision, tried.attempts)))
            waits.append(min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** (tried.attempts - 1)))
        return touches, min(waits) if waits else None

    def forget(self, pods: set[str]) -> None:
        """Drops what is remembered of pods other than those with the UIDs that still exist."""
        self._tried = {uid: one for uid, one in self._tried.items() if uid in pods}


def _value(pod: PodView, revision: str, attempt: int) -> str:
    """A value that the annotation does not have yet."""
    present = (pod.obj["metadata"].get("annotations") or {}).get(CATALOG_REVISION_ANNOTATION)
    value = revision if attempt == 1 else f"{revision}.{attempt}"
    return value if value != present else f"{value}.again"
