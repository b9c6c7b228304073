"""How far the gateway is in its life: starting, serving, draining; and how many requests it has now.

Read by the health endpoints and by every request; written by `serve` alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tandem_api.dialects import ApiError
from tandem_gateway.informer import Informer


@dataclass(slots=True)
class Lifecycle:
    """The state of this process.

    Attributes:
        informers: must all have listed once before the gateway is ready.
        max_requests: taken at once.
        pods_to_ask: how many pods have yet to be asked what they hold before the gateway is ready.
        draining: SIGTERM came; requests are still taken for a moment, connections are not kept.
        requests: in progress now.
    """

    informers: Sequence[Informer[Any]]
    max_requests: int
    pods_to_ask: Callable[[], int]
    draining: bool = False
    requests: int = 0

    def check_room(self) -> None:
        """Raises ApiError (503) when there are too many requests already."""
        if self.requests > self.max_requests:
            raise ApiError(
                503,
                f"The gateway has {self.max_requests} requests in progress, which is its limit; try again shortly.",
                code="gateway_busy",
                retry_after=1,
            )

    def unready(self) -> str | None:
        """Why no request should come here; None when ready."""
        if self.draining:
            return "The gateway is draining."
        waiting = [informer for informer in self.informers if not informer.synced.is_set()]
        if waiting:
            return " ".join(
                f"{informer.kind} have not been listed yet ({informer.last_error or 'the first list is on its way'})."
                for informer in waiting
            )
        if left := self.pods_to_ask():
            return f"Which models {left} pods hold has not been asked yet."
        return None

    def unhealthy(self) -> str | None:
        """Why this process should be started anew; None while it is well.

        An API server that is away is no reason: the gateway goes on with what it knows, and a new process would know
        nothing. An informer that neither hears nor fails is.
        """
        stuck = [informer.kind for informer in self.informers if informer.stuck]
        return f"The watch of {' and '.join(stuck)} hangs." if stuck else None

    def watches(self) -> str:
        """How old the gateway's knowledge is, in a line for people."""
        return " ".join(
            f"{informer.kind}: {len(informer.items)}, last heard {informer.age:.0f} s ago"
            + (f" ({informer.last_error})" if informer.last_error else "")
            + "."
            for informer in self.informers
        )
