"""OpenAI's API: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models.

A router of the dialect: reads and checks the request, says what is wanted in the terms of `generation` and
`embedding`, and shapes what comes back.
"""

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from tandem_api.dialects import Dialect
from tandem_server.chat.bad_words import bad_words
from tandem_server.chat.checkpoint import Checkpoint, check_tokens
from tandem_server.chat.grammar import json_grammar
from tandem_server.chat.prompt import chat_prompt
from tandem_server.embedding import EmbedAsk, Embeddings, embed
from tandem_server.engine.wire import Sampling
from tandem_server.generation import Ask, Usage, generate, held_text, model_headers
from tandem_server.http.exchange import JsonAnswer, StreamAnswer, read_object, validated
from tandem_server.http.fields import max_tokens_for, sampling_for
from tandem_server.http.openai_answers import Shape, error_event, streamed, whole
from tandem_server.http.openai_types import ChatBody, CompletionBody, EmbeddingsBody, Sampled
from tandem_server.pod import Pod
from tandem_server.residency.holds import Wish
from tandem_server.residency.host import ModelHost

DEFAULTS = Sampling()
OWNER = "tandem"
COMPLETION_TOKENS = 16
"""OpenAI's own default for /v1/completions."""


def _ask(
    host: ModelHost,
    body: Sampled,
    logprobs: int | None,
    limit: int | None,
    prompt: Callable[[Checkpoint, int], list[int]],
    characters: int,
    wish: Wish,
    grammar: str = "",
) -> Ask:
    biases = body.biases()

    def sampling(checkpoint: Checkpoint) -> Sampling:
        more = {"logprobs": logprobs, "logit_bias": biases, "bad_words": bad_words(body.bad_words or [], checkpoint)}
        return sampling_for({**body.sampling(), **more}, host.entry.defaults, checkpoint, DEFAULTS)

    def checked(checkpoint: Checkpoint, room: int) -> list[int]:
        check_tokens(body.stop_token_ids or [], checkpoint, "stop_token_ids")
        check_tokens(list(biases), checkpoint, "logit_bias")
        bad_words(body.bad_words or [], checkpoint)
        return prompt(checkpoint, room)

    return Ask(
        dialect=Dialect.OPENAI.value,
        prompt=checked,
        sampling=sampling,
        seeded=body.seed is not None,
        characters=characters,
        max_tokens=max_tokens_for(limit, host.entry.defaults),
        stop=tuple(body.stop),
        stop_tokens=tuple(body.stop_token_ids or ()),
        ignore_end=bool(body.ignore_eos),
        salt=body.cache_salt or "",
        min_tokens=body.min_tokens or 0,
        grammar=grammar,
        wish=wish,
    )


def _answer(pod: Pod, host: ModelHost, body: Sampled, ask: Ask, chat: bool, logprobs: int | None) -> Response:
    usage = Usage()
    shape = Shape(chat, body.model, logprobs, body.usage_streamed)
    inner = generate(host, ask, pod.metrics, usage)

    def headers() -> dict[str, str]:
        return model_headers(host)

    async def pieces() -> Any:
        try:
            async for piece in inner:
                shape.tokenizer = host.checkpoint.tokenizer if host.checkpoint else None
                yield piece
        finally:
            await inner.aclose()

    if body.streamed:
        held = partial(held_event, host)
        return StreamAnswer(streamed(pieces(), shape, usage), "text/event-stream", headers, error_event, held)
    return JsonAnswer(whole(pieces(), shape, usage), headers)


def held_event(host: ModelHost) -> bytes:
    """A comment, which readers of events skip."""
    return f": {held_text(host)}\n\n".encode()


def _embedding_list(model: str, made: Embeddings, base64_wanted: bool) -> dict[str, Any]:
    data = []
    for index, vector in enumerate(made.vectors):
        value: Any = base64.b64encode(vector.tobytes()).decode() if base64_wanted else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def _model_object(pod: Pod, host: ModelHost) -> dict[str, Any]:
    context = host.loaded.context if host.loaded else None
    return {
        "id": host.entry.name,
        "object": "model",
        "created": pod.started,
        "owned_by": OWNER,
        "max_model_len": context,
        "tandem": {
            "state": host.state.value,
            "context_length": context,
            "context_reason": host.loaded.context_reason if host.loaded else "",
            "aliases": host.entry.aliases,
        },
    }


def openai_router(pod: Pod) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = validated(ChatBody, await read_object(request, pod.settings.max_body_bytes))
        host = pod.serving(request, body.model)
        body.refuse_unsupported()
        messages = [message.plain(index) for index, message in enumerate(body.messages)]
        characters = sum(len(message["content"]) for message in messages)
        schema = body.schema_wanted()
        grammar = "" if schema is None else await json_grammar(schema, "response_format")

        def prompt(found: Checkpoint, room: int) -> list[int]:
            return chat_prompt(found, messages)

        ask = _ask(host, body, body.logprob_count, body.limit, prompt, characters, pod.wish(request), grammar)
        return _answer(pod, host, body, ask, chat=True, logprobs=body.logprob_count)

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = validated(CompletionBody, await read_object(request, pod.settings.max_body_bytes))
        host = pod.serving(request, body.model)
        body.refuse_unsupported()
        prompt = body.one_prompt()

        def ids(checkpoint: Checkpoint, room: int) -> list[int]:
            if isinstance(prompt, str):
                return checkpoint.tokenizer.encode_raw(prompt)
            check_tokens(prompt, checkpoint, "prompt")
            return prompt

        limit = max_tokens_for(body.max_tokens, host.entry.defaults)
        limit = COMPLETION_TOKENS if limit is None else limit
        ask = _ask(host, body, body.logprobs, limit, ids, len(prompt), pod.wish(request))
        return _answer(pod, host, body, ask, chat=False, logprobs=body.logprobs)

    @router.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = validated(EmbeddingsBody, await read_object(request, pod.settings.max_body_bytes))
        host = pod.serving(request, body.model)
        ask = EmbedAsk(Dialect.OPENAI.value, body.texts(), False, body.dimensions, pod.wish(request))

        async def work() -> dict[str, Any]:
            made = await embed(host, ask, pod.metrics)
            return _embedding_list(body.model, made, body.encoding_format == "base64")

        return JsonAnswer(work(), lambda: model_headers(host))

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_object(pod, host) for host in pod.manager.hosts.values()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        return _model_object(pod, pod.serving(request, name))

    return router
