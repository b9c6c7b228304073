"""A short request that comes while a prompt of 30,000 tokens is read: our pod against vLLM's server, over HTTP.

`make bench-long-prompt`, or `python bench/long_prompt.py [--rounds 3]`. A random Llama of 4 layers and hidden size 256
with 32k of context, for the 135M shape takes many minutes for such a prompt on two cores; the same for both. Two
requests run all the time. In each round every server has a turn: short requests (32 tokens, one after the other, with
pauses) first without the long prompt, then while it is read; what they wait for their first token, and what the
running ones wait for each token, is kept. vLLM reads prompts in chunks as it does by default (2048 tokens a step) and,
with `--also-small`, as few tokens a step as ours. Tells each round, and prints one JSON object.
"""

import argparse
import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from engine import DTYPES, NO_VLLM, SETTLE_SECONDS, VLLM_PYTHON, random_model, vllm_settings
from engine_arms import ArmError
from engine_record import Record, kept, tell
from engine_results import OURS, rotated
from http_client import Answer, Target, ask, session
from http_servers import tandem, vllm, vllm_version
from long_prompt_figures import AS_OURS, VLLM, Round, Seen, gaps_within, rows
from random_tokenizer import write_tokenizer

from tandem_server.engine.native.sequence import Limits

CONTEXT, LONG, SHORT = 32768, 30_000, 32
SHAPE: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
}
DTYPE = "bfloat16"
RUNNING, SLOTS = 2, 8
NEW_SHORT, NEW_RUNNING = 4, 16_000
"""Tokens of a short answer, and of the running ones, which are left before their end."""
QUIET_SECONDS, PAUSE_SECONDS = 3.0, 0.3


class Turn:
    """One server's turn of a round: its clients, and the prompts of the round.

    A short request whose first token comes after the long prompt was read was sent before, and counts; tokens of the
    running ones count until then.
    """

    def __init__(self, client: aiohttp.ClientSession, target: Target, seed: str) -> None:
        self._client = client
        self._target = target
        self._chance = random.Random(seed)

    async def run(self, arm: str, number: int, long: int) -> Round:
        """Everything in order. Raises ArmError."""
        async with self._running() as running:
            began = time.perf_counter()
            firsts = await self._firsts(lambda: time.perf_counter() > began + QUIET_SECONDS)
            before = self._seen(running, firsts, began, time.perf_counter())
            answer = Answer()
            reading = asyncio.create_task(self._ask(long, 1, answer))
            firsts = await self._firsts(reading.done)
            await reading
            during = self._seen(running, firsts, answer.began, answer.pieces[0])
        return Round(arm, number, before, during, answer.first)

    async def _firsts(self, done: Callable[[], bool]) -> list[float]:
        """Seconds to the first token of short requests, one after the other, until `done`."""
        found = []
        while not done():
            found.append((await self._ask(SHORT, NEW_SHORT)).first)
            await asyncio.sleep(PAUSE_SECONDS)
        return found

    def _seen(self, running: list[Answer], firsts: list[float], began: float, ended: float) -> Seen:
        if any(answer.ended for answer in running):
            raise ArmError(f"the running requests of {self._target.model} ended too soon: give them more tokens")
        return Seen(tuple(firsts), tuple(gap for each in running for gap in gaps_within(each.pieces, began, ended)))

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[list[Answer]]:
        """Requests that get tokens all the time; they are left at the end."""
        answers = [Answer() for _ in range(RUNNING)]
        tasks = [asyncio.create_task(self._ask(SHORT, NEW_RUNNING, answer)) for answer in answers]
        try:
            while not all(answer.pieces for answer in answers):
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)
            yield answers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, tokens: int, new: int, answer: Answer | None = None) -> Answer:
        prompt = [self._chance.randrange(256, SHAPE["vocab_size"]) for _ in range(tokens)]
        return await ask(self._client, self._target, prompt, new, answer)


async def measure(targets: dict[str, Target], options: argparse.Namespace, found: list[Round]) -> None:
    """Every server in changing order, round by round, after a short prompt each to warm up; adds to `found`."""
    async with session() as client:
        for number in range(options.rounds + 1):
            for arm in rotated(list(targets), number):
                await asyncio.sleep(SETTLE_SECONDS)
                long = options.tokens if number else min(options.tokens, 2 * options.batched)
                one = await Turn(client, targets[arm], f"{number}").run(arm, number, long)
                tell(f"  {f'round {number}' if number else 'warm-up'}, {told(one)}")
                if number:
                    found.append(one)


def told(one: Round) -> str:
    """A turn in one line."""
    firsts, gaps = (
        f"{figure(one.before) * 1000:.0f} -> {figure(one.during) * 1000:.0f} ms"
        for figure in (lambda seen: statistics.median(seen.firsts), lambda seen: statistics.fmean(seen.gaps))
    )
    count = len(one.during.firsts)
    return f"{one.arm}: first token {firsts} ({count} requests), between tokens {gaps}, prompt {one.prefill:.1f} s"


def start(folder: Path, options: argparse.Namespace, scratch: Path, ends: ExitStack) -> dict[str, Target]:
    """Our pod and vLLM's servers, one after the other. Raises ArmError."""
    entry = {"name": "bf16", "source": f"file://{folder}", "slots": SLOTS, "dtype": DTYPES[DTYPE]}
    pod = tandem([{**entry, "context": {"length": CONTEXT}}], options.threads, scratch)
    ends.callback(pod.close)
    tell(f"  our pod is ready after {pod.started_seconds:.0f} s")
    targets = {OURS: Target(pod.url, "bf16")}
    if not options.vllm_python.exists():
        tell(NO_VLLM)
        return targets
    batched = {VLLM: options.batched, **({AS_OURS: Limits.budget} if options.also_small else {})}
    for name, budget in batched.items():
        settings = {"dtype": DTYPE, "max-model-len": CONTEXT, "max-num-seqs": SLOTS, "max-num-batched-tokens": budget}
        environment = vllm_settings(options.vllm_python)
        peer = vllm(options.vllm_python, folder, settings, options.threads, scratch, environment)
        ends.callback(peer.close)
        tell(f"  {name} is ready after {peer.started_seconds:.0f} s")
        targets[name] = Target(peer.url, "vllm")
    return targets


def run(options: argparse.Namespace, scratch: Path, record: Record) -> None:
    """Everything. Raises ArmError or Ended."""
    folder = random_model(scratch / "random-11M", SHAPE)
    write_tokenizer(folder, SHAPE["vocab_size"])
    record.threads[f"Llama of 4 layers, hidden size 256, {DTYPE}"] = options.threads
    record.notes += [
        f"long prompt of {options.tokens} tokens, short ones of {SHORT}, {RUNNING} running",
        f"tokens a step: ours {Limits.budget}, vLLM's {options.batched}",
    ]
    with ExitStack() as ends:
        targets = start(folder, options, scratch, ends)
        if VLLM in targets:
            record.versions["vllm"] = f"{vllm_version(options.vllm_python)} (its own OpenAI server)"
        uvloop.run(measure(targets, options, record.found))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each engine; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=LONG, help="of the long prompt")
    parser.add_argument("--batched", type=int, default=2048, help="vLLM's tokens a step; default: its own")
    parser.add_argument("--also-small", action="store_true", help="vLLM once more, with as few tokens a step as ours")
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON)
    options = parser.parse_args()
    record = Record("long-prompt", rows)
    kept(record, partial(run, options, record=record))


if __name__ == "__main__":
    main()
