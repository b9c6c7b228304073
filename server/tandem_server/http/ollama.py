"""Ollama's API: /api/chat, /api/generate, /api/embed and /api/embeddings.

A router of the dialect, as `openai` is; the routes that only tell (`/api/ps`, `/api/tags`, ...) are in `ollama_info`.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from tandem_api import names
from tandem_api.dialects import Dialect
from tandem_server.chat.checkpoint import Checkpoint, check_tokens
from tandem_server.chat.grammar import json_grammar
from tandem_server.chat.prompt import chat_prompt, fitting_chat_prompt
from tandem_server.embedding import EmbedAsk, embed
from tandem_server.engine.wire import Sampling
from tandem_server.generation import Ask, Usage, enter, generate, model_headers
from tandem_server.http.exchange import JsonAnswer, StreamAnswer, read_object, validated
from tandem_server.http.fields import max_tokens_for, sampling_for
from tandem_server.http.ollama_answers import NANO, Shape, error_line, line, streamed, whole
from tandem_server.http.ollama_types import (
    ChatBody,
    EmbedBody,
    GenerateBody,
    Generating,
    OldEmbedBody,
    keep_alive_seconds,
)
from tandem_server.pod import Pod
from tandem_server.residency.holds import Wish
from tandem_server.residency.host import ModelHost

DEFAULTS = Sampling(temperature=0.8, top_k=40, top_p=0.9)
NDJSON = "application/x-ndjson"
HELD = b" "
"""Before the first object of a stream; parsers of JSON lines skip it."""
_POLL_SECONDS = 0.05


def _ask(
    host: ModelHost, body: Generating, prompt: Callable[[Checkpoint, int], list[int]], characters: int, wish: Wish
) -> Ask:
    options = body.options

    def sampling(checkpoint: Checkpoint) -> Sampling:
        asked = {**options.sampling(), "logprobs": body.logprob_count}
        return sampling_for(asked, host.entry.defaults, checkpoint, DEFAULTS)

    return Ask(
        dialect=Dialect.OLLAMA.value,
        prompt=prompt,
        sampling=sampling,
        seeded=options.seeded,
        characters=characters,
        max_tokens=max_tokens_for(options.limit, host.entry.defaults),
        stop=tuple(options.stop),
        context_cap=options.num_ctx,
        keep=body.kept,
        wish=wish,
    )


def _answer(pod: Pod, host: ModelHost, body: Generating, ask: Ask, shape: Shape) -> Response:
    usage = Usage()
    if ask.wish.owner and ask.context_cap is not None:
        host.widen(ask.context_cap)
    pieces = generate(host, ask, pod.metrics, usage)

    def headers() -> dict[str, str]:
        return {**model_headers(host), **_kept(ask.wish, usage.kept_seconds)}

    if body.streamed:
        return StreamAnswer(streamed(pieces, shape, usage), NDJSON, headers, error_line, lambda: HELD)
    return JsonAnswer(whole(pieces, shape, usage), headers)


def _kept(wish: Wish, seconds: float | None) -> dict[str, str]:
    """Tells one who wished something for how long the model is really kept."""
    if wish.seconds is None or seconds is None:
        return {}
    return {names.KEEP_ALIVE_HEADER: "-1" if seconds == math.inf else f"{seconds:g}"}


async def _loaded(host: ModelHost, wish: Wish) -> float:
    """Returns once the model is loaded, with the seconds for which it is kept now.

    Raises ApiError when it cannot be loaded, or not within the queue's bounds. Who waits for a load stands in the same
    line as all others, so that their number is bounded too.
    """
    if host.loaded is not None:
        seconds = host.stay.used(wish)
        host.stay.ended(wish)
        return seconds
    access, seconds = enter(host, wish)
    granted = asyncio.ensure_future(access.granted())
    try:
        while host.loaded is None and not granted.done():
            await asyncio.wait({granted}, timeout=_POLL_SECONDS)
        if granted.done():
            granted.result()
    finally:
        granted.cancel()
        access.leave()
        host.stay.ended(wish)
        await asyncio.gather(granted, return_exceptions=True)
    return seconds


def _load_only(host: ModelHost, body: Generating, shape: Shape, wish: Wish) -> Response:
    """Loads the model, or with a keep-alive of 0 gives up what the caller holds of it."""
    kept: list[float] = []

    def headers() -> dict[str, str]:
        return {**model_headers(host), **_kept(wish, kept[0] if kept else None)}

    async def work() -> dict[str, Any]:
        if body.unloads:
            kept.append(host.stay.used(wish))
            return shape.nothing("unload")
        kept.append(await _loaded(host, wish))
        return shape.nothing("load")

    async def lines() -> Any:
        yield line(await work())

    if body.streamed:
        return StreamAnswer(lines(), NDJSON, headers, error_line, lambda: HELD)
    return JsonAnswer(work(), headers)


async def _grammar(body: Generating) -> str:
    schema = body.schema_wanted()
    return "" if schema is None else await json_grammar(schema, "format")


def _chat_ask(host: ModelHost, body: ChatBody, wish: Wish) -> Ask:
    messages = [message.plain(index) for index, message in enumerate(body.messages)]

    def prompt(checkpoint: Checkpoint, room: int) -> list[int]:
        if body.truncate is False:
            return chat_prompt(checkpoint, messages)
        return fitting_chat_prompt(checkpoint, messages, room)

    return _ask(host, body, prompt, sum(len(message["content"]) for message in messages), wish)


def _generate_ask(host: ModelHost, body: GenerateBody, wish: Wish) -> Ask:
    def prompt(checkpoint: Checkpoint, room: int) -> list[int]:
        tokenizer = checkpoint.tokenizer
        before = body.context or []
        check_tokens(before, checkpoint, "context")
        if body.raw or checkpoint.template is None:
            text = f"{body.system}\n{body.prompt}" if body.system else body.prompt
            return before + tokenizer.encode_raw(text, add_special=not before)
        messages = [{"role": "system", "content": body.system}] if body.system else []
        return before + chat_prompt(checkpoint, [*messages, {"role": "user", "content": body.prompt}])

    return _ask(host, body, prompt, len(body.prompt) + len(body.system or ""), wish)


def ollama_router(pod: Pod) -> APIRouter:
    """The routes."""
    router = APIRouter()
    limit = pod.settings.max_body_bytes

    @router.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = validated(ChatBody, await read_object(request, limit))
        host = pod.serving(request, body.model)
        body.refuse_unsupported()
        wish = pod.wish(request, keep_alive_seconds(body.keep_alive))
        shape = Shape(True, body.model, host, body.logprob_count)
        if not body.messages:
            return _load_only(host, body, shape, wish)
        return _answer(pod, host, body, replace(_chat_ask(host, body, wish), grammar=await _grammar(body)), shape)

    @router.post("/api/generate")
    async def generate_text(request: Request) -> Response:
        body = validated(GenerateBody, await read_object(request, limit))
        host = pod.serving(request, body.model)
        body.refuse_unsupported()
        wish = pod.wish(request, keep_alive_seconds(body.keep_alive))
        shape = Shape(False, body.model, host, body.logprob_count, with_context=not body.raw)
        if not body.prompt:
            return _load_only(host, body, shape, wish)
        return _answer(pod, host, body, replace(_generate_ask(host, body, wish), grammar=await _grammar(body)), shape)

    @router.post("/api/embed")
    async def embed_texts(request: Request) -> Response:
        body = validated(EmbedBody, await read_object(request, limit))
        wish = pod.wish(request, keep_alive_seconds(body.keep_alive))
        host = pod.serving(request, body.model)
        ask = EmbedAsk(Dialect.OLLAMA.value, body.texts(), body.truncate is not False, body.dimensions, wish)
        return JsonAnswer(_embed(pod, host, body.model, ask), lambda: model_headers(host))

    @router.post("/api/embeddings")
    async def embed_text(request: Request) -> Response:
        body = validated(OldEmbedBody, await read_object(request, limit))
        wish = pod.wish(request, keep_alive_seconds(body.keep_alive))
        host = pod.serving(request, body.model)
        ask = EmbedAsk(Dialect.OLLAMA.value, [body.prompt], truncate=True, wish=wish)

        async def work() -> dict[str, Any]:
            made = await embed(host, ask, pod.metrics)
            return {"embedding": made.vectors[0].tolist()}

        return JsonAnswer(work(), lambda: model_headers(host))

    return router


async def _embed(pod: Pod, host: ModelHost, model: str, ask: EmbedAsk) -> dict[str, Any]:
    began = time.monotonic()
    if not ask.inputs:
        await _loaded(host, ask.wish)
        return {"model": model, "embeddings": []}
    work: Awaitable[Any] = embed(host, ask, pod.metrics)
    made = await work
    return {
        "model": model,
        "embeddings": [vector.tolist() for vector in made.vectors],
        "total_duration": int((time.monotonic() - began) * NANO),
        "load_duration": int((made.started - began) * NANO),
        "prompt_eval_count": made.prompt_tokens,
    }
