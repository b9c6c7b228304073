"""How a refusal or a fault is told in each client dialect: status, body and headers.

Last on the path of a request that is not served. The serving pod and the gateway answer alike, so both use this.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tandem_api.names import REFUSED_HEADER, REFUSED_QUEUE_FULL, REFUSED_QUEUE_TIMEOUT

OLLAMA_QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
"""Ollama's own text, two spaces and all: its clients match on it."""

STATUS_OVERLOADED = 529
"""Anthropic's status for a server that is busy."""


class Dialect(StrEnum):
    """The API family that a path belongs to."""

    OPENAI = "openai"
    OLLAMA = "ollama"
    ANTHROPIC = "anthropic"


def dialect_of(path: str) -> Dialect:
    """The dialect that clients of `path` speak; OpenAI's where nothing says otherwise."""
    if path == "/api" or path.startswith("/api/"):
        return Dialect.OLLAMA
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI


class ApiError(Exception):
    """A request that is answered with an error; raised anywhere on its path, told in the client's dialect.

    Args:
        status: HTTP status in the OpenAI and Ollama dialects.
        message: what is wrong, naming the field and the limit, and what to do.
        code: short machine-readable reason, such as `queue_full` or `model_not_found`.
        param: the offending field of the request, if one is.
        refused: value of the `x-tandem-refused` header, when the request was turned away unserved.
        retry_after: seconds after which trying again makes sense (sent as `Retry-After`, 1 to 60).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        refused: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.refused = refused
        self.retry_after = retry_after


@dataclass(frozen=True)
class ErrorAnswer:
    """An HTTP answer: status, JSON body, extra headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def answer(error: ApiError, dialect: Dialect) -> ErrorAnswer:
    """`error` as clients of `dialect` expect it."""
    headers: dict[str, str] = {}
    if error.refused:
        headers[REFUSED_HEADER] = error.refused
    if error.retry_after is not None:
        headers["Retry-After"] = str(min(60, max(1, round(error.retry_after))))
    if dialect is Dialect.ANTHROPIC:
        status = STATUS_OVERLOADED if error.status == 503 else error.status
        return ErrorAnswer(status, {"type": "error", "error": _anthropic_error(error)}, headers)
    if dialect is Dialect.OLLAMA:
        return ErrorAnswer(error.status, {"error": _ollama_text(error)}, headers)
    return ErrorAnswer(error.status, {"error": openai_error(error)}, headers)


def openai_error(error: ApiError) -> dict[str, Any]:
    """OpenAI's error object, also sent inside a stream that fails midway."""
    return {"message": error.message, "type": _openai_type(error.status), "param": error.param, "code": error.code}


def _ollama_text(error: ApiError) -> str:
    busy = error.refused in (REFUSED_QUEUE_FULL, REFUSED_QUEUE_TIMEOUT)
    return OLLAMA_QUEUE_FULL if busy else error.message


def _openai_type(status: int) -> str:
    if status == 404:
        return "not_found_error"
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _anthropic_error(error: ApiError) -> dict[str, str]:
    kinds = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
    }
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    return {"type": kinds.get(error.status, fallback), "message": error.message}
