"""The operator's own HTTP endpoint: `/healthz`, `/readyz` and `/metrics`.

kopf's liveness endpoint says nothing of the watches or of the queue, so ours tells by what the operator really does:
it fails when the last relist is too old, a watch tells nothing, or a worker is stuck.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tandem_operator.cache import Cache
from tandem_operator.election import Leadership
from tandem_operator.kinds import CUSTOM, Key
from tandem_operator.metrics import MODELS, QUEUE_DEPTH, QUEUE_OLDEST, RELIST_AGE
from tandem_operator.queue import WorkQueue
from tandem_operator.relist import Relister

OLDEST_SECONDS = 300.0


class Health:
    """Serves the endpoint while started."""

    def __init__(
        self,
        relister: Relister,
        queue: WorkQueue[Key],
        cache: Cache,
        relist_seconds: float,
        ended: Callable[[], str],
        election: Leadership,
    ) -> None:
        self._relister = relister
        self._queue = queue
        self._cache = cache
        self._limit = 3 * relist_seconds + 60
        self._ended = ended
        self._election = election
        self._runner: web.AppRunner | None = None

    def verdict(self) -> tuple[bool, str]:
        """Whether the operator does its work, and its figures in words."""
        standby = self._election.standby()
        if not self._election.healthy():
            return False, "the election for the Lease hangs"
        if standby:
            return True, standby
        age, oldest = self._relister.age, self._queue.schedule.oldest()
        ended = self._ended()
        text = f"last relist {age:.0f} s ago, {self._queue.schedule.depth} keys queued, oldest waits {oldest:.0f} s"
        if ended:
            return False, f"{ended}; {text}"
        if age > self._limit:
            return False, f"no relist for {age:.0f} s (limit {self._limit:.0f} s); {text}"
        if self._relister.deaf:
            return False, f"the watches of {', '.join(self._relister.deaf)} tell nothing of what changes; {text}"
        if oldest > OLDEST_SECONDS:
            return False, f"a reconcile waits or runs for {oldest:.0f} s (limit {OLDEST_SECONDS:.0f} s); {text}"
        return True, text

    async def start(self, host: str, port: int) -> int:
        """Starts to listen; returns the port. Raises OSError when it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stops to listen."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        good, text = self.verdict()
        return web.Response(text=text + "\n", status=200 if good else 503)

    async def _readyz(self, _: web.Request) -> web.Response:
        # A standby is ready to take over: a rolling update may end the leader. One without rights to the Lease is not.
        standby = self._election.standby()
        if standby:
            return web.Response(text=f"{standby}\n", status=200 if self._election.knows() else 503)
        listed = self._relister.listed.is_set()
        return web.Response(text="ready\n" if listed else "not listed yet\n", status=200 if listed else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        RELIST_AGE.set(self._relister.age)
        QUEUE_DEPTH.set(self._queue.schedule.depth)
        QUEUE_OLDEST.set(self._queue.schedule.oldest())
        keys = self._cache.keys()
        for kind in CUSTOM:
            MODELS.labels(kind=kind.name).set(sum(key.kind == kind.name for key in keys))
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
