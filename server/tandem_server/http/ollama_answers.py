"""Answers of Ollama's API as JSON lines and objects.

Last on the path of an Ollama request. Durations are in nanoseconds.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tandem_api.dialects import ApiError, Dialect, answer
from tandem_server.chat.tokenizer import Tokenizer
from tandem_server.generation import Delta, Logprob, Usage
from tandem_server.http.exchange import encode_json
from tandem_server.residency.host import ModelHost

FOREVER = "2318-01-01T00:00:00Z"
"""What Ollama's clients print as `Forever`: a time far away."""
NANO = 1_000_000_000


def now_text() -> str:
    """The time as Ollama writes it: UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def line(value: dict[str, Any]) -> bytes:
    """One line of the stream."""
    return encode_json(value) + b"\n"


def error_line(error: ApiError) -> bytes:
    """An error midway."""
    return line(answer(error, Dialect.OLLAMA).body)


def _nanoseconds(begin: float, end: float) -> int:
    return max(0, int((end - begin) * NANO)) if begin and end else 0


@dataclass
class Shape:
    """How one request's answer looks: /api/chat or /api/generate.

    Attributes:
        model: the name that the request used.
        logprobs: alternatives to tell; None for no logprobs.
        with_context: whether the last line carries the conversation's token ids.
    """

    chat: bool
    model: str
    host: ModelHost
    logprobs: int | None = None
    with_context: bool = False

    def piece(self, text: str, rows: list[Logprob]) -> dict[str, Any]:
        """One part of the answer."""
        value: dict[str, Any] = {"model": self.model, "created_at": now_text(), **self.text(text), "done": False}
        tokenizer = self.host.checkpoint.tokenizer if self.host.checkpoint else None
        if self.logprobs is not None and tokenizer is not None and rows:
            value["logprobs"] = [self._logprob(tokenizer, row) for row in rows]
        return value

    def text(self, text: str) -> dict[str, Any]:
        """The field that holds the text."""
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}

    def last(self, text: str, reason: str, usage: Usage) -> dict[str, Any]:
        """The final object with counts and times."""
        value = {"model": self.model, "created_at": now_text(), **self.text(text), "done": True, "done_reason": reason}
        if self.with_context:
            value["context"] = usage.prompt + usage.tokens
        value |= {
            "total_duration": _nanoseconds(usage.arrived, time.monotonic()),
            "load_duration": _nanoseconds(usage.arrived, usage.sent),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(usage.sent, usage.first),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(usage.first, usage.last),
        }
        return value

    def nothing(self, reason: str) -> dict[str, Any]:
        """The answer to a request without a prompt."""
        return {"model": self.model, "created_at": now_text(), **self.text(""), "done": True, "done_reason": reason}

    def _logprob(self, tokenizer: Tokenizer, row: Logprob) -> dict[str, Any]:
        def entry(token: int, value: float) -> dict[str, Any]:
            return {"token": tokenizer.text_of(token), "logprob": value, "bytes": list(tokenizer.bytes_of(token))}

        made = entry(*row[0])
        if self.logprobs:
            made["top_logprobs"] = [entry(*pair) for pair in row[1 : self.logprobs + 1]]
        return made


async def streamed(pieces: AsyncGenerator[Delta, None], shape: Shape, usage: Usage) -> AsyncGenerator[bytes, None]:
    """The answer as lines; the last has `done`."""
    async with aclosing(pieces):
        async for piece in pieces:
            if piece.text or piece.logprobs:
                yield line(shape.piece(piece.text, piece.logprobs))
            if piece.finish is not None:
                yield line(shape.last("", piece.finish, usage))


async def whole(pieces: AsyncGenerator[Delta, None], shape: Shape, usage: Usage) -> dict[str, Any]:
    """The whole answer as one object."""
    texts: list[str] = []
    rows: list[Logprob] = []
    finish = "stop"
    async with aclosing(pieces):
        async for piece in pieces:
            texts.append(piece.text)
            rows += piece.logprobs
            finish = piece.finish or finish
    text = "".join(texts)
    told = shape.piece(text, rows).get("logprobs")
    value = shape.last(text, finish, usage)
    return value if told is None else {**value, "logprobs": told}
