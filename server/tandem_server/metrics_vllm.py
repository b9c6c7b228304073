"""The pod's measures under vLLM's names, by which dashboards, autoscalers and inference gateways know them.

Beside the path of every request: the same values as `tandem_...`, renamed at the scrape. `model` becomes `model_name`
and every series has `engine="0"`, as vLLM's own have.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem_server.metrics_report import PREFIX_CACHE, ReportGauges

PREFIX = "vllm:"
ENGINE = "0"
_LABELS = ["model_name", "engine"]


@dataclass(frozen=True)
class Alias:
    """One measure and its other name; `labels` renames labels beyond `model`."""

    measure: Counter | Histogram
    name: str
    labels: dict[str, str] = field(default_factory=dict)

    def families(self) -> Iterator[Metric]:
        """As it is now."""
        renamed = {"model": "model_name", **self.labels}
        for family in self.measure.collect():
            other = Metric(PREFIX + self.name, family.documentation, family.type)
            for sample in family.samples:
                suffix = sample.name.removeprefix(family.name)
                if suffix == "_created":
                    continue
                labels = {renamed.get(label, label): value for label, value in sample.labels.items()}
                other.add_sample(PREFIX + self.name + suffix, {**labels, "engine": ENGINE}, sample.value)
            yield other


class VllmNames(Collector):
    """Everything that has a name there."""

    def __init__(self, gauges: ReportGauges, aliases: Iterable[Alias]) -> None:
        self._gauges = gauges
        self._aliases = list(aliases)

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        models, figures = self._gauges.report().models, self._gauges.figures()
        running = GaugeMetricFamily(PREFIX + "num_requests_running", "Requests that hold a slot.", labels=_LABELS)
        waiting = GaugeMetricFamily(PREFIX + "num_requests_waiting", "Requests that wait for a slot.", labels=_LABELS)
        for model in models:
            running.add_metric([model.name, ENGINE], float(model.busy))
            waiting.add_metric([model.name, ENGINE], float(model.queued))
        yield running
        yield waiting
        used = GaugeMetricFamily(PREFIX + "kv_cache_usage_perc", "Context memory in use, 1 is all.", labels=_LABELS)
        for name, figure in figures.items():
            used.add_metric([name, ENGINE], figure.cache_used)
        yield used
        for name, text, read in PREFIX_CACHE:
            counter = CounterMetricFamily(PREFIX + name, text, labels=_LABELS)
            for model in models:
                counter.add_metric([model.name, ENGINE], float(read(model)))
            yield counter
        for alias in self._aliases:
            yield from alias.families()
