"""One line for every finished request, and its counts: what an operator at night reads first."""

import logging
import time
from dataclasses import dataclass, field

from tandem_api.dialects import Dialect, dialect_of
from tandem_gateway.metrics import Metrics

logger = logging.getLogger("tandem_gateway.access")

CLIENT_GONE = 499
"""Status in logs and metrics of a request whose client left before the answer's end."""


@dataclass(slots=True)
class Record:
    """What became of one request; filled in along its path."""

    method: str
    path: str
    began: float = field(default_factory=time.monotonic)
    namespace: str = ""
    model: str = ""
    asked: str = ""
    """The model's name as the client wrote it."""
    pod: str = ""
    status: int = 0
    sent_bytes: int = 0
    replays: int = 0
    note: str = ""
    """Why it ended as it did, where the status does not say it."""

    @property
    def dialect(self) -> Dialect:
        """The dialect that the client speaks."""
        return dialect_of(self.path)

    def finish(self, metrics: Metrics) -> None:
        """Writes the line and counts the request."""
        seconds = time.monotonic() - self.began
        metrics.requests.labels(self.namespace, self.model, self.path, str(self.status)).inc()
        metrics.seconds.labels(self.namespace, self.model).observe(seconds)
        logger.info(self.sentence(seconds), extra=self._fields(seconds))

    def sentence(self, seconds: float) -> str:
        """The request in one line."""
        model = (
            f"{self.namespace}/{self.model}" if self.model else (f"unknown {self.asked!r}" if self.asked else "none")
        )
        who = f"pod {self.pod} answered" if self.pod else "the gateway answered"
        ending = f" after {self.replays} failed attempt{'s' if self.replays > 1 else ''}" if self.replays else ""
        note = f": {self.note}" if self.note else ""
        return (
            f"{self.method} {self.path}, model {model}: {who} {self.status}, {self.sent_bytes} bytes in "
            f"{seconds:.3f} s{ending}{note}"
        )

    def _fields(self, seconds: float) -> dict[str, object]:
        return {
            "method": self.method,
            "path": self.path,
            "namespace": self.namespace,
            "model": self.model,
            "pod": self.pod,
            "status": self.status,
            "bytes": self.sent_bytes,
            "seconds": round(seconds, 6),
            "replays": self.replays,
        }
