"""What the rest of the system asks a pod: /internal/report and /metrics.

Polled by the operator, the gateways and Prometheus; asks for the pool key inside Kubernetes.
"""

from fastapi import APIRouter, Response

from tandem_server.metrics import CONTENT_TYPE
from tandem_server.pod import Pod


def internal_router(pod: Pod) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/internal/report")
    async def report() -> Response:
        return Response(pod.report().model_dump_json(by_alias=True), media_type="application/json")

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(pod.metrics.text(), headers={"content-type": CONTENT_TYPE})

    return router
