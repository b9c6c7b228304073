"""Prometheus metrics of the operator, served by `health` at `/metrics`."""

from prometheus_client import Counter, Gauge, Histogram

API_REQUESTS = Counter("tandem_operator_api_requests", "Requests to the Kubernetes API.", ["method", "code"])
RECONCILES = Counter("tandem_operator_reconciles", "Reconciles of Models and ModelPools.", ["result"])
RECONCILE_SECONDS = Histogram("tandem_operator_reconcile_seconds", "Duration of one reconcile.")
WRITES = Counter("tandem_operator_writes", "Objects written to the Kubernetes API.", ["kind", "action"])
STATUS_WRITES = Counter("tandem_operator_status_writes", "Writes of the status of Models and ModelPools.", ["kind"])
RELISTS = Counter("tandem_operator_relists", "Relists of all kinds.", ["result"])
REPAIRS = Counter("tandem_operator_relist_repairs", "Objects that a relist had to correct in the cache.", ["kind"])
RELIST_AGE = Gauge("tandem_operator_relist_age_seconds", "Time since the last complete relist.")
QUEUE_DEPTH = Gauge("tandem_operator_queue_depth", "Models and ModelPools that wait to be reconciled.")
QUEUE_OLDEST = Gauge(
    "tandem_operator_queue_oldest_seconds", "How long the oldest due key waits, or the longest reconcile runs."
)
REPORT_POLLS = Counter("tandem_operator_report_polls", "Polls of pods' reports.", ["result"])
MODELS = Gauge("tandem_operator_models", "Models and ModelPools that exist.", ["kind"])
LEADER = Gauge("tandem_operator_leader", "1 while this process leads, 0 while it stands by.")
LEASE_TRANSITIONS = Gauge("tandem_operator_lease_transitions", "How often the Lease has changed its holder.")
