"""Sends one request to one pod and says how that went: the only place that opens connections to pods.

On the path of a request below `replay`, which decides where to send it next when this failed.
"""

import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from tandem_api.keys import pool_key
from tandem_api.load import Load
from tandem_api.names import LOAD_HEADER, REFUSED_DRAINING, REFUSED_HEADER
from tandem_gateway.objects import PodView

CONNECT_SECONDS = 1.0
IDLE_SECONDS = 3600.0
"""A pod that sends nothing for so long is given up; queues have their own, shorter bounds."""
KEEP_ALIVE_SECONDS = 4.0
"""Idle connections are closed sooner than a pod's HTTP server would (5 s), so that few are found dead."""
STALE_SECONDS = 0.5
"""A kept connection that breaks so soon was closed before; later, the pod died with the request."""
UNACKNOWLEDGED_MS = 10_000
_WHOLE_BODY_BYTES = 64 * 1024


class Fault(StrEnum):
    """Why a pod gave no answer that the client could get."""

    CONNECT = "connect"
    """No connection: nothing was sent."""
    STALE = "stale"
    """A kept connection turned out to be closed."""
    RESET = "reset"
    """A new connection broke after the request was sent, before any byte of an answer."""
    DRAINING = "draining"
    """The pod takes no more requests."""
    KEY = "key"
    """The pod refused the pool key: it is of another pool, or has not read its key."""
    SILENT = "silent"
    """The pod accepted the request and then said nothing for too long."""


@dataclass
class AttemptFailed(Exception):
    """One pod did not answer; `cause` goes into sentences."""

    fault: Fault
    cause: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent to the pod: `target` is path and query as the client wrote them."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Upstream:
    """The connections to all pods; create it inside a running event loop and close it at the end.

    Args:
        master: the install's master secret, from which pool keys are derived.
        port: the pods' HTTP port.
    """

    def __init__(self, master: bytes, port: int) -> None:
        self._master = master
        self._port = port
        self._keys: dict[str, str] = {}
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, socket_factory=_socket, use_dns_cache=False
        )
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_mark_reused)
        self._session = aiohttp.ClientSession(
            connector=connector,
            trace_configs=[trace],
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=IDLE_SECONDS),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            trust_env=False,
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._session.close()

    def key_of(self, pool_uid: str) -> str:
        """The pool's key."""
        if pool_uid not in self._keys:
            self._keys[pool_uid] = pool_key(self._master, pool_uid)
        return self._keys[pool_uid]

    async def send(self, pod: PodView, request: Outgoing) -> aiohttp.ClientResponse:
        """Sends `request` and returns the answer once its head is there; the caller reads and closes it.

        Raises:
            AttemptFailed: no answer for the client came of it.
        """
        seen, began = SimpleNamespace(reused=False), time.monotonic()
        # aiohttp warns of large bytes; a file-like body is sent piece by piece.
        data: Any = request.body if len(request.body) <= _WHOLE_BODY_BYTES else io.BytesIO(request.body)
        try:
            response = await self._session.request(
                request.method,
                URL(f"http://{_bracketed(pod.ip)}:{self._port}{request.target}", encoded=True),
                headers=request.headers,
                data=data,
                allow_redirects=False,
                trace_request_ctx=seen,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise AttemptFailed(Fault.CONNECT, f"no connection to {pod.ip} ({_cause(error)})") from error
        except TimeoutError as error:
            raise AttemptFailed(Fault.SILENT, f"it sent nothing for {IDLE_SECONDS:.0f} s") from error
        except (aiohttp.ClientError, OSError, ssl.SSLError) as error:
            quick = time.monotonic() - began < STALE_SECONDS
            fault = Fault.STALE if seen.reused and quick else Fault.RESET
            raise AttemptFailed(fault, f"the connection broke before an answer ({_cause(error)})") from error
        return _checked(response)


def load_of(response: aiohttp.ClientResponse) -> Load | None:
    """The load that the pod told with its answer."""
    value = response.headers.get(LOAD_HEADER)
    return Load.from_header(value) if value else None


def _checked(response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    if response.headers.get(REFUSED_HEADER) == REFUSED_DRAINING:
        response.close()
        raise AttemptFailed(Fault.DRAINING, "it is draining")
    if response.status == 401:
        # Clients' credentials never reach a pod, so this is about the gateway's own.
        response.close()
        raise AttemptFailed(Fault.KEY, "it refused the gateway's pool key (401)")
    return response


async def _mark_reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.reused = True


def _socket(address: Any) -> socket.socket:
    """A socket that notices within seconds when its peer has vanished without a word."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS),
    ):
        sock.setsockopt(level, option, value)
    return sock


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"timed out after {CONNECT_SECONDS:g} s"
    inner = getattr(error, "os_error", error)
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)
