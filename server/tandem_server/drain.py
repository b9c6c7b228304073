"""The way out of a pod: SIGTERM to exit, without one failed request.

Steps: unready at once; those who wait are handed back (503 draining, which the gateway replays elsewhere); for the
linger, newcomers are served where a slot is free, since proxies elsewhere still send; then none; what runs is
finished, up to a deadline. A second signal hastens: what runs is cut off with an error.
"""

import asyncio
import logging
from contextlib import suppress

from tandem_server.line import Gate
from tandem_server.pod import Pod

_log = logging.getLogger(__name__)
LOOK_SECONDS = 0.05


class Drain:
    """Waits for the first signal, then takes the steps."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._asked = asyncio.Event()
        self._hasten = asyncio.Event()

    def ask(self, why: str) -> None:
        """A signal came: the first begins the drain, a further one hastens it."""
        if not self._asked.is_set():
            _log.info("%s: shutting down; not ready from now on.", why)
            self._asked.set()
        else:
            _log.warning("%s again: what still runs is cut off.", why)
            self._hasten.set()

    async def asked(self) -> None:
        """Returns at the first signal."""
        await self._asked.wait()

    async def run(self) -> None:
        """All steps after the first signal; returns when nothing runs any more, or its time is over."""
        pod, settings = self._pod, self._pod.settings
        pod.draining = True
        manager = pod.manager
        manager.set_gate(Gate.NO_WAITING)
        handed = manager.hand_back()
        linger = f" Serving newcomers on free slots for another {settings.linger_seconds:g} s."
        _log.info(
            "Handed back %d waiting requests; %d run.%s",
            handed,
            manager.busy,
            linger if settings.linger_seconds else "",
        )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hasten.wait(), settings.linger_seconds)
        manager.set_gate(Gate.CLOSED)
        left = max(0.0, settings.drain_seconds - settings.linger_seconds)
        if manager.busy or pod.answering:
            _log.info("Waiting for %d requests, at most %g s.", max(manager.busy, pod.answering), left)
        idle = await self._idle(left)
        if idle:
            _log.info("All requests are finished.")
        else:
            _log.warning("Cutting off %d requests that are not finished.", max(manager.busy, pod.answering))

    async def _idle(self, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while self._pod.manager.busy or self._pod.answering:
            if self._hasten.is_set() or asyncio.get_running_loop().time() >= deadline:
                return False
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hasten.wait(), LOOK_SECONDS)
        return True
