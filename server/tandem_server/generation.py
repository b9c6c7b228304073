"""One generation from admission to its last piece of text, the same for every dialect.

On the path of a request between a dialect's router and the runner: takes a place in line at once, makes the prompt
while it waits, runs, turns tokens into text, watches for stop strings. Leaving the iterator early aborts the request.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec.structs import replace

from tandem_api import names
from tandem_api.dialects import ApiError
from tandem_api.load import Load
from tandem_server.admission import Pass
from tandem_server.chat.checkpoint import Checkpoint
from tandem_server.chat.stops import StopStrings
from tandem_server.engine.wire import Add, Loaded, Sampling, TokenRow
from tandem_server.metrics import Meter, Metrics
from tandem_server.residency.client import RunnerGone, Stream
from tandem_server.residency.holds import NO_WISH, Wish
from tandem_server.residency.host import ModelHost
from tandem_server.residency.progress import progress_text

IN_THREAD = 16_384
"""Prompts of more characters are made in a thread, so that other requests' tokens keep flowing."""
SHIFTED_CONTEXTS = 10
Logprob = list[tuple[int, float]]
"""The chosen token's pair first, then the most likely ones."""


@dataclass(frozen=True)
class Ask:
    """What a dialect wants generated.

    Attributes:
        prompt: makes the prompt's token ids for (checkpoint, room in tokens); raises ApiError.
        sampling: how tokens are chosen, given the checkpoint's proposals; the seed is drawn here if it is None.
        characters: roughly how long the prompt's text is, to keep long work off the event loop.
        max_tokens: None for as many as fit.
        context_cap: the request's own limit on prompt and answer together, if it set one.
        keep: tokens of the prompt that stay when the context is full and the answer goes on; -1 for all of them, None
            to end the answer there.
        salt: requests share cached prompts only under the same one.
        grammar: what the answer must look like, for the runner; empty for anything.
        wish: who asks, and for how long the model is to be kept.
        min_tokens: so many tokens come before a stop string counts; the runner holds stop tokens back as long.
    """

    dialect: str
    prompt: Callable[[Checkpoint, int], list[int]]
    sampling: Callable[[Checkpoint], Sampling]
    seeded: bool
    characters: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_end: bool = False
    context_cap: int | None = None
    keep: int | None = None
    salt: str = ""
    min_tokens: int = 0
    grammar: str = ""
    wish: Wish = NO_WISH


@dataclass
class Usage:
    """Counts and times of one generation; times are `time.monotonic` seconds, 0.0 until they happened.

    Attributes:
        started: when a slot was held; before it the request waited, for a load or for others.
        sent: when the runner was given the prompt.
        first: when the first row came from the runner, however late the client takes it.
        last: when the latest one came.
        kept_seconds: for how long the request keeps the model when it ends; None until it was admitted.
    """

    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    kept_seconds: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Delta:
    """A piece of the answer. `finish` is `stop` or `length` in the last one, None before."""

    text: str
    tokens: list[int]
    logprobs: list[Logprob] = field(default_factory=list)
    finish: str | None = None


def model_headers(host: ModelHost) -> dict[str, str]:
    """What every answer of a model carries: its real context length and its load."""
    line = host.admission.line
    headers = {names.LOAD_HEADER: Load(len(line.running), len(line.waiting), line.slots).to_header()}
    if host.loaded is not None:
        headers[names.CONTEXT_HEADER] = str(host.loaded.context)
    return headers


def held_text(host: ModelHost) -> str:
    """What a request that is held waits for, in one line."""
    line = host.admission.line
    if host.loaded is not None:
        return f"model {host.entry.name}: {len(line.running)} requests run, {len(line.waiting)} wait for a slot"
    doing = progress_text(host.progress) if host.progress is not None else "starting"
    return f"model {host.entry.name} is loaded first: {doing}"


