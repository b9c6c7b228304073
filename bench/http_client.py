"""Asks a server of OpenAI's text completions, as streams, and keeps when each piece of an answer came.

The client of `engine_http.py` and `long_prompt.py`: one for all servers. Prompts are token ids, so that all servers
read the same tokens; a request without end tokens makes exactly as many tokens as it asks for.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from engine_arms import TEMPERATURE, TOP_K, TOP_P, ArmError

LIMIT_SECONDS = 900.0


@dataclass(frozen=True)
class Target:
    """Where a model is asked: the server's address, and what the server calls the model."""

    url: str
    model: str


@dataclass
class Answer:
    """What came of one request; times are `time.perf_counter` seconds."""

    began: float = field(default_factory=time.perf_counter)
    pieces: list[float] = field(default_factory=list)
    """When each piece of text came. A server may put several tokens into one piece."""
    tokens: int = 0
    """As the server counted them at the end; 0 until then."""
    ended: bool = False

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.began


def session() -> aiohttp.ClientSession:
    """For many streams at once."""
    # Lines of a stream are short; what matters is that a server's pauses are never taken for its end.
    timeout = aiohttp.ClientTimeout(total=LIMIT_SECONDS)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def ask(
    client: aiohttp.ClientSession, target: Target, prompt: Sequence[int], new: int, answer: Answer | None = None
) -> Answer:
    """One streamed answer of `new` tokens, sampled without a seed: vLLM draws seeded requests one by one.

    Args:
        answer: is filled as the pieces come, for those who look at it meanwhile.

    Raises ArmError for any other answer.
    """
    answer = answer or Answer()
    body = {
        "model": target.model,
        "prompt": list(prompt),
        "max_tokens": new,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "top_p": TOP_P,
    }
    answer.began = time.perf_counter()
    async with client.post(f"{target.url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise ArmError(f"{target.url} answered {response.status}: {(await response.text())[:500]}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                _take(json.loads(line.removeprefix(b"data: ")), answer)
    answer.ended = True
    if answer.tokens != new:
        raise ArmError(f"{target.model} made {answer.tokens} tokens instead of {new}")
    return answer


def _take(event: dict[str, object], answer: Answer) -> None:
    if "error" in event:
        raise ArmError(f"the stream ended with {event['error']}")
    choices, usage = event.get("choices"), event.get("usage")
    if isinstance(choices, list) and choices and choices[0].get("text"):
        answer.pieces.append(time.perf_counter())
    if isinstance(usage, dict):
        answer.tokens = usage["completion_tokens"]
