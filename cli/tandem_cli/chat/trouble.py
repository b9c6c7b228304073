"""What can go wrong between this program and a server, each as one sentence that says what to do.

Last on the path of a request that failed: `client` raises these, the commands print them and exit with status 1.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tandem_api.dialects import OLLAMA_QUEUE_FULL
from tandem_api.names import REFUSED_DRAINING, REFUSED_HEADER, REFUSED_QUEUE_FULL, REFUSED_QUEUE_TIMEOUT

MAX_SHOWN = 500
"""Characters of a foreign answer that a sentence quotes at most."""


class Trouble(Exception):
    """One sentence for the person at the terminal."""


class NoServer(Trouble):
    """Nothing answers at the address."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(
            f"no server answers at {url} ({cause}); start one with 'tandem serve --model FOLDER', "
            "or name another by --url or TANDEM_URL"
        )


class UnknownModel(Trouble):
    """The server has no such model."""

    def __init__(self, url: str, model: str, there: list[str]) -> None:
        known = f"it has {', '.join(there)}" if there else "it has none"
        super().__init__(f"the server at {url} has no model '{model}'; {known}")


def message_of(body: bytes) -> str:
    """The error text of an answer in any dialect, or the answer itself, shortened."""
    with suppress(ValueError):
        told = json.loads(body)
        error = told.get("error") if isinstance(told, dict) else None
        if isinstance(error, dict):
            error = error.get("message")
        if isinstance(error, str):
            return error
    return body.decode("utf-8", "replace").strip()[:MAX_SHOWN] or "without a word"


def refusal(status: int, headers: Mapping[str, str], body: bytes, url: str, model: str) -> Trouble:
    """The sentence for an answer that is not 200; 404 is left to the caller, who knows which models there are."""
    message = message_of(body)
    if status in (401, 403):
        return Trouble(f"the server at {url} wants a key that allows this ({message}); set TANDEM_API_KEY")
    if status in (429, 503, 529):
        return Trouble(_busy(headers, message, model))
    if 400 <= status < 500:
        return Trouble(f"the server at {url} cannot take this request: {message}")
    return Trouble(f"the server at {url} answered {status}: {message}")


def _busy(headers: Mapping[str, str], message: str, model: str) -> str:
    wait = headers.get("retry-after", "")
    again = f"try again in {wait} s" if wait.isdecimal() else "try again soon"
    refused = headers.get(REFUSED_HEADER, "")
    if refused == REFUSED_QUEUE_FULL or (not refused and message == OLLAMA_QUEUE_FULL):
        return f"the queue of {model} is full; {again}"
    if refused == REFUSED_QUEUE_TIMEOUT:
        return f"{model} was busy for as long as a request may wait; {again}"
    if refused == REFUSED_DRAINING:
        return f"the server is shutting down; {again}"
    return f"{message.rstrip('.')}; {again}"


def broken(url: str, model: str, cause: Any) -> Trouble:
    """The sentence for a connection that ended in the middle of an answer."""
    detail = str(cause) or type(cause).__name__
    return Trouble(
        f"the connection to {url} broke in the middle of {model}'s answer ({detail}); its log says why, try again"
    )
