"""Gauges read from the report at the moment of a scrape, so that they can never go stale.

Beside the path of every request; `metrics` registers them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem_api.report import ModelReport, ModelState, Report


@dataclass(frozen=True)
class ModelFigures:
    """What metrics tell of a model beyond the report. Bytes are measured, None until they were.

    Attributes:
        cache_used: share of the context memory in use, 0 to 1.
        rss: memory of the runner's processes, what they share counted for each.
        pss: the same with what they share divided among its users.
        device: memory on the GPU, by the runner's own account; 0 on a CPU.
        waiting: requests that hold a slot and wait for memory of a shared pool.
        prefix_evicted: blocks that the prefix cache lost since the runner's start.
    """

    cache_used: float
    rss: int | None
    pss: int | None
    device: int
    waiting: int = 0
    prefix_evicted: int = 0


_MODEL_GAUGES: list[tuple[str, str, Callable[[ModelReport], float]]] = [
    ("num_requests_running", "Requests that hold a slot.", lambda model: model.busy),
    ("num_requests_waiting", "Requests that wait for a slot.", lambda model: model.queued),
    ("slots", "Slots of the model.", lambda model: model.slots),
    ("context_length_tokens", "Tokens each slot has.", lambda model: model.context_given),
    ("cache_pool_tokens", "Tokens that all slots hold together.", lambda model: model.pool_tokens),
    ("model_loaded", "1 while the model is resident.", lambda model: model.state is ModelState.LOADED),
    ("model_failed", "1 while the model cannot be served.", lambda model: model.state is ModelState.FAILED),
    (
        "model_load_progress_ratio",
        "Of the load's phase.",
        lambda model: model.progress.fraction if model.progress else 0,
    ),
    ("model_size_bytes", "Memory of the resident model, as its load counted it.", lambda model: model.size_bytes),
    ("steps_per_second", "Steps over the last seconds.", lambda model: model.step_rate),
]


PREFIX_CACHE: list[tuple[str, str, Callable[[ModelReport], float]]] = [
    ("prefix_cache_queries", "Prompt tokens that were looked up.", lambda model: model.prefix_asked),
    ("prefix_cache_hits", "Prompt tokens that were found, and not computed.", lambda model: model.prefix_found),
]
"""Counters since the runner's start, under these names here and at vLLM."""


class ReportGauges(Collector):
    """The pod's state as gauges.

    Args:
        figures: of each model, by name.
    """

    def __init__(self, report: Callable[[], Report], figures: Callable[[], dict[str, ModelFigures]]) -> None:
        self.report = report
        self.figures = figures

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        report = self.report()
        yield from _pod(report)
        for name, text, read in _MODEL_GAUGES:
            family = GaugeMetricFamily(f"tandem_{name}", text, labels=["model"])
            for model in report.models:
                family.add_metric([model.name], float(read(model)))
            yield family
        restarts = CounterMetricFamily("tandem_runner_restarts", "Starts after a runner's death.", labels=["model"])
        for model in report.models:
            restarts.add_metric([model.name], float(model.restarts))
        yield restarts
        for name, text, read in PREFIX_CACHE:
            counter = CounterMetricFamily(f"tandem_{name}", text, labels=["model"])
            for model in report.models:
                counter.add_metric([model.name], float(read(model)))
            yield counter
        yield from _figures(self.figures())


def _pod(report: Report) -> Iterator[Metric]:
    yield GaugeMetricFamily("tandem_ready", "1 once the pod takes requests.", value=float(report.ready))
    yield GaugeMetricFamily("tandem_draining", "1 while the pod shuts down.", value=float(report.draining))
    running, waiting = (sum(getattr(model, name) for model in report.models) for name in ("busy", "queued"))
    yield GaugeMetricFamily("tandem_pod_requests_running", "Over all models.", value=float(running))
    yield GaugeMetricFamily("tandem_pod_requests_waiting", "Over all models.", value=float(waiting))
    memory = GaugeMetricFamily(
        "tandem_device_memory_bytes", "Of a device: total, free, and reserved by runners.", labels=["device", "kind"]
    )
    for number, device in enumerate(report.devices):
        for kind, value in (
            ("total", device.total_bytes),
            ("free", device.free_bytes),
            ("reserved", device.reserved_bytes),
        ):
            memory.add_metric([str(number), kind], float(value))
    yield memory


def _figures(figures: dict[str, ModelFigures]) -> Iterator[Metric]:
    used = GaugeMetricFamily("tandem_kv_cache_usage_ratio", "Context memory in use, 0 to 1.", labels=["model"])
    memory = GaugeMetricFamily(
        "tandem_runner_memory_bytes",
        "Of a runner's processes: rss, pss (shared pages divided among their users), and device.",
        labels=["model", "kind"],
    )
    waiting = GaugeMetricFamily("tandem_requests_without_memory", "Hold a slot, wait for the pool.", labels=["model"])
    evicted = CounterMetricFamily("tandem_prefix_cache_evicted_blocks", "Lost to others' need.", labels=["model"])
    for model, figure in figures.items():
        waiting.add_metric([model], float(figure.waiting))
        evicted.add_metric([model], float(figure.prefix_evicted))
        used.add_metric([model], figure.cache_used)
        for kind, value in (("rss", figure.rss), ("pss", figure.pss), ("device", figure.device)):
            if value is not None:
                memory.add_metric([model, kind], float(value))
    yield used
    yield waiting
    yield evicted
    yield memory
