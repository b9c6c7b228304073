"""How log lines look: text for people, or one JSON object a line for collectors."""

import json
import logging
import sys
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields that the record brings."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(log_format: str, level: str) -> None:
    """Sends every logger's lines to standard error in `log_format` (text or json)."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    text.default_msec_format = "%s.%03d"
    handler.setFormatter(JsonLines() if log_format == "json" else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The HTTP server tells of its own life at info; the gateway does that in its own words.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
