"""Polls the pods' reports: every second from pods that have requests of ours or load a model, every 15 from the others.

Beside the path of requests; feeds `loads`. One task a pod, at most 64 calls at once, jittered. A pod that cannot be
reached keeps its last report, marked stale.
"""

import asyncio
import logging
import random
from collections.abc import Callable

import aiohttp
from pydantic import ValidationError

from tandem_api.report import Report
from tandem_gateway.directory import Directory
from tandem_gateway.objects import PodView

logger = logging.getLogger(__name__)

BUSY_SECONDS = 1.0
IDLE_SECONDS = 15.0
AT_ONCE = 64
TIMEOUT = aiohttp.ClientTimeout(total=2.0, connect=0.5)
MAX_REPORT_BYTES = 1024 * 1024


class ReportPoller:
    """Keeps the reports of all running pods fresh.

    Args:
        directory: which pods there are; its loads take the reports in.
        key_of: the pool key by the pool's UID.
        port: the pods' internal port.
    """

    def __init__(self, directory: Directory, key_of: Callable[[str], str], port: int) -> None:
        self._directory = directory
        self._key_of = key_of
        self._port = port
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE, keepalive_timeout=4.0),
            timeout=TIMEOUT,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asked: set[str] = set()
        self._caught_up = False

    def behind(self) -> int:
        """How many pods have not been asked yet; 0 for good once all that there were have been asked.

        Of a pod that has told nothing it is not known which models it holds.
        """
        if self._caught_up:
            return 0
        left = sum(pod.uid not in self._asked for pod in self._polled())
        self._caught_up = not left
        return left

    def _polled(self) -> list[PodView]:
        return [pod for pod in self._directory.pods() if pod.ip and pod.running]

    async def run(self) -> None:
        """Polls until cancelled."""
        try:
            while True:
                wanted = {pod.uid: pod for pod in self._polled()}
                for uid in set(self._tasks) - set(wanted):
                    self._tasks.pop(uid).cancel()
                    self._asked.discard(uid)
                for uid, pod in wanted.items():
                    if uid not in self._tasks:
                        self._tasks[uid] = asyncio.create_task(self._poll(pod), name=f"report of {pod}")
                await self._directory.wait_for_change(IDLE_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await self._session.close()

    async def _poll(self, pod: PodView) -> None:
        loads = self._directory.loads
        while True:
            try:
                loads.observe_report(pod.uid, await self._fetch(pod))
            except (aiohttp.ClientError, OSError, ValidationError) as error:
                loads.unreachable(pod.uid)
                logger.debug("Pod %s gave no report: %s.", pod, error or type(error).__name__)
            self._asked.add(pod.uid)
            await self._pause(pod)

    async def _pause(self, pod: PodView) -> None:
        """Waits out the interval; a pod that gets busy meanwhile is asked within the shorter one."""
        idle_left = IDLE_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, protects nothing
        while idle_left > 0:
            step = BUSY_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, protects nothing
            await asyncio.sleep(step)
            idle_left -= step
            if self._directory.loads.moving(pod.uid):
                return

    async def _fetch(self, pod: PodView) -> Report:
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        headers = {"Authorization": f"Bearer {self._key_of(pod.pool_uid)}"}
        async with self._session.get(
            f"http://{host}:{self._port}/internal/report", headers=headers, allow_redirects=False
        ) as response:
            response.raise_for_status()
            text = await response.content.read(MAX_REPORT_BYTES)
            if not response.content.at_eof():
                raise aiohttp.ClientPayloadError(f"the report is longer than {MAX_REPORT_BYTES} bytes")
            return Report.model_validate_json(text)
