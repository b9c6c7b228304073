"""Prometheus metrics of the serving pod, in a registry of its own.

Beside the path of every request. Labels are names from the catalog only, so that no client can make new series.
"""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tandem_api.report import ModelReport, ModelState, Report

if TYPE_CHECKING:
    from tandem_server.generation import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)


class _Gauges(Collector):
    """Gauges read from the report at the moment of the scrape, so that they can never go stale."""

    def __init__(self, report: Callable[[], Report]) -> None:
        self._report = report

    def collect(self) -> Iterator[GaugeMetricFamily]:
        report = self._report()
        yield GaugeMetricFamily("tandem_ready", "1 once the pod takes requests.", value=float(report.ready))
        yield GaugeMetricFamily("tandem_draining", "1 while the pod shuts down.", value=float(report.draining))
        readers: list[tuple[str, str, Callable[[ModelReport], float]]] = [
            ("num_requests_running", "Requests that hold a slot.", lambda model: model.busy),
            ("num_requests_waiting", "Requests that wait for a slot.", lambda model: model.queued),
            ("slots", "Slots of the model.", lambda model: model.slots),
            ("context_length_tokens", "Tokens each slot has.", lambda model: model.context_given),
            ("model_loaded", "1 while the model is resident.", lambda model: model.state is ModelState.LOADED),
            ("model_size_bytes", "Memory of the resident model.", lambda model: model.size_bytes),
            ("steps_per_second", "Steps over the last seconds.", lambda model: model.step_rate),
            ("runner_restarts", "Starts after a runner's death.", lambda model: model.restarts),
        ]
        for name, text, read in readers:
            family = GaugeMetricFamily(f"tandem_{name}", text, labels=["model"])
            for model in report.models:
                family.add_metric([model.name], float(read(model)))
            yield family


class Metrics:
    """All of them; make one a pod."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["model", "dialect"]
        registry = self.registry
        self._requests = Counter(
            "tandem_requests", "Requests by how they ended.", [*labels, "outcome"], registry=registry
        )
        self._refused = Counter(
            "tandem_requests_refused", "Turned away unserved.", ["model", "reason"], registry=registry
        )
        self._prompt = Counter("tandem_prompt_tokens", "Prompt tokens taken.", ["model"], registry=registry)
        self._generated = Counter("tandem_generation_tokens", "Tokens generated.", ["model"], registry=registry)
        self._queue = Histogram(
            "tandem_request_queue_seconds", "Wait for a slot.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._first = Histogram(
            "tandem_time_to_first_token_seconds", "From arrival.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._each = Histogram(
            "tandem_time_per_output_token_seconds",
            "Mean of a request, after its first token.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "tandem_e2e_request_latency_seconds", "From arrival to end.", ["model"], buckets=_SECONDS, registry=registry
        )

    def watch(self, report: Callable[[], Report]) -> None:
        """Adds the gauges that are read from the report."""
        self.registry.register(_Gauges(report))

    def refused(self, model: str, reason: str) -> None:
        """A request was turned away unserved."""
        self._refused.labels(model, reason).inc()

    def generated(self, model: str, dialect: str, outcome: str, usage: "Usage") -> None:
        """A generation ended: `ok`, `cancelled`, `error` or the reason of its refusal."""
        self._requests.labels(model, dialect, outcome).inc()
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._generated.labels(model).inc(usage.completion_tokens)
        if usage.started:
            self._queue.labels(model).observe(usage.started - usage.arrived)
        if usage.first:
            self._first.labels(model).observe(usage.first - usage.arrived)
        if usage.completion_tokens > 1:
            self._each.labels(model).observe((usage.last - usage.first) / (usage.completion_tokens - 1))
        if outcome == "ok":
            self._whole.labels(model).observe(time.monotonic() - usage.arrived)

    def embedded(self, model: str, dialect: str, outcome: str, tokens: int, seconds: float) -> None:
        """An embedding request ended."""
        self._requests.labels(model, dialect, outcome).inc()
        self._prompt.labels(model).inc(tokens)
        if outcome == "ok":
            self._whole.labels(model).observe(seconds)

    def text(self) -> bytes:
        """The exposition that a scrape gets."""
        return generate_latest(self.registry)
