"""Prometheus metrics of the serving pod, in a registry of its own.

Beside the path of every request. Labels are names from the catalog and words of this code only, so that no client can
make new series. The same measures go out once more under the names that vLLM gave them (`metrics_vllm`), by which
dashboards and inference gateways know them.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tandem_api.report import Report
from tandem_server.metrics_report import ModelFigures, ReportGauges
from tandem_server.metrics_vllm import Alias, VllmNames

if TYPE_CHECKING:
    from tandem_server.generation import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LOAD_SECONDS = (0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144)


class Metrics:
    """All of them; make one a pod."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        each, model = ["model", "dialect"], ["model"]
        self.requests = self._counter("requests", "Requests by how they ended.", [*each, "outcome"])
        self.refused_requests = self._counter("requests_refused", "Turned away unserved.", ["model", "reason"])
        self.answers = self._counter("http_responses", "Answers by HTTP status.", ["dialect", "code"])
        self.prompt = self._counter("prompt_tokens", "Prompt tokens of requests whose answer began.", model)
        self.generation = self._counter("generation_tokens", "Tokens generated.", model)
        self.finished = self._counter(
            "request_success", "Ended, by why: stop, length, abort or error.", [*model, "why"]
        )
        self.loads = self._counter("model_loads", "Loads by outcome: ok or failed.", ["model", "outcome"])
        self.unloads = self._counter("model_unloads", "By why: expired, room or grows.", ["model", "why"])
        self.load_bytes = self._counter("model_load_bytes", "Bytes of weights that loads read.", model)
        self.load_seconds = self._histogram("model_load_seconds", "Of loads that worked.", _LOAD_SECONDS)
        self.queue = self._histogram("request_queue_seconds", "Wait for a slot.", _SECONDS)
        self.first = self._histogram("time_to_first_token_seconds", "From arrival.", _SECONDS)
        self.gap = self._histogram("inter_token_latency_seconds", "Between two steps' tokens.", _TOKEN_SECONDS)
        self.mean = self._histogram(
            "time_per_output_token_seconds", "Mean of a request, after its first token.", _TOKEN_SECONDS
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "From arrival to end.", _SECONDS)
        self.prefill = self._histogram("request_prefill_seconds", "From a slot to the first token.", _SECONDS)
        self.decode = self._histogram("request_decode_seconds", "From the first token to the last.", _SECONDS)
        self.prompt_sizes = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_sizes = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)

    def watch(self, report: Callable[[], Report], figures: Callable[[], dict[str, ModelFigures]]) -> None:
        """Adds what is read at the moment of the scrape, and vLLM's names for all of it."""
        gauges = ReportGauges(report, figures)
        self.registry.register(gauges)
        self.registry.register(VllmNames(gauges, self._aliases()))

    def _aliases(self) -> list[Alias]:
        return [
            Alias(self.prompt, "prompt_tokens"),
            Alias(self.generation, "generation_tokens"),
            Alias(self.finished, "request_success", {"why": "finished_reason"}),
            Alias(self.first, "time_to_first_token_seconds"),
            Alias(self.gap, "inter_token_latency_seconds"),
            Alias(self.mean, "request_time_per_output_token_seconds"),
            Alias(self.whole, "e2e_request_latency_seconds"),
            Alias(self.queue, "request_queue_time_seconds"),
            Alias(self.prefill, "request_prefill_time_seconds"),
            Alias(self.decode, "request_decode_time_seconds"),
            Alias(self.prompt_sizes, "request_prompt_tokens"),
            Alias(self.answer_sizes, "request_generation_tokens"),
        ]

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"tandem_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"tandem_{name}", text, ["model"], buckets=buckets, registry=self.registry)

    def refused(self, model: str, reason: str) -> None:
        """A request was turned away unserved."""
        self.refused_requests.labels(model, reason).inc()

    def answered(self, dialect: str, code: int) -> None:
        """An answer's status went out to a client."""
        self.answers.labels(dialect, str(code)).inc()

    def loaded(self, model: str, worked: bool, seconds: float, size: int) -> None:
        """A load ended; `size` is the bytes of weights."""
        self.loads.labels(model, "ok" if worked else "failed").inc()
        if worked:
            self.load_seconds.labels(model).observe(seconds)
            self.load_bytes.labels(model).inc(size)

    def meter(self, model: str, dialect: str) -> "Meter":
        """For one generation."""
        return Meter(self, model, dialect)

    def embedded(self, model: str, dialect: str, outcome: str, tokens: int, seconds: float) -> None:
        """An embedding request ended."""
        self.requests.labels(model, dialect, outcome).inc()
        if outcome == "ok":
            self.prompt.labels(model).inc(tokens)
            self.prompt_sizes.labels(model).observe(tokens)
            self.whole.labels(model).observe(seconds)
            self.finished.labels(model, "stop").inc()

    def text(self) -> bytes:
        """The exposition that a scrape gets."""
        return generate_latest(self.registry)


class Meter:
    """Measures one generation while it goes on, so that a long answer is seen before it ends."""

    def __init__(self, metrics: Metrics, model: str, dialect: str) -> None:
        self._metrics = metrics
        self._model = model
        self._dialect = dialect
        self._gap = metrics.gap.labels(model)
        self._tokens = metrics.generation.labels(model)

    def tokens(self, usage: "Usage", before: float, count: int) -> None:
        """A step's tokens came at `usage.last`, the ones before them at `before` (0.0: these are the first)."""
        if before and count:
            self._gap.observe(usage.last - before)
        elif not before:
            self._metrics.first.labels(self._model).observe(usage.first - usage.arrived)
            self._metrics.prompt.labels(self._model).inc(usage.prompt_tokens)
        self._tokens.inc(count)

    def ended(self, outcome: str, finish: str | None, usage: "Usage") -> None:
        """The end: `ok` (with `finish` stop or length), `cancelled`, `error` or the reason of its refusal."""
        metrics, model = self._metrics, self._model
        metrics.requests.labels(model, self._dialect, outcome).inc()
        if not usage.started:
            return
        metrics.queue.labels(model).observe(usage.started - usage.arrived)
        why = {"ok": finish or "stop", "cancelled": "abort"}.get(outcome, "error")
        metrics.finished.labels(model, why).inc()
        if outcome != "ok":
            return
        metrics.whole.labels(model).observe(time.monotonic() - usage.arrived)
        metrics.prefill.labels(model).observe(usage.first - usage.started)
        metrics.decode.labels(model).observe(usage.last - usage.first)
        metrics.prompt_sizes.labels(model).observe(usage.prompt_tokens)
        metrics.answer_sizes.labels(model).observe(usage.completion_tokens)
        if usage.completion_tokens > 1:
            metrics.mean.labels(model).observe((usage.last - usage.first) / (usage.completion_tokens - 1))
