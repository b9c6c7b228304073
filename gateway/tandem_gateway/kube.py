"""Lists and watches over the Kubernetes API: the informer's source in a real cluster.

lightkube reads the configuration (KUBECONFIG or the pod's ServiceAccount); aiohttp does the two calls. The projected
token is read anew for every call, for the kubelet rotates it.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.exceptions import ConfigError

from tandem_api.names import GROUP, MANAGED_BY, MANAGED_BY_LABEL, VERSION
from tandem_gateway.informer import Expired, Listing, SourceError, WatchEvent

PAGE = 500
WATCH_SECONDS = 290
"""The server ends a watch after so long; it is then resumed."""
MAX_EVENT_BYTES = 8 * 1024 * 1024
MODELS = f"/apis/{GROUP}/{VERSION}", "models"
PODS = "/api/v1", "pods"
PODS_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY}"


def collection(kind: tuple[str, str], namespace: str = "") -> str:
    """Path of all objects of a kind, such as MODELS: in all namespaces, or in one."""
    root, plural = kind
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


class KubeApi:
    """One client of the API server; create it inside a running event loop and close it at the end."""

    def __init__(self, config: SingleConfig) -> None:
        self._server = config.cluster.server.rstrip("/")
        self._user = config.user or User()
        if self._user.exec or self._user.auth_provider:
            raise ConfigError("The kubeconfig's user needs a login plugin; the gateway takes a token or a certificate.")
        tls = verify_cluster(config.cluster, self._user, config.abs_file) if self._server.startswith("https") else None
        self._session = aiohttp.ClientSession(connector=_connector(tls), trust_env=False)

    @classmethod
    def from_environment(cls) -> "KubeApi":
        """The API server of KUBECONFIG where that is set, else of the pod that this runs in.

        Raises:
            ConfigError: neither is there, or it cannot be used.
        """
        file = os.environ.get("KUBECONFIG")
        config = (KubeConfig.from_file(file) if file else KubeConfig.from_service_account()).get()
        if config is None:
            raise ConfigError("The kubeconfig has no current context.")
        return cls(config)

    async def close(self) -> None:
        """Closes every connection."""
        await self._session.close()

    @asynccontextmanager
    async def get(
        self, path: str, params: dict[str, str], limits: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET `path`; the answer is of status 200. Raises SourceError, or Expired for 410 Gone."""
        try:
            async with self._session.get(
                self._server + path, params=params, headers=await self._credentials(), timeout=limits
            ) as response:
                if response.status != 200:
                    raise _refusal(path, response.status, await response.text())
                yield response
        except (aiohttp.ClientError, OSError) as error:
            # TimeoutError is an OSError too; either way the next attempt follows.
            raise SourceError(f"the API server at {self._server} did not answer ({_cause(error)})") from error

    async def _credentials(self) -> dict[str, str]:
        user = self._user
        token = user.token
        if user.token_file:
            token = (await asyncio.to_thread(Path(user.token_file).read_text)).strip()
        if token:
            return {"Authorization": f"Bearer {token}"}
        if user.username and user.password:
            return {"Authorization": aiohttp.encode_basic_auth(user.username, user.password)}
        return {}


class KubeSource:
    """All objects at `path`, which `collection` makes, of those that match `selector`."""

    def __init__(self, api: KubeApi, path: str, selector: str | None = None) -> None:
        self._api = api
        self._path = path
        self._params = {"labelSelector": selector} if selector else {}

    async def list(self) -> Listing:
        """All objects, gathered page by page."""
        items: list[Any] = []
        params = {**self._params, "limit": str(PAGE)}
        while True:
            async with self._api.get(self._path, params, aiohttp.ClientTimeout(total=30)) as response:
                page = json.loads(await response.read())
            items += page.get("items") or []
            metadata = page.get("metadata", {})
            if not (more := metadata.get("continue")):
                return Listing(items, metadata.get("resourceVersion", ""))
            params["continue"] = more

    async def watch(self, version: str) -> AsyncGenerator[WatchEvent, None]:
        """What changed after `version`, bookmarks included."""
        params = {
            **self._params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._api.get(self._path, params, limits) as response:
            async for line in _lines(response.content):
                event = json.loads(line)
                kind, item = event.get("type"), event.get("object", {})
                if kind == "ERROR":
                    raise _refusal(self._path, item.get("code", 500), json.dumps(item))
                yield WatchEvent(kind, item)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MAX_EVENT_BYTES:
            raise SourceError(f"the API server sent an event of more than {MAX_EVENT_BYTES} bytes")


def _connector(tls: ssl.SSLContext | None) -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(ssl=tls if tls is not None else True, limit=0, keepalive_timeout=30)


def _refusal(path: str, status: int, text: str) -> SourceError:
    try:
        message = str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        message = text
    message = message[:500]
    if status == 410:
        return Expired(message)
    if status == 404 and path.startswith(MODELS[0]):
        return SourceError("the API server knows no Models (404): the CustomResourceDefinition is not installed")
    if status in (401, 403):
        return SourceError(f"the API server refuses {path} ({status}): {message}; see the gateway's rights")
    return SourceError(f"the API server answered {status} to {path}: {message}")


def _cause(error: BaseException) -> str:
    return str(error) or type(error).__name__
