"""What a GPU could do at best, and how near a run's steps came: the arithmetic of `bench/gpu.py`, without a GPU.

A decode step reads every weight and every cached key and value once, so bytes over bandwidth bound it from below, and
so do its multiplications over the matmul rate; both rates are measured in the same run.
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tandem_server.engine.wire import StepRecord

BF16 = 2


@dataclass(frozen=True)
class Shape:
    """A decoder of the Qwen3 kind."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied by, the output matrix among them."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocabulary * self.hidden

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * BF16


SHAPES = {
    "0.6B": Shape("Qwen3-0.6B", 1024, 3072, 28, 16, 8, 128, 151_936, True),
    "8B": Shape("Qwen3-8B", 4096, 12_288, 36, 32, 8, 128, 151_936, False),
    "tiny": Shape("tiny", 256, 512, 2, 4, 2, 64, 4096, True),
}


@dataclass(frozen=True)
class Roof:
    """Bytes a second (reading and writing together), and floating-point operations a second."""

    bandwidth: float
    matmul: float


def decode_bound(shape: Shape, requests: int, length: float, roof: Roof) -> float:
    """Seconds that a decode step needs at least, with so many tokens in each request's cache."""
    read = shape.multiplied * BF16 + requests * length * shape.token_bytes
    return max(read / roof.bandwidth, 2 * shape.multiplied * requests / roof.matmul)


def prefill_operations(shape: Shape, tokens: int, length: int) -> float:
    """Floating-point operations of `tokens` tokens of prompts of `length`; on average each sees half of its prompt."""
    weights = shape.multiplied - shape.vocabulary * shape.hidden
    attention = 4 * shape.layers * shape.heads * shape.head_size * length / 2
    return tokens * (2 * weights + attention)


@dataclass(frozen=True)
class Steps:
    """Medians of one run's steps, in seconds: `device` and `host` of decode steps with all requests in them."""

    device: float
    host: float
    """What the host does for a step beside waiting for it: plan, launch, tell."""
    period: float
    """From one such step's begin on the device to the next one's."""
    prefill: float
    """Device time of all steps that read prompts."""
    prompt_tokens: int


def steps_of(records: Sequence[StepRecord], requests: int) -> Steps:
    """Raises ValueError where no two decode steps with all requests follow each other."""
    whole = [record for record in records if record.decoded == requests and not record.prompt_tokens]
    pairs = [(one, two) for one, two in itertools.pairwise(whole) if two.step == one.step + 1]
    if not pairs:
        raise ValueError(f"no two of {len(records)} steps in a row decode {requests} requests and nothing else")
    reading = [record for record in records if record.prompt_tokens]
    return Steps(
        device=statistics.median(r.device[2] - r.device[0] for r in whole),
        host=statistics.median((r.host[2] - r.host[0]) + (r.host[5] - r.host[4]) for r in whole),
        period=statistics.median(two.device[0] - one.device[0] for one, two in pairs),
        prefill=sum(r.device[2] - r.device[0] for r in reading),
        prompt_tokens=sum(r.prompt_tokens for r in reading),
    )


def predicted_gain(plain: Steps) -> float:
    """What overlap can gain at best, from the plain loop's steps.

    There host and device take turns; but the device begins while the host still launches, so their sum is the period.
    Overlapped, the slower of the two sets the pace.
    """
    return plain.period / max(plain.device, plain.host)
