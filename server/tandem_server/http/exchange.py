"""One HTTP exchange: the request's body in, the answer out, and the client's going away noticed at once.

First and last on the path of a request. The answer classes watch for a disconnect while they work, also before the
first byte and when the answer is one JSON object, and end the work in the same moment.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tandem_api.dialects import ApiError

T = TypeVar("T", bound=BaseModel)
Headers = Callable[[], Mapping[str, str]]
BODY_SECONDS = 120.0
"""For a request's body to arrive."""
SILENT_SECONDS = 10.0
"""Without a first piece, after which a stream begins all the same; then as often again."""
GONE = 499
"""Counted for a client that went away before its answer began; nobody is there to be sent it."""
encode_json = msgspec.json.Encoder().encode


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError 400 (malformed), 408 (too slow) or 413 (over `limit` bytes);
    499 when the client went away."""
    too_large = ApiError(413, f"the request body is larger than {limit} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the request body did not arrive within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise ApiError(GONE, "the client went away while it sent its request") from None
    return parse_object(bytes(body))


def parse_object(body: bytes) -> dict[str, Any]:
    """Reads a JSON object of valid Unicode. Raises ApiError 400."""
    try:
        value = json.loads(body)
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the request body holds half a surrogate pair, which is no character") from None
    except RecursionError:
        raise ApiError(400, "the request body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the request body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the request body must be a JSON object, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")


def validated(kind: type[T], value: dict[str, Any]) -> T:
    """`value` as `kind`. Raises ApiError 400 naming the first field that is wrong, and its limit."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "is-instance")))
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        given = repr(first["input"])
        shown = f" (got {given[:80]})" if first["type"] not in ("missing", "value_error") else ""
        raise ApiError(400, f"{path}: {message}{shown}", param=path or None) from None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def while_connected(receive: Receive, work: Awaitable[None]) -> bool:
    """Runs `work` until it is done or the client is gone; then it is cancelled. True if it was done."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        for each in (task, gone):
            each.cancel()
        with suppress(asyncio.CancelledError, ApiError, ClientDisconnect):
            await task


class JsonAnswer(Response):
    """One JSON object that takes time to make; the work is ended when the client goes away."""

    def __init__(self, work: Awaitable[Any], headers: Headers) -> None:
        super().__init__()
        self._work = work
        self._more_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Does the work and answers. Lets the work's ApiError through, with nothing sent yet."""
        result: list[bytes] = []

        async def run() -> None:
            result.append(encode_json(await self._work))

        if await while_connected(receive, run()):
            response = Response(result[0], media_type="application/json", headers=dict(self._more_headers()))
            await response(scope, receive, send)


class StreamAnswer(Response):
    """Lines or events as they are made. Nothing is sent before the first, so that errors keep their status.

    Only when nothing has come for `SILENT_SECONDS`, as while a model loads, the answer begins with pieces that its
    readers skip, so that nobody between takes the connection for dead and a person sees what is waited for.

    Args:
        pieces: the encoded pieces; an ApiError from it after the first is told by `on_error`.
        on_error: the piece that tells an error midway.
        while_held: such a piece that is skipped, or None where the form has none.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        headers: Headers,
        on_error: Callable[[ApiError], bytes],
        while_held: Callable[[], bytes] | None = None,
    ) -> None:
        super().__init__(media_type=media_type)
        self._while_held = while_held
        self._begun = False
        self._pieces = pieces
        self._more_headers = headers
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams. Lets an ApiError before the first piece through, with nothing sent yet."""

        async def run() -> None:
            async with aclosing(self._pieces) as pieces:
                await self._run(pieces, send)

        await while_connected(receive, run())

    async def _run(self, pieces: AsyncGenerator[bytes, None], send: Send) -> None:
        try:
            await self._send(await self._first(pieces, send), send)
            async for piece in pieces:
                await self._send(piece, send)
        except ApiError as error:
            if not self._begun:
                raise
            await self._send(self._on_error(error), send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _first(self, pieces: AsyncGenerator[bytes, None], send: Send) -> bytes:
        """The first piece; what is waited for is told meanwhile, where that takes long."""
        first = asyncio.ensure_future(anext(pieces))
        try:
            while not (await asyncio.wait({first}, timeout=SILENT_SECONDS))[0]:
                if self._while_held is not None:
                    await self._send(self._while_held(), send)
            return first.result()
        finally:
            first.cancel()
            await asyncio.wait({first})

    async def _send(self, piece: bytes, send: Send) -> None:
        if not self._begun:
            self._begun = True
            for name, value in {
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
                **self._more_headers(),
            }.items():
                self.headers[name] = value
            self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": piece, "more_body": True})
