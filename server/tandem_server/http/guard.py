"""Around every route: the pool key before, errors in the client's dialect after.

First and last of all on the path of a request. Pure ASGI, so that streams pass through untouched.
"""

import logging
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem_api.dialects import ApiError, answer, dialect_of
from tandem_api.keys import bearer_matches
from tandem_server.generation import model_headers
from tandem_server.http.exchange import GONE
from tandem_server.pod import Pod

_log = logging.getLogger(__name__)


class KeyFile:
    """The pool key as mounted; read again when the file changes. Raises OSError when it cannot be read at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = -1
        self._key = ""
        self._read()

    def matches(self, header: str | None) -> bool:
        """Whether an Authorization header carries the key."""
        try:
            self._read()
        except OSError as error:
            _log.warning("The pool key in %s cannot be read (%s); the last one stays in use.", self._path, error)
        return bearer_matches(header, self._key)

    def _read(self) -> None:
        stamp = self._path.stat().st_mtime_ns
        if stamp != self._stamp:
            key = self._path.read_text().strip()
            if not key:
                raise OSError(f"the pool key file {self._path} is empty")
            self._key, self._stamp = key, stamp


CLIENTS = ("/v1/", "/api/")
"""Where paths of the clients' APIs begin."""


class Guard:
    """Asks for the key, if there is one, and counts answers; closes connections after each while the pod drains."""

    def __init__(self, app: ASGIApp, pod: Pod, key: KeyFile | None) -> None:
        self._app = app
        self._pod = pod
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not scope["path"].startswith(CLIENTS):
            await self._guarded(scope, receive, send)
            return
        status = GONE

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._pod.answering += 1
        try:
            await self._guarded(scope, receive, counted)
        finally:
            self._pod.answering -= 1
            self._pod.metrics.answered(dialect_of(scope["path"]).value, status)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None:
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            if not self._key.matches(header):
                error = ApiError(401, "this port asks for the pool key (Authorization: Bearer)", code="invalid_api_key")
                await _told(error, scope["path"])(scope, receive, send)
                return

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._pod.draining:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, closing)


def _told(error: ApiError, path: str) -> JSONResponse:
    told = answer(error, dialect_of(path))
    return JSONResponse(told.body, told.status, headers=told.headers)


def add_error_answers(app: FastAPI) -> None:
    """Every error, whatever raised it, in the dialect of its path and with its model's headers."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        response = _told(error, request.url.path)
        host = getattr(request.state, "host", None)
        if host is not None:
            response.headers.update(model_headers(host))
        return response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        message = {
            404: f"there is nothing at {path}",
            405: f"{request.method} is not allowed at {path}",
        }.get(error.status_code, str(error.detail))
        response = _told(ApiError(error.status_code, message), path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        _log.error("A request to %s met a fault in the server: %r", request.url.path, error, exc_info=error)
        message = "the server met a fault of its own on this request; its log says more"
        return _told(ApiError(500, message, code="internal_error"), request.url.path)
