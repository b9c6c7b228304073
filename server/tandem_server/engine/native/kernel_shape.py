"""How decode attention is cut into programs on a GPU. Pure.

Used by `paged_attention.py`, which launches the programs; `tandem_api.fit_steps` counts what their results take.
"""

from dataclasses import dataclass

from tandem_api.fit_steps import LEAST_SHARE, attention_shares, capacity_for, power_of_two
from tandem_server.engine.native.config import DecoderConfig

LARGEST_TILE = 16 << 10
"""Bytes of keys that a program holds at once; as much again for values, times the stages of the pipeline."""


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
