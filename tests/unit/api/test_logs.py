"""Every role's log lines have one form."""

import json
import logging
import re
import sys

from tandem_api.logs import JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.getLogger("tandem").makeRecord(
        "tandem", logging.WARNING, "file.py", 1, "Model %s does not fit.", ("a",), None, extra=extra
    )
    made.created = 1_700_000_000.25
    return made


def test_text_is_a_sentence_behind_a_utc_time() -> None:
    assert TextFormatter().format(record()) == "2023-11-14T22:13:20.250Z WARNING Model a does not fit."


def test_json_carries_the_extra_fields() -> None:
    line = json.loads(JsonFormatter().format(record(object="default/a", generation=3)))
    assert line == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "tandem",
        "message": "Model a does not fit.",
        "object": "default/a",
        "generation": 3,
    }


def test_json_keeps_a_traceback_on_one_line() -> None:
    made = record()
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        made.exc_info = sys.exc_info()
    text = JsonFormatter().format(made)
    assert "\n" not in text
    assert re.search(r"ValueError: broken", json.loads(text)["traceback"])
