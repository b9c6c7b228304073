"""One embedding request from admission to its vectors, the same for every dialect.

On the path of a request between a dialect's router and the runner, through the same line as generations.
"""

import asyncio
import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from tandem_api.dialects import ApiError
from tandem_server.chat.checkpoint import Checkpoint, check_tokens
from tandem_server.engine.wire import Loaded
from tandem_server.generation import enter, gone, need
from tandem_server.metrics import Metrics
from tandem_server.residency.client import RunnerGone, Stream
from tandem_server.residency.holds import NO_WISH, Wish
from tandem_server.residency.host import ModelHost

MAX_INPUTS = 2048
IN_THREAD = 16_384


@dataclass(frozen=True)
class EmbedAsk:
    """Texts or token ids to embed; `truncate` cuts what is too long instead of refusing it."""

    dialect: str
    inputs: Sequence[str | list[int]]
    truncate: bool
    dimensions: int | None = None
    wish: Wish = NO_WISH


@dataclass(frozen=True)
class Embeddings:
    """One L2-normalised vector an input, float32, and what was read."""

    vectors: "list[array[float]]"
    prompt_tokens: int
    started: float


async def embed(host: ModelHost, ask: EmbedAsk, metrics: Metrics) -> Embeddings:
    """The vectors. Raises ApiError."""
    arrived = time.monotonic()
    access, _ = enter(host, ask.wish)
    stream: Stream | None = None
    outcome, tokens = "error", 0
    try:
        ids = await _encode(host, ask) if host.loaded is not None else None
        await access.granted()
        started = time.monotonic()
        need(host, "Embed")
        ids = ids if ids is not None else await _encode(host, ask)
        tokens = sum(map(len, ids))
        if host.runner is None:
            raise RunnerGone(host.last_error or "the runner is gone")
        stream = host.runner.client.embed(ids, access.leave)
        answer = await stream.embedded()
        if answer.error is not None:
            raise ApiError(500, f"the model failed on this request: {answer.error}", code="engine_error")
        outcome = "ok"
        return Embeddings(_vectors(answer.vectors, answer.size, ask.dimensions), tokens, started)
    except RunnerGone as error:
        raise gone(error) from error
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except ApiError as error:
        outcome = error.refused or "error"
        raise
    finally:
        if stream is None:
            access.leave()
        else:
            stream.abort()
        host.stay.ended(ask.wish)
        metrics.embedded(host.entry.name, ask.dialect, outcome, tokens, time.monotonic() - arrived)


async def _encode(host: ModelHost, ask: EmbedAsk) -> list[list[int]]:
    loaded, checkpoint = need(host, "Embed")
    if ask.dimensions is not None and ask.dimensions > loaded.embedding_size:
        raise ApiError(
            400,
            f"dimensions must be at most {loaded.embedding_size}, the size of this model's vectors",
            param="dimensions",
        )
    if sum(map(len, ask.inputs)) > IN_THREAD:
        return await asyncio.to_thread(_encode_all, ask, loaded, checkpoint)
    return _encode_all(ask, loaded, checkpoint)


def _encode_all(ask: EmbedAsk, loaded: Loaded, checkpoint: Checkpoint) -> list[list[int]]:
    limit = min(loaded.context, checkpoint.input_limit or loaded.context)
    out: list[list[int]] = []
    for index, text in enumerate(ask.inputs):
        if isinstance(text, str):
            ids, full = checkpoint.tokenizer.encode_input(checkpoint.input_prompt + text, limit)
        else:
            check_tokens(text, checkpoint, "input")
            ids, full = text[:limit], len(text)
        if full > limit and not ask.truncate:
            raise ApiError(
                400,
                f"the input length exceeds the context length: input {index} has {full} tokens, the limit is {limit}",
                code="context_length_exceeded",
                param="input",
            )
        out.append(ids)
    return out


def _vectors(data: bytes, size: int, dimensions: int | None) -> "list[array[float]]":
    flat = array("f")
    flat.frombytes(data)
    vectors = [flat[start : start + size] for start in range(0, len(flat), size)]
    return vectors if dimensions is None else [_shortened(vector, dimensions) for vector in vectors]


def _shortened(vector: "array[float]", dimensions: int) -> "array[float]":
    """The first `dimensions` numbers, L2-normalised again."""
    part = vector[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in part)) or 1.0
    return array("f", [value / length for value in part])
