"""What the rest of the system asks a pod: /internal/report, /metrics, and a person's /internal/trace.

Polled by the operator, the gateways and Prometheus; asks for the pool key inside Kubernetes.
"""

from typing import Any

from fastapi import APIRouter, Response

from tandem_api.dialects import ApiError
from tandem_server.metrics import CONTENT_TYPE
from tandem_server.pod import Pod
from tandem_server.residency.client import RunnerGone
from tandem_server.tracing import chrome_trace

TRACE_SECONDS = 10.0
"""For the runner to come to its next step's end, where it answers."""


def internal_router(pod: Pod) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/internal/report")
    async def report() -> Response:
        return Response(pod.report().model_dump_json(by_alias=True), media_type="application/json")

    @router.get("/internal/trace")
    async def trace(model: str) -> dict[str, Any]:
        """The last steps of a model's runner, in the form that Perfetto reads."""
        host = pod.manager.find(model)
        runner = host.runner
        if runner is None or host.loaded is None:
            raise ApiError(
                409, f"model '{host.entry.name}' is not loaded, so there are no steps to tell", param="model"
            )
        try:
            steps = await runner.client.trace(TRACE_SECONDS)
        except TimeoutError:
            raise ApiError(
                504, f"the runner of model '{host.entry.name}' said nothing for {TRACE_SECONDS:g} s"
            ) from None
        except RunnerGone as gone:
            raise ApiError(503, str(gone), code="runner_died") from None
        return chrome_trace(host.entry.name, runner.pid, steps)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(pod.metrics.text(), headers={"content-type": CONTENT_TYPE})

    return router