def need(host: ModelHost, task: str) -> tuple[Loaded, Checkpoint]:
    """What is loaded, once a slot is held. Raises ApiError 400 when the model is for something else."""
    loaded, checkpoint = host.loaded, host.checkpoint
    if loaded is None or checkpoint is None:
        raise ApiError(503, f"model '{host.entry.name}' was unloaded while the request started", retry_after=1)
    if loaded.task != task:
        does = "embeddings" if loaded.task == "Embed" else "generating text"
        asked = "embeddings" if task == "Embed" else "generating text"
        raise ApiError(400, f"model '{host.entry.name}' is for {does}, not for {asked}", param="model")
    return loaded, checkpoint


def room_for(loaded: Loaded, ask: Ask) -> int:
    """Tokens that prompt and answer may have together."""
    return min(loaded.context, ask.context_cap or loaded.context)


def check_prompt(host: ModelHost, prompt: list[int], room: int, asked: int | None) -> int:
    """The number of tokens that may be generated. Raises ApiError 400 naming limit and sizes."""
    if not prompt:
        raise ApiError(400, "the prompt is empty", param="prompt")
    if len(prompt) >= room:
        raise ApiError(
            400,
            f"the prompt has {len(prompt)} tokens, but the context of model '{host.entry.name}' here is {room} tokens, "
            "prompt and answer together; shorten the prompt",
            code="context_length_exceeded",
            param="messages",
        )
    fits = room - len(prompt)
    return fits if asked is None else min(asked, fits)


def enter(host: ModelHost, wish: Wish) -> tuple[Pass, float]:
    """A place in the model's line, and the seconds for which the request keeps the model; `host.stay.ended` at its end.

    Raises ApiError when the line is full or the model cannot be loaded.
    """
    host.wake()
    refusal = host.refusal()
    if refusal is not None:
        raise refusal
    access = host.admission.enter()
    return access, host.stay.used(wish)


async def generate(host: ModelHost, ask: Ask, metrics: Metrics, usage: Usage) -> AsyncGenerator[Delta, None]:
    """The answer's pieces, at least one, the last with `finish`. Raises ApiError; before the first piece, or midway."""
    access, usage.kept_seconds = enter(host, ask.wish)
    meter = metrics.meter(host.entry.name, ask.dialect)
    stream: Stream | None = None
    outcome, finish = "error", None
    try:
        # With the checkpoint at hand the prompt is made while others still run; a bad one is told without waiting.
        prompt = await _prompt(host, ask) if host.loaded is not None else None
        await access.granted()
        usage.started = time.monotonic()
        loaded, checkpoint = need(host, "Generate")
        prompt = prompt or await _prompt(host, ask)
        limit = check_prompt(host, prompt, room_for(loaded, ask), ask.max_tokens)
        usage.prompt, usage.prompt_tokens = prompt, len(prompt)
        stream = _start(host, ask, prompt, limit, loaded, checkpoint, access.leave)
        usage.sent = time.monotonic()
        if loaded.shares:
            await _seated(stream, access)
            usage.started = usage.sent = time.monotonic()
        async with aclosing(_pieces(ask, stream, checkpoint, usage, meter)) as pieces:
            async for piece in pieces:
                finish = piece.finish
                if finish is not None:
                    outcome = "ok"
                yield piece
    except (GeneratorExit, asyncio.CancelledError):
        outcome = outcome if outcome == "ok" else "cancelled"
        raise
    except ApiError as error:
        outcome = error.refused or "error"
        raise
    finally:
        if stream is None:
            access.leave()
        else:
            stream.abort(usage.completion_tokens)
        host.stay.ended(ask.wish)
        meter.ended(outcome, finish, usage)


async def _seated(stream: Stream, access: Pass) -> None:
    """Returns when the runner has memory for the request: part of its wait. Raises ApiError at its deadline."""
    try:
        async with asyncio.timeout(max(0.0, access.ticket.deadline - time.monotonic())):
            await stream.began.wait()
    except TimeoutError:
        raise access.too_late() from None


