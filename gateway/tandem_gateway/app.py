"""The gateway's three HTTP applications: for clients, for Prometheus, and for the kubelet.

Second on the path of a request, after the HTTP server: paths are bound here, and every answer that no pod gives is
made here, in the dialect of its path.
"""

from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import tandem_api
from tandem_api.dialects import ApiError, answer, dialect_of
from tandem_api.keys import bearer_matches
from tandem_gateway import listings
from tandem_gateway.access import Record
from tandem_gateway.directory import Directory
from tandem_gateway.lifecycle import Lifecycle
from tandem_gateway.metrics import Metrics

PROXIED = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
)
"""Paths that a pod answers; all are POST."""

Endpoint = Callable[[Request], Awaitable[Response]]


def public_app(proxy: ASGIApp, directory: Directory, lifecycle: Lifecycle, metrics: Metrics) -> Starlette:
    """What clients call."""

    def own(make: Callable[[Request], Response]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            record = Record(request.method, _template(request))
            response = _told(make, request)
            record.status, record.sent_bytes = response.status_code, len(response.body)
            if lifecycle.draining:
                response.headers["connection"] = "close"
            record.finish(metrics)
            return response

        return endpoint

    def one_model(request: Request) -> Response:
        model = directory.resolve(request.path_params["name"])
        if model is None:
            raise ApiError(404, f"The model '{request.path_params['name']}' does not exist.", code="model_not_found")
        return JSONResponse(listings.openai_model(directory, model))

    answered: dict[str, Callable[[Request], Response]] = {
        "/": lambda _: PlainTextResponse("Ollama is running"),
        "/v1/models": lambda _: JSONResponse(listings.openai_models(directory)),
        "/v1/models/{name:path}": one_model,
        "/api/tags": lambda _: JSONResponse(listings.ollama_tags(directory)),
        "/api/ps": lambda _: JSONResponse(listings.ollama_ps(directory)),
        "/api/version": lambda _: JSONResponse({"version": tandem_api.__version__}),
    }
    app = Starlette(
        routes=[
            *(Route(path, proxy, methods=["POST"]) for path in PROXIED),
            *(Route(path, own(make), methods=["GET"]) for path, make in answered.items()),
        ],
        exception_handlers={HTTPException: _no_such_path, Exception: _fault},
    )
    app.router.redirect_slashes = False
    return app


def internal_app(metrics: Metrics, lifecycle: Lifecycle, buffered: Callable[[], int], key: str) -> Starlette:
    """What Prometheus calls, with `key` as its bearer token."""

    async def exposition(request: Request) -> Response:
        if not bearer_matches(request.headers.get("authorization"), key):
            return PlainTextResponse("This port asks for the gateway's key.\n", 401, {"www-authenticate": "Bearer"})
        metrics.in_progress.set(lifecycle.requests)
        metrics.buffered.set(buffered())
        for informer in lifecycle.informers:
            metrics.watch_age.labels(informer.kind).set(informer.age)
            metrics.objects.labels(informer.kind).set(len(informer.items))
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", exposition)])


def health_app(lifecycle: Lifecycle) -> Starlette:
    """What the kubelet calls: 200 or 503, with a sentence."""

    async def ready(_: Request) -> Response:
        return _verdict(lifecycle.unready(), lifecycle)

    async def healthy(_: Request) -> Response:
        return _verdict(lifecycle.unhealthy(), lifecycle)

    return Starlette(routes=[Route("/readyz", ready), Route("/healthz", healthy)])


def _verdict(complaint: str | None, lifecycle: Lifecycle) -> Response:
    return PlainTextResponse(f"{complaint or 'ok'}\n{lifecycle.watches()}\n", 503 if complaint else 200)


def _told(make: Callable[[Request], Response], request: Request) -> Response:
    try:
        return make(request)
    except ApiError as error:
        return _error(request, error)


def _error(request: Request, error: ApiError) -> Response:
    told = answer(error, dialect_of(request.url.path))
    return JSONResponse(told.body, told.status, told.headers)


def _template(request: Request) -> str:
    """The path as a metrics label: without names in it."""
    path = request.url.path
    return "/v1/models/{name}" if path.startswith("/v1/models/") else path


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path
    if status == 405:
        allowed = (error.headers or {}).get("Allow", "POST")
        return _error(request, ApiError(405, f"{path} takes {allowed}, not {request.method}.", code="wrong_method"))
    return _error(request, ApiError(status, f"There is nothing at {request.method} {path}.", code="unknown_path"))


async def _fault(request: Request, _: Exception) -> Response:
    return _error(request, ApiError(500, "The gateway failed; its log tells more.", code="internal"))
