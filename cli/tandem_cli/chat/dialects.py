"""The two APIs through which a chat goes: what is asked, and how the streamed answer is read.

On the path of every answer, between `client` (HTTP) and the terminal. Pure but for the lines it is given.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tandem_cli.chat.settings import Value, ollama_options, openai_fields
from tandem_cli.chat.trouble import Trouble, message_of

Message = dict[str, str]


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last has `finish`, and the counts where the server tells them."""

    text: str = ""
    finish: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None


class ChatDialect(Protocol):
    """One API."""

    path: str

    def body(self, model: str, messages: list[Message], settings: dict[str, Value]) -> dict[str, Any]:
        """The request. Raises ValueError for a setting that cannot be said."""

    def pieces(self, lines: Iterable[str]) -> Iterator[Piece]:
        """The answer from its lines. Raises Trouble for an error that the server tells midway."""


class Ollama:
    """POST /api/chat, answered by JSON lines."""

    path = "/api/chat"

    def body(self, model: str, messages: list[Message], settings: dict[str, Value]) -> dict[str, Any]:
        """See ChatDialect."""
        return {"model": model, "messages": messages, "stream": True, "options": ollama_options(settings)}

    def pieces(self, lines: Iterable[str]) -> Iterator[Piece]:
        """See ChatDialect."""
        for line in lines:
            if not line.strip():
                continue  # a gateway that holds a request sends spaces meanwhile
            told = _object(line)
            text = _dict(told.get("message")).get("content") or ""
            if told.get("done"):
                reason = told.get("done_reason") or "stop"
                yield Piece(text, reason, told.get("prompt_eval_count"), told.get("eval_count"))
                return
            yield Piece(text)


class OpenAI:
    """POST /v1/chat/completions, answered by server-sent events."""

    path = "/v1/chat/completions"

    def body(self, model: str, messages: list[Message], settings: dict[str, Value]) -> dict[str, Any]:
        """See ChatDialect."""
        asked = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        return {**asked, **openai_fields(settings)}

    def pieces(self, lines: Iterable[str]) -> Iterator[Piece]:
        """See ChatDialect."""
        finish: str | None = None
        usage: dict[str, Any] = {}
        for line in lines:
            if not line.startswith("data:"):
                continue  # blank lines between events, comments while a request is held
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                yield Piece("", finish or "stop", usage.get("prompt_tokens"), usage.get("completion_tokens"))
                return
            told = _object(data)
            usage = _dict(told.get("usage")) or usage
            for choice in told.get("choices") or []:
                finish = choice.get("finish_reason") or finish
                text = _dict(choice.get("delta")).get("content") or ""
                if text:
                    yield Piece(text)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _object(line: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        raise Trouble(f"the server sent a line that is no JSON: {line[:80]!r}") from None
    if not isinstance(told, dict):
        raise Trouble(f"the server sent a line that is no JSON object: {line[:80]!r}")
    if told.get("error"):
        raise Trouble(f"the answer ended with an error: {message_of(line.encode())}")
    return told
