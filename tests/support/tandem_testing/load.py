"""Clients under load: streamed chats from many connections at once, each outcome kept.

A request counts as served when its stream began with 200 and ended with a finish reason and `[DONE]`; everything
else is a failure with its cause in words.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=120, sock_connect=5)


@dataclass
class Outcome:
    """How one request ended."""

    status: int = 0
    pieces: int = 0
    finish: str | None = None
    done: bool = False
    error: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once something of the answer came, or it failed."""

    @property
    def served(self) -> bool:
        """Whether the client got a whole answer."""
        return self.status == 200 and self.done and self.finish is not None and self.error is None


async def chat(session: aiohttp.ClientSession, base: str, body: dict[str, Any], outcome: Outcome) -> None:
    """One streamed chat; `outcome` follows it."""
    try:
        async with session.post(f"{base}/v1/chat/completions", json=body, timeout=TIMEOUT) as response:
            outcome.status = response.status
            outcome.headers = {key.lower(): value for key, value in response.headers.items()}
            if response.status != 200:
                outcome.error = (await response.text())[:300]
                return
            async for line in response.content:
                _read_line(outcome, line.decode().strip())
                outcome.flowing.set()
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    finally:
        outcome.flowing.set()


def _read_line(outcome: Outcome, line: str) -> None:
    if not line.startswith("data: "):
        return
    if line == "data: [DONE]":
        outcome.done = True
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        outcome.error = event["error"]["message"]
        return
    for choice in event.get("choices", []):
        outcome.pieces += bool(choice["delta"].get("content"))
        outcome.finish = choice.get("finish_reason") or outcome.finish


class Load:
    """`clients` clients, each with a new connection a request, until `total` requests were sent and `enough` is set."""

    def __init__(
        self, base: str, model: str, *, clients: int, total: int, max_tokens: int, to_the_end: bool = False
    ) -> None:
        """`to_the_end` makes each answer `max_tokens` long, whatever the model would rather do."""
        self.base, self.clients, self.total = base, clients, total
        self._body = {"model": model, "stream": True, "max_tokens": max_tokens, "ignore_eos": to_the_end}
        self.outcomes: list[Outcome] = []
        self._running: list[Outcome] = []
        self._begun = asyncio.Event()
        self.enough = asyncio.Event()
        self._started = 0
        self._progress = asyncio.Condition()

    async def run(self) -> list[Outcome]:
        """Runs all requests and gives their outcomes."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(self._client())
        return self.outcomes

    async def _client(self) -> None:
        while self._started < self.total or not self.enough.is_set():
            self._started += 1
            outcome = Outcome()
            self._running.append(outcome)
            if self._started == self.clients:
                self._begun.set()
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
                message = {"role": "user", "content": f"def function_{self._started}("}
                await chat(session, self.base, {**self._body, "messages": [message]}, outcome)
            self._running.remove(outcome)
            self.outcomes.append(outcome)
            async with self._progress:
                self._progress.notify_all()

    async def flowing(self) -> None:
        """Returns once every client's first answer has begun."""
        await self._begun.wait()
        for outcome in list(self._running):
            await outcome.flowing.wait()

    async def reached(self, count: int) -> None:
        """Returns once `count` requests have ended."""
        async with self._progress:
            await self._progress.wait_for(lambda: len(self.outcomes) >= count)

    def failures(self) -> list[str]:
        """A line a request that was not served."""
        return [f"{o.status} {o.error or 'the stream ended early'}" for o in self.outcomes if not o.served]
