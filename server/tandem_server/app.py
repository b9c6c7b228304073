"""Which routes each listener has.

Three applications in Kubernetes (clients, the system, the kubelet), one with everything for `tandem serve`.
"""

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from tandem_server.http.guard import Guard, KeyFile, add_error_answers
from tandem_server.http.health import health_router
from tandem_server.http.internal import internal_router
from tandem_server.http.ollama import ollama_router
from tandem_server.http.ollama_info import ollama_info_router
from tandem_server.http.openai import openai_router
from tandem_server.pod import Pod


def _application(pod: Pod, routers: Iterable[APIRouter], key: KeyFile | None) -> ASGIApp:
    app = FastAPI(title="Tandem", openapi_url=None)
    for router in routers:
        app.include_router(router)
    add_error_answers(app)
    return Guard(app, pod, key)


def _client_routers(pod: Pod) -> list[APIRouter]:
    return [openai_router(pod), ollama_router(pod), ollama_info_router(pod)]


def client_app(pod: Pod, key: KeyFile | None) -> ASGIApp:
    """The clients' APIs."""
    return _application(pod, _client_routers(pod), key)


def internal_app(pod: Pod, key: KeyFile | None) -> ASGIApp:
    """Report and metrics."""
    return _application(pod, [internal_router(pod)], key)


def health_app(pod: Pod) -> ASGIApp:
    """The kubelet's questions."""
    return _application(pod, [health_router(pod)], None)


def whole_app(pod: Pod) -> ASGIApp:
    """Everything at one port and without a key, for `tandem serve` on a person's own machine."""
    return _application(pod, [*_client_routers(pod), internal_router(pod), health_router(pod)], None)
