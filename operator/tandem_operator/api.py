"""The operator's own client of the Kubernetes API: lists, creations, server-side applies, deletions.

Under `act`, `relist` and `events`. Plain JSON objects in and out, the same form as kopf's watch events have. Two
sessions, so that writes never queue behind a long list. Every request has a deadline.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import kopf
from pydantic_core import from_json, to_json

from tandem_api.names import FIELD_MANAGER
from tandem_operator.kinds import Kind, Obj
from tandem_operator.metrics import API_REQUESTS

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_TOKEN_SECONDS = 60.0
_PAGE = 500


class ApiError(Exception):
    """The API server refused or could not be reached. `code` is the HTTP status, 0 when there was no answer."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class Api:
    """Client of one API server; use as an async context manager."""

    def __init__(
        self,
        info: kopf.ConnectionInfo,
        token_file: Path | None = None,
        namespace: str = "",
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._namespace = namespace or None
        self._may_write = may_write
        self._server = info.server.rstrip("/")
        self._headers = info.as_http_headers()
        self._ssl = info.as_ssl_context()
        self._token_file = token_file
        self._token_read = time.monotonic()
        self._reads: aiohttp.ClientSession
        self._writes: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._reads = self._session(8)
        self._writes = self._session(32, [self._guard()])
        return self

    def _guard(self) -> aiohttp.TraceConfig:
        """Asks whether to write once more when the connection is there: it may have taken long to get one."""

        async def check(*_: Any) -> None:
            self._check_leader()

        guard = aiohttp.TraceConfig()
        guard.on_connection_create_end.append(check)
        guard.on_connection_reuseconn.append(check)
        return guard

    def _check_leader(self) -> None:
        if not self._may_write():
            raise ApiError(0, "NotLeader", "another process may lead by now, so nothing is written")

    def _session(self, limit: int, traces: Sequence[aiohttp.TraceConfig] = ()) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ssl, limit=limit),
            timeout=_TIMEOUT,
            headers={"User-Agent": FIELD_MANAGER, "Accept": "application/json"},
            trace_configs=list(traces),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._reads.close()
        await self._writes.close()

    async def list(self, kind: Kind) -> tuple[list[Obj], str]:
        """All objects of a kind that match its selector, in the namespaces watched, and the list's resourceVersion."""
        items: list[Obj] = []
        params = {"limit": str(_PAGE)}
        if kind.selector:
            params["labelSelector"] = kind.selector
        while True:
            page = await self._send(self._reads, "GET", kind.path(self._namespace), params=params)
            items += page.get("items") or []
            if not page["metadata"].get("continue"):
                return items, str(page["metadata"]["resourceVersion"])
            params["continue"] = page["metadata"]["continue"]

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj:
        """One object; ApiError with code 404 when there is none."""
        return await self._send(self._reads, "GET", kind.path(namespace, name))

    async def create(self, kind: Kind, obj: Obj) -> Obj:
        """Creates an object; ApiError with code 409 when the name is taken."""
        params = {"fieldManager": FIELD_MANAGER}
        return await self._send(self._writes, "POST", kind.path(obj["metadata"]["namespace"]), params=params, body=obj)

    async def apply(self, kind: Kind, obj: Obj, manager: str = FIELD_MANAGER, subresource: str | None = None) -> Obj:
        """Server-side apply. With `metadata.uid` set it can neither create an object nor hit a namesake."""
        path = kind.path(obj["metadata"]["namespace"], obj["metadata"]["name"], subresource)
        params = {"fieldManager": manager, "force": "true"}
        return await self._send(
            self._writes, "PATCH", path, params=params, body=obj, content_type="application/apply-patch+yaml"
        )

    async def patch(self, kind: Kind, namespace: str, name: str, body: Any, content_type: str) -> Obj:
        """A merge or JSON patch, as `content_type` says."""
        params = {"fieldManager": FIELD_MANAGER}
        return await self._send(
            self._writes, "PATCH", kind.path(namespace, name), params=params, body=body, content_type=content_type
        )

    async def update(self, kind: Kind, obj: Obj) -> Obj:
        """Replaces an object; ApiError with code 409 unless it still has the resourceVersion in `obj`."""
        path = kind.path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        return await self._send(self._writes, "PUT", path, params={"fieldManager": FIELD_MANAGER}, body=obj)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Deletes the object that has this UID, its dependents in the background."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        await self._send(self._writes, "DELETE", kind.path(namespace, name), body=body)

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Obj:
        if session is self._writes:
            self._check_leader()
        self._refresh_token(older_than=_TOKEN_SECONDS)
        data = None if body is None else to_json(body)
        try:
            for attempt in (1, 2):
                headers = dict(self._headers) | ({"Content-Type": content_type} if data is not None else {})
                url = self._server + path
                async with session.request(method, url, params=params, data=data, headers=headers) as response:
                    content = await response.read()
                    if response.status == 401 and attempt == 1 and self._refresh_token(older_than=0.0):
                        continue
                    API_REQUESTS.labels(method=method, code=str(response.status)).inc()
                    return _answer(method, path, response.status, content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            API_REQUESTS.labels(method=method, code="none").inc()
            cause = str(error) or type(error).__name__
            raise ApiError(0, "Unreachable", f"the API server gave no answer to {method} {path}: {cause}") from error
        raise ApiError(401, "Unauthorized", f"the API server refused the operator's credentials for {method} {path}")

    def _refresh_token(self, older_than: float) -> bool:
        """Reads the projected token again when it was last read longer ago; True when the token is another."""
        now = time.monotonic()
        if self._token_file is None or now - self._token_read < older_than:
            return False
        try:
            header = f"Bearer {self._token_file.read_text().strip()}"
        except OSError as error:
            log.warning("The ServiceAccount token %s cannot be read again: %s.", self._token_file, error)
            return False
        self._token_read = now
        changed = self._headers.get("Authorization") != header
        self._headers["Authorization"] = header
        return changed


def _answer(method: str, path: str, code: int, content: bytes) -> Obj:
    try:
        obj: Any = from_json(content)
    except ValueError:
        obj = None
    if not isinstance(obj, dict):
        raise ApiError(code, "Unreadable", f"the answer to {method} {path} is not a JSON object (HTTP {code})")
    if code >= 400:
        raise ApiError(code, str(obj.get("reason", "")), str(obj.get("message", f"HTTP {code} to {method} {path}")))
    return obj
