"""Lists and watches against a small HTTP server that speaks as the Kubernetes API does."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from lightkube.config.kubeconfig import KubeConfig
from lightkube.exceptions import ConfigError

from tandem_gateway.informer import Expired, SourceError, WatchEvent
from tandem_gateway.kube import MODELS, PODS, PODS_SELECTOR, KubeApi, KubeSource, collection

MODELS_PATH, PODS_PATH = collection(MODELS), collection(PODS)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiServer:
    """Answers each request by the next handler of its list; keeps what was asked."""

    def __init__(self) -> None:
        self.handlers: list[Handler] = []
        self.asked: list[tuple[str, dict[str, str], str | None]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, dict(request.query), request.headers.get("Authorization")))
        return await self.handlers.pop(0)(request)

    def json(self, value: Any, status: int = 200) -> None:
        async def handler(_: web.Request) -> web.StreamResponse:
            return web.json_response(value, status=status)

        self.handlers.append(handler)

    def lines(self, *pieces: bytes) -> None:
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
            return response

        self.handlers.append(handler)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    fake = ApiServer()
    app = web.Application()
    app.router.add_get("/{rest:.*}", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = site.name
    yield fake
    await runner.cleanup()


@pytest.fixture
async def api(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubeApi]:
    """A client as a pod would make it from a kubeconfig whose token lies in a file."""
    (tmp_path / "token").write_text("first\n")
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"tokenFile": str(tmp_path / "token")}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    made = KubeApi.from_environment()
    yield made
    await made.close()


async def events(source: KubeSource, version: str) -> list[WatchEvent]:
    return [event async for event in source.watch(version)]


async def test_lists_page_by_page(api: KubeApi, server: ApiServer) -> None:
    server.json({"metadata": {"resourceVersion": "5", "continue": "more"}, "items": [{"a": 1}]})
    server.json({"metadata": {"resourceVersion": "5"}, "items": [{"b": 2}]})
    listing = await KubeSource(api, PODS_PATH, PODS_SELECTOR).list()
    assert (listing.items, listing.version) == ([{"a": 1}, {"b": 2}], "5")
    path, query, _ = server.asked[0]
    assert (path, query["labelSelector"]) == (PODS_PATH, "app.kubernetes.io/managed-by=tandem")
    assert server.asked[1][1]["continue"] == "more"


async def test_the_token_is_read_anew_for_every_call(api: KubeApi, server: ApiServer, tmp_path: Path) -> None:
    for _ in range(2):
        server.json({"metadata": {}, "items": None})
    source = KubeSource(api, PODS_PATH)
    await source.list()
    (tmp_path / "token").write_text("second")
    await source.list()
    assert [token for _, _, token in server.asked] == ["Bearer first", "Bearer second"]


async def test_watches_with_bookmarks_over_any_chunks(api: KubeApi, server: ApiServer) -> None:
    added = json.dumps({"type": "ADDED", "object": {"metadata": {"uid": "a", "note": "x" * 300_000}}}).encode() + b"\n"
    mark = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}\n'
    server.lines(added[:10], added[10:200_000], added[200_000:] + mark[:5], mark[5:])
    kinds = [event.kind for event in await events(KubeSource(api, MODELS_PATH), "7")]
    assert kinds == ["ADDED", "BOOKMARK"]
    path, query, _ = server.asked[0]
    assert path == "/apis/tandem.dev/v1alpha1/models"
    assert (query["watch"], query["allowWatchBookmarks"], query["resourceVersion"]) == ("true", "true", "7")


async def test_gone_is_told_by_status_and_inside_the_stream(api: KubeApi, server: ApiServer) -> None:
    source = KubeSource(api, PODS_PATH)
    server.json({"message": "too old resource version: 1 (9)"}, 410)
    with pytest.raises(Expired, match="too old"):
        await events(source, "1")
    server.lines(b'{"type": "ERROR", "object": {"code": 410, "message": "expired"}}\n')
    with pytest.raises(Expired, match="expired"):
        await events(source, "1")


def test_one_namespace_or_all() -> None:
    assert (MODELS_PATH, PODS_PATH) == ("/apis/tandem.dev/v1alpha1/models", "/api/v1/pods")
    assert collection(MODELS, "team") == "/apis/tandem.dev/v1alpha1/namespaces/team/models"
    assert collection(PODS, "team") == "/api/v1/namespaces/team/pods"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        (collection(MODELS, "team"), 404, "CustomResourceDefinition is not installed"),
        (MODELS_PATH, 404, "CustomResourceDefinition is not installed"),
        (PODS_PATH, 403, "see the gateway's rights"),
        (PODS_PATH, 500, "answered 500"),
    ],
)
async def test_refusals_are_sentences(api: KubeApi, server: ApiServer, path: str, status: int, said: str) -> None:
    server.json({"message": "because"}, status)
    with pytest.raises(SourceError, match=said) as caught:
        await KubeSource(api, path).list()
    assert not isinstance(caught.value, Expired)


async def test_a_broken_watch_and_an_absent_server_are_source_errors(api: KubeApi, server: ApiServer) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "ADDED", "object": {}}\n')
        assert request.transport
        request.transport.abort()
        return response

    server.handlers.append(cut)
    with pytest.raises(SourceError, match="did not answer"):
        await events(KubeSource(api, PODS_PATH), "1")
    config = KubeConfig.from_server("http://127.0.0.9:1").get()
    assert config is not None
    absent = KubeApi(config)
    try:
        with pytest.raises(SourceError, match=r"http://127\.0\.0\.9:1 did not answer"):
            await KubeSource(absent, PODS_PATH).list()
    finally:
        await absent.close()


async def test_a_login_plugin_is_refused_in_a_sentence() -> None:
    config = KubeConfig.from_dict(
        {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"exec": {"apiVersion": "v1", "command": "login"}}}],
        }
    ).get()
    assert config is not None
    with pytest.raises(ConfigError, match="login plugin"):
        KubeApi(config)
