"""Reads a request's body and the model's name in it: first on the path of a request.

The body is held whole, because the name stands in it and because a request may have to be sent again to another pod;
how much one request, and all together, may hold is bounded.
"""

import asyncio
import json
from dataclasses import dataclass

import msgspec
from starlette.types import Receive, Scope

from tandem_api.dialects import ApiError

READ_SECONDS = 60.0
"""A client that sends nothing for so long in the middle of its body is given up."""


class ClientGone(Exception):
    """The client closed its connection: nobody is left to answer."""


class BodyRoom:
    """How many bytes of bodies may be held at once.

    Args:
        total: bytes over all requests.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.held = 0

    def take(self, size: int) -> None:
        """Raises ApiError (503) when `size` more bytes are too many."""
        if self.held + size > self._total:
            raise ApiError(
                503,
                f"The gateway holds {self.held} bytes of requests that wait for an answer's first byte, and takes at "
                f"most {self._total}; try again shortly.",
                code="gateway_busy",
                retry_after=1,
            )
        self.held += size

    def give_back(self, size: int) -> None:
        """`size` bytes are held no more."""
        self.held -= size


class Body:
    """A request's body: read once, kept until `free`, which is safe to call more than once."""

    def __init__(self, room: BodyRoom, limit: int) -> None:
        self._room = room
        self._limit = limit
        self._taken = 0
        self.data = b""

    async def read(self, scope: Scope, receive: Receive) -> None:
        """Reads it all.

        Raises:
            ApiError: 413 beyond the limit, 408 for a client that stalls, 503 when the gateway holds too much.
            ClientGone: the client left in the middle.
        """
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            raise self._too_large(f"{int(declared)} bytes")
        chunks: list[bytes] = []
        more = True
        while more:
            try:
                async with asyncio.timeout(READ_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"The request's body stalled for {READ_SECONDS:.0f} seconds.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            if self._taken + len(chunk) > self._limit:
                raise self._too_large("longer")
            self._room.take(len(chunk))
            self._taken += len(chunk)
            chunks.append(chunk)
            more = message.get("more_body", False)
        self.data = b"".join(chunks)

    def free(self) -> None:
        """Lets go of the bytes: the request will not be sent again."""
        self._room.give_back(self._taken)
        self._taken = 0
        self.data = b""

    def _too_large(self, size: str) -> ApiError:
        return ApiError(
            413, f"The request's body is {size}; the gateway takes at most {self._limit} bytes.", code="body_too_large"
        )


class _Named(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"null")
    name: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class _Field:
    key: str
    value: str


_decoder = msgspec.json.Decoder(_Named)


def model_field(data: bytes, path: str) -> str:
    """The model's name in a JSON body; raises ApiError (400) that names what is wrong.

    `/api/show` also takes `name`, as older clients of Ollama send it.
    """
    return _find(data, path).value


def with_model(data: bytes, path: str, name: str) -> bytes:
    """The same body with another model's name in it."""
    document = json.loads(data)
    document[_find(data, path).key] = name
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _find(data: bytes, path: str) -> _Field:
    try:
        named = _decoder.decode(data)
    except msgspec.ValidationError:
        raise ApiError(400, "The request's body must be a JSON object.", code="invalid_body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The request's body is not JSON: {error}.", code="invalid_json") from None
    key, raw = "model", bytes(named.model)
    if raw == b"null" and path == "/api/show":
        key, raw = "name", bytes(named.name)
    value = None if raw == b"null" else json.loads(raw)
    if value is None or value == "":
        raise ApiError(400, "model is required", code="missing_model", param="model")
    if not isinstance(value, str):
        raise ApiError(400, "model must be a string", code="invalid_model", param="model")
    return _Field(key, value)
