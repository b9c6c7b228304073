"""What the kubelet asks: /healthz (alive) and /readyz (takes requests).

Ready from when the catalog is read and every preload model was loaded once, until the pod drains; unloading a model
never changes it.
"""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from tandem_server.pod import Pod


def health_router(pod: Pod) -> APIRouter:
    """The routes; they say nothing else and ask for no key."""
    router = APIRouter()

    @router.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @router.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> PlainTextResponse:
        if pod.draining:
            return PlainTextResponse("draining\n", 503)
        if not pod.manager.ready:
            return PlainTextResponse(f"waiting for {', '.join(pod.manager.missing())}\n", 503)
        return PlainTextResponse("ready\n")

    return router
