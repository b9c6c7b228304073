"""How decode attention is cut into programs on a GPU, and the memory that its partial results take. Pure.

Used by `paged_attention.py`, which launches the programs, and by the memory arithmetic of a load.
"""

from dataclasses import dataclass

from tandem_server.engine.native.blocks import capacity_for
from tandem_server.engine.native.config import DecoderConfig

LEAST_SHARE = 128
"""Keys of a share at least: below this, writing and joining partial results costs more than parallel reading gains."""
LARGEST_TILE = 16 << 10
"""Bytes of keys that a program holds at once; as much again for values, times the stages of the pipeline."""

PROMPT_TILE = 32 << 10
"""Bytes of queries that a program of a prompt holds at once."""


def power_of_two(least: int) -> int:
    """The smallest that is not below `least`."""
    return 1 << (least - 1).bit_length()


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

        Two programs a processor for one sequence alone; it must not depend on the batch, or a row's bits would.
        """
        parallel = -(-2 * self.processors // self.kv_heads)
        return max(1, min(power_of_two(parallel), -(-self.capacity // self.least_share)))

    def prompt_rows(self, itemsize: int) -> int:
        """Queries that a program of a prompt multiplies at once, when each of their numbers has `itemsize` bytes."""
        # float32 is multiplied without tensor cores, which takes more registers.
        fitting = PROMPT_TILE // (power_of_two(self.size) * itemsize) // (2 if itemsize > 2 else 1)
        return max(16, power_of_two(self.group), min(128, fitting))

    def prompt_tokens(self, itemsize: int) -> int:
        """Tokens of a prompt that a program computes for the query heads of one key head."""
        return self.prompt_rows(itemsize) // power_of_two(self.group)

    def workspace_bytes(self, rows: int) -> int:
        """Memory of the partial results of `rows` sequences."""
        return rows * self.kv_heads * self.group * self.shares * (self.size + 2) * 4