async def _prompt(host: ModelHost, ask: Ask) -> list[int]:
    loaded, checkpoint = need(host, "Generate")
    room = room_for(loaded, ask)
    if ask.characters > IN_THREAD:
        prompt = await asyncio.to_thread(ask.prompt, checkpoint, room)
    else:
        prompt = ask.prompt(checkpoint, room)
    check_prompt(host, prompt, room, ask.max_tokens)
    return prompt


def shift_of(ask: Ask, prompt: list[int], room: int) -> tuple[int, int] | None:
    """Answer's bound and tokens to keep where the answer may outgrow the context and go on; None where it may not.

    As Ollama has it, an answer without end is cut after ten contexts.
    """
    most = min(ask.max_tokens or SHIFTED_CONTEXTS * room, SHIFTED_CONTEXTS * room)
    if ask.keep is None or len(prompt) + most <= room:
        return None
    return most, len(prompt) if ask.keep < 0 else ask.keep


def _start(
    host: ModelHost,
    ask: Ask,
    prompt: list[int],
    limit: int,
    loaded: Loaded,
    checkpoint: Checkpoint,
    on_end: Callable[[], None],
) -> Stream:
    sampling = ask.sampling(checkpoint)
    if not ask.seeded:
        sampling = replace(sampling, seed=secrets.randbits(63))
    ends = () if ask.ignore_end else checkpoint.end_tokens
    runner = host.runner
    try:
        if runner is None:
            raise RunnerGone(host.last_error or "the runner is gone")
        add = Add(0, prompt, limit, sampling, sorted({*ends, *ask.stop_tokens}), salt=ask.salt, grammar=ask.grammar)
        room = room_for(loaded, ask)
        shift = shift_of(ask, prompt, room)
        if shift is not None and loaded.shifts:
            add = replace(add, max_tokens=shift[0], keep=shift[1], context=room)
        return runner.client.add(add, on_end)
    except RunnerGone as error:
        on_end()
        raise gone(error) from error


def gone(error: RunnerGone) -> ApiError:
    """What the requests of a dead runner are told."""
    return ApiError(500, str(error), code="runner_died")


async def _rows(stream: Stream) -> AsyncIterator[tuple[float, TokenRow]]:
    try:
        async for at, row in stream.rows():
            if row.finish == "error":
                raise ApiError(500, f"the model failed on this request: {row.error}", code="engine_error")
            if row.finish == "abort":
                raise ApiError(503, "the request was aborted", code="aborted")
            yield at, row
    except RunnerGone as error:
        raise gone(error) from error


async def _pieces(
    ask: Ask, stream: Stream, checkpoint: Checkpoint, usage: Usage, meter: Meter
) -> AsyncGenerator[Delta, None]:
    detokenizer = checkpoint.tokenizer.detokenizer()
    stops = StopStrings(ask.stop)
    pending: list[int] = []
    logprobs: list[Logprob] = []
    async with aclosing(_rows(stream)) as rows:  # type: ignore[type-var]
        async for at, row in rows:
            if not row.tokens and row.finish is None:
                continue
            before, counted = usage.last, usage.completion_tokens
            usage.first, usage.last = usage.first or at, at
            usage.cached_tokens = row.cached or usage.cached_tokens
            text = ""
            for index, token in enumerate(row.tokens):
                piece = detokenizer.push([token])
                usage.completion_tokens += 1
                text += piece if usage.completion_tokens < ask.min_tokens else stops.push(piece)
                usage.tokens.append(token)
                pending.append(token)
                if row.logprobs is not None:
                    logprobs.append(row.logprobs[index])
                if stops.found is not None:
                    break
            meter.tokens(usage, before, usage.completion_tokens - counted)
            finish = row.finish
            if stops.found is not None:
                finish = "stop"
            elif finish is not None:
                text += stops.push(detokenizer.finish())
                text += stops.finish()
                finish = finish if stops.found is None else "stop"
            if text or finish is not None or logprobs:
                yield Delta(text, pending, logprobs, finish)
                pending, logprobs = [], []
            if finish is not None:
                return
