"""Answers of OpenAI's API as JSON and as server-sent events.

Last on the path of an OpenAI request.
"""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tandem_api.dialects import ApiError, openai_error
from tandem_server.chat.tokenizer import Tokenizer
from tandem_server.generation import Delta, Logprob, Usage
from tandem_server.http.exchange import encode_json

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(value) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """An error midway: OpenAI's clients raise on an event that has `error`."""
    return event({"error": openai_error(error)})


def usage_object(usage: Usage) -> dict[str, Any]:
    """Counts of one request."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {"token": tokenizer.text_of(token), "logprob": logprob, "bytes": list(tokenizer.bytes_of(token))}


def chat_logprobs(tokenizer: Tokenizer, rows: list[Logprob], count: int) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    content = []
    for row in rows:
        entry = _entry(tokenizer, *row[0])
        entry["top_logprobs"] = [_entry(tokenizer, *pair) for pair in row[1 : count + 1]]
        content.append(entry)
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, rows: list[Logprob], count: int, offset: int) -> dict[str, Any]:
    """The `logprobs` of a text choice; `offset` is where its text begins in the answer, in characters."""
    tokens = [tokenizer.text_of(row[0][0]) for row in rows]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    top = [{tokenizer.text_of(token): value for token, value in row[1 : count + 1]} for row in rows]
    return {
        "tokens": tokens,
        "token_logprobs": [row[0][1] for row in rows],
        "top_logprobs": top if count else None,
        "text_offset": offsets,
    }


@dataclass
class Shape:
    """How one request's answer looks: chat or text completion.

    Attributes:
        logprobs: alternatives to tell; None for no logprobs.
    """

    chat: bool
    model: str
    logprobs: int | None
    with_usage: bool
    tokenizer: Tokenizer | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """What every object and chunk has around its choices."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def told_logprobs(self, rows: list[Logprob], offset: int) -> dict[str, Any] | None:
        """The choice's `logprobs`, or None."""
        if self.logprobs is None or self.tokenizer is None:
            return None
        if self.chat:
            return chat_logprobs(self.tokenizer, rows, self.logprobs)
        return text_logprobs(self.tokenizer, rows, self.logprobs, offset)

    def chunk(
        self, text: str | None, rows: list[Logprob], offset: int, finish: str | None, role: bool = False
    ) -> bytes:
        """One event of the stream."""
        choice: dict[str, Any] = {"index": 0}
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if role else {}
            if text is not None:
                delta["content"] = text
            choice["delta"] = delta
        else:
            choice["text"] = text or ""
        choice["logprobs"] = self.told_logprobs(rows, offset) if rows else None
        choice["finish_reason"] = finish
        value = self.envelope("chat.completion.chunk" if self.chat else "text_completion", [choice])
        if self.with_usage:
            value["usage"] = None
        return event(value)


async def whole(pieces: AsyncGenerator[Delta, None], shape: Shape, usage: Usage) -> dict[str, Any]:
    """The whole answer as one object."""
    texts: list[str] = []
    rows: list[Logprob] = []
    finish: str | None = None
    async with aclosing(pieces):
        async for piece in pieces:
            texts.append(piece.text)
            rows += piece.logprobs
            finish = piece.finish or finish
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": shape.told_logprobs(rows, 0)}
    text = "".join(texts)
    if shape.chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    answer = shape.envelope("chat.completion" if shape.chat else "text_completion", [choice])
    answer["usage"] = usage_object(usage)
    return answer


async def streamed(pieces: AsyncGenerator[Delta, None], shape: Shape, usage: Usage) -> AsyncGenerator[bytes, None]:
    """The answer as events: role, pieces, finish, usage if asked for, [DONE]."""
    offset = 0
    begun = False
    async with aclosing(pieces):
        async for piece in pieces:
            if not begun:
                begun = True
                if shape.chat:
                    yield shape.chunk("", [], 0, None, role=True)
            if piece.text or piece.logprobs:
                yield shape.chunk(piece.text, piece.logprobs, offset, None)
                offset += len(piece.text)
            if piece.finish is not None:
                yield shape.chunk(None, [], offset, piece.finish)
    if shape.with_usage:
        yield event(
            {
                **shape.envelope("chat.completion.chunk" if shape.chat else "text_completion", []),
                "usage": usage_object(usage),
            }
        )
    yield DONE
