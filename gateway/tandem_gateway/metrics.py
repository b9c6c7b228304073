"""The gateway's Prometheus metrics, in a registry of their own; served on the internal port."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All counters, gauges and histograms; model labels are only ever those of Models that exist."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        model = ("namespace", "model")
        self.requests = Counter(
            "tandem_gateway_requests",
            "Finished requests; status 499 means that the client left.",
            (*model, "path", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "tandem_gateway_request_seconds",
            "From a request's head to its answer's end.",
            model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_byte_seconds = Histogram(
            "tandem_gateway_answer_head_seconds",
            "From a request's head to the head of the pod's answer.",
            model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.failed_attempts = Counter(
            "tandem_gateway_failed_attempts",
            "Attempts at a pod that came to nothing, by cause.",
            ("fault",),
            registry=registry,
        )
        self.further_copies = Counter(
            "tandem_gateway_further_copies",
            "Requests with which a further copy of a model was opened in another pod of its pool.",
            model,
            registry=registry,
        )
        self.in_progress = Gauge("tandem_gateway_requests_in_progress", "Requests now.", registry=registry)
        self.buffered = Gauge("tandem_gateway_buffered_bytes", "Bytes of bodies held now.", registry=registry)
        self.watch_age = Gauge(
            "tandem_gateway_watch_age_seconds",
            "Seconds since the API server last told anything.",
            ("kind",),
            registry=registry,
        )
        self.objects = Gauge(
            "tandem_gateway_objects", "Objects that the gateway follows.", ("kind",), registry=registry
        )
