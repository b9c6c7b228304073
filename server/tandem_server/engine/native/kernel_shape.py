"""How decode attention is cut into programs on a GPU. Pure.

Used by `paged_attention.py`, which launches the programs; `tandem_api.fit_steps` counts what their results take.
"""

from dataclasses import dataclass

from tandem_api.fit_steps import LEAST_SHARE, attention_shares, capacity_for, power_of_two
from tandem_server.engine.native.config import DecoderConfig

LARGEST_TILE = 16 << 10
"""Bytes of keys that a program holds at once; as much again for values, times the stages of the pipeline."""

PROMPT_TILE = 32 << 10
"""Bytes of queries that a program of a prompt holds at once."""


@dataclass(frozen=True)
class KernelShape:
    """How the work of one model on one device is cut up.

    Args:
        kv_heads: key heads.
        group: query heads of each.
        size: of a head.
        capacity: positions of a slot.
        itemsize: bytes of a cached number.
        processors: the device's multiprocessors.
    """

    kv_heads: int
    group: int
    size: int
    capacity: int
    itemsize: int
    processors: int
    least_share: int = LEAST_SHARE

    @classmethod
    def of(cls, config: DecoderConfig, context: int, itemsize: int, processors: int) -> "KernelShape":
        """For slots of `context` tokens."""
        group = config.heads // config.kv_heads
        return cls(config.kv_heads, group, config.head_size, capacity_for(context), itemsize, processors)

    @property
    def tile(self) -> int:
        """Keys that a program takes at once."""
        fitting = LARGEST_TILE // (power_of_two(self.size) * self.itemsize)
        return max(16, min(64, self.least_share, fitting))

    @property
    def shares(self) -> int:
        """Programs that a sequence is cut into at most.

        It must not depend on the batch, or a row's bits would.
        """
        return attention_shares(self.kv_heads, self.processors, self.capacity, self.least_share)

    def prompt_rows(self, itemsize: int) -> int:
        """Queries that a program of a prompt multiplies at once, when each of their numbers has `itemsize` bytes."""
        # float32 is multiplied without tensor cores, which takes more registers.
        fitting = PROMPT_TILE // (power_of_two(self.size) * itemsize) // (2 if itemsize > 2 else 1)
        return max(16, power_of_two(self.group), min(128, fitting))

    def prompt_tokens(self, itemsize: int) -> int:
        """Tokens of a prompt that a program computes for the query heads of one key head."""
        return self.prompt_rows(itemsize) // power_of_two(self.group)
