"""Passes a pod's answer to the client as it comes: last on the path of a proxied request.

Nothing is buffered but the unfinished line of a stream, so that an error can always be told on a line of its own:
when the pod dies midway, the stream ends with the dialect's error and closes properly. Reading from the pod waits
for the client to take what was sent.
"""

import json
from collections.abc import AsyncIterator

import aiohttp
from starlette.types import Send

from tandem_api.dialects import ApiError, Dialect, answer, openai_error
from tandem_gateway.headers import to_client

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
MAX_HELD_BYTES = 64 * 1024
"""An unfinished line beyond this is passed on as it is."""


class BrokenOff(Exception):
    """The pod's answer ended before its end; the message names the cause. The client's connection must be cut."""


class Relay:
    """One answer on its way to the client.

    Args:
        response: the pod's answer, its head read.
        dialect: the client's.
        pod: the pod's name, for the error.
    """

    def __init__(self, response: aiohttp.ClientResponse, dialect: Dialect, pod: str) -> None:
        self._response = response
        self._dialect = dialect
        self._pod = pod
        self._last = b"\n\n"
        self.sent_bytes = 0
        self.broken: str | None = None
        self._why_cut: str | None = None

    def cut(self, why: str) -> None:
        """Ends the answer where it is, told to the client as far as the answer has a place for it."""
        self._why_cut = why
        self._response.close()

    async def run(self, send: Send, *, closing: bool = False) -> None:
        """Passes head and body on.

        Args:
            send: of the client's connection.
            closing: ask the client to open a new connection for its next request.

        Raises:
            BrokenOff: the pod died midway in an answer that has no place for an error.
        """
        response = self._response
        headers = to_client(response.raw_headers, response.headers)
        if closing:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        kind = response.content_type
        streams = kind in (SSE, NDJSON) and "content-encoding" not in response.headers
        chunks = response.content.iter_any()
        try:
            async for piece in whole_lines(chunks) if streams else chunks:
                await self._send(send, piece)
        except (aiohttp.ClientError, OSError) as error:
            cause = str(error) or type(error).__name__
            self.broken = self._why_cut or f"pod {self._pod} broke off in the middle of its answer ({cause})"
            if not streams:
                raise BrokenOff(self.broken) from error
            await self._send(send, error_piece(kind, self._dialect, self.broken, self._last))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, piece: bytes) -> None:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        self.sent_bytes += len(piece)
        self._last = (self._last + piece)[-2:]


async def whole_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, each piece ending with a line's end; what stays unfinished when `chunks` fails is dropped."""
    held = b""
    async for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end:
            yield held + chunk[:end]
            held = chunk[end:]
        else:
            held += chunk
        if len(held) > MAX_HELD_BYTES:
            yield held
            held = b""
    if held:
        yield held


def error_piece(kind: str, dialect: Dialect, message: str, last: bytes) -> bytes:
    """The error as the last piece of a stream of `kind` whose last two bytes were `last`."""
    error = ApiError(502, message, code="stream_broken")
    start = b"" if last.endswith(b"\n") else b"\n"
    if kind == NDJSON:
        return start + _json(answer(error, dialect).body) + b"\n"
    if last != b"\n\n":
        start += b"\n"
    if dialect is Dialect.ANTHROPIC:
        return start + b"event: error\ndata: " + _json(answer(error, dialect).body) + b"\n\n"
    return start + b"data: " + _json({"error": openai_error(error)}) + b"\n\n"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
