"""The form of log lines: one sentence a decision, as text or as one JSON object a line."""

import json
import logging
import sys
from datetime import UTC, datetime

from tandem_operator.config import LogConfig, LogFormat

_EXTRAS = ("object", "generation", "reason")


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the object, generation and reason that a decision was about."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: getattr(record, key) for key in _EXTRAS if hasattr(record, key)}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure(config: LogConfig) -> None:
    """Sets up the process's logging; kopf's own lines appear only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    if config.format == LogFormat.JSON:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    for name in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
