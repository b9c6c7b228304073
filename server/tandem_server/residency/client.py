"""The front end's end of the wire to one runner: requests out, streams of rows back.

On the path of every request that runs. Each request ends exactly once: by the runner's row with `finish`, or by
`fail_all` when the runner is gone. `on_end` of a request is called at that moment; it gives the slot back.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import msgspec
import zmq
import zmq.asyncio

from tandem_server.engine import wire

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)


class RunnerGone(Exception):
    """The runner ended before the request did; the message is the cause."""


class Stream:
    """Rows of one request, in order. Iterate once; ends after the row that has `finish`."""

    def __init__(self, client: "WireClient", number: int, on_end: Callable[[], None], prompt: bool) -> None:
        self.number = number
        self.ended = False
        self.aborted_at: float | None = None
        self.began = asyncio.Event()
        """Set by the first row, whatever is in it."""
        self.ends_promptly = prompt
        """Whether an abort must be confirmed within a bound: an embedding may finish its whole batch first."""
        self._client = client
        self._on_end = on_end
        self._rows: asyncio.Queue[tuple[float, wire.TokenRow | wire.Embedded | RunnerGone]] = asyncio.Queue()

    async def rows(self) -> AsyncIterator[tuple[float, wire.TokenRow]]:
        """Rows, each with when it came: a client that reads slowly must not lengthen what is measured.

        Raises RunnerGone.
        """
        while True:
            at, row = await self._next()
            assert isinstance(row, wire.TokenRow)
            yield at, row
            if row.finish is not None:
                return

    async def embedded(self) -> wire.Embedded:
        """The answer to `Embed`. Raises RunnerGone."""
        _, answer = await self._next()
        assert isinstance(answer, wire.Embedded)
        return answer

    def abort(self, accepted: int = 0) -> None:
        """Nobody wants what follows the first `accepted` tokens. The slot stays taken until the runner confirms."""
        if not self.ended and self.aborted_at is None:
            self.aborted_at = time.monotonic()
            self._client.send(wire.Abort(self.number, accepted))

    async def _next(self) -> tuple[float, wire.TokenRow | wire.Embedded]:
        at, item = await self._rows.get()
        if isinstance(item, RunnerGone):
            raise item
        return at, item

    def push(self, item: wire.TokenRow | wire.Embedded | RunnerGone, last: bool) -> None:
        """From the client only."""
        self._rows.put_nowait((time.monotonic(), item))
        self.began.set()
        if last and not self.ended:
            self.ended = True
            self._on_end()


class WireClient:
    """One bound socket and the requests that run behind it.

    Args:
        address: `ipc://` path in a private folder.
        on_message: told of everything that belongs to no request: progress, loaded, stats, died.
    """

    def __init__(self, address: str, on_message: Callable[[wire.FromRunner], None]) -> None:
        self.heard_at = time.monotonic()
        self.streams: dict[int, Stream] = {}
        self.served = asyncio.Event()
        """Set once a request ended as it should."""
        self._on_message = on_message
        self._context = zmq.asyncio.Context.instance()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.bind(address)
        self._outbox: asyncio.Queue[wire.ToRunner] = asyncio.Queue()
        self._gone: RunnerGone | None = None
        self._traces: dict[int, asyncio.Future[list[wire.StepRecord]]] = {}
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._transmit())]

    def add(self, request: wire.Add, on_end: Callable[[], None]) -> Stream:
        """Starts a generation, under a number of its own. Raises RunnerGone; `on_end` is then not called."""
        stream = self._open(on_end, prompt=True)
        self.send(msgspec.structs.replace(request, request=stream.number))
        return stream

    def embed(self, inputs: list[list[int]], on_end: Callable[[], None]) -> Stream:
        """Starts an embedding. Raises RunnerGone; `on_end` is then not called."""
        stream = self._open(on_end, prompt=False)
        self.send(wire.Embed(stream.number, inputs))
        return stream

    async def trace(self, seconds: float) -> list[wire.StepRecord]:
        """The steps that the runner remembers. Raises RunnerGone, or TimeoutError when it is silent for `seconds`."""
        if self._gone is not None:
            raise RunnerGone(str(self._gone))
        number = next(_numbers)
        self._traces[number] = asyncio.get_running_loop().create_future()
        self.send(wire.Trace(number))
        try:
            async with asyncio.timeout(seconds):
                return await self._traces[number]
        finally:
            del self._traces[number]

    @property
    def traces_awaited(self) -> int:
        """How many wait for a trace."""
        return len(self._traces)

    def send(self, message: wire.ToRunner) -> None:
        """Queues a message; what is queued when the runner goes is dropped."""
        self._outbox.put_nowait(message)

    def fail_all(self, cause: str) -> None:
        """Ends every request with the cause; later ones are refused with it."""
        self._gone = RunnerGone(cause)
        for stream in list(self.streams.values()):
            del self.streams[stream.number]
            stream.push(RunnerGone(cause), last=True)
        for trace in self._traces.values():
            if not trace.done():
                trace.set_exception(RunnerGone(cause))

    async def settle(self, quiet_seconds: float = 0.1, most_seconds: float = 2.0) -> None:
        """After the process ended: reads what it still sent, until nothing came for a moment."""
        began = now = time.monotonic()
        while now < began + most_seconds and now - max(began, self.heard_at) < quiet_seconds:
            await asyncio.sleep(quiet_seconds / 4)
            now = time.monotonic()

    async def close(self) -> None:
        """Ends the tasks and frees the socket."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close(linger=0)

    def _open(self, on_end: Callable[[], None], prompt: bool) -> Stream:
        if self._gone is not None:
            raise RunnerGone(str(self._gone))
        stream = Stream(self, next(_numbers), on_end, prompt)
        self.streams[stream.number] = stream
        return stream

    async def _transmit(self) -> None:
        while True:
            message = await self._outbox.get()
            with suppress(zmq.Again):
                await self._socket.send(wire.encode(message), flags=zmq.NOBLOCK)

    async def _receive(self) -> None:
        while True:
            frame = await self._socket.recv()
            self.heard_at = time.monotonic()
            try:
                message = wire.decode_from_runner(frame)
            except msgspec.DecodeError as error:
                _log.error("A runner sent a message that cannot be read (%s); it is dropped.", error)
                continue
            self._dispatch(message)

    def _dispatch(self, message: wire.FromRunner) -> None:
        if isinstance(message, wire.Tokens):
            for row in message.rows:
                self._give(row.request, row, last=row.finish is not None)
        elif isinstance(message, wire.Embedded):
            self._give(message.request, message, last=True)
        elif isinstance(message, wire.Traced):
            trace = self._traces.get(message.request)
            if trace is not None and not trace.done():
                trace.set_result(message.steps)
        else:
            self._on_message(message)

    def _give(self, number: int, item: wire.TokenRow | wire.Embedded, last: bool) -> None:
        stream = self.streams.get(number)
        if stream is None:
            _log.debug("A row for request %d came after its end.", number)
            return
        if last:
            del self.streams[number]
        if last and item.error is None and getattr(item, "finish", "stop") != "abort":
            self.served.set()
        stream.push(item, last)
