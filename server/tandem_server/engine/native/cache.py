"""Keys and values of all slots, in blocks of one pool a layer; where a slot's blocks lie came with its admission.

Between the decoder, which writes and attends, and the block tables of the scheduler. A slot whose blocks are one run
is read as a view; so are all slots at once where each one's run stands at its home, which is always so while every
slot holds its whole context. Anything else is gathered. Heads stand before positions, so either way a head's keys
are contiguous and its query heads fold onto them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tandem_server.engine.native.blocks import BLOCK, cache_positions, capacity_for
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.transfer import upload


@dataclass
class _Table:
    """One slot's blocks."""

    blocks: tuple[int, ...]
    first: int | None
    """First position of the pool where the blocks are one run."""
    index: torch.Tensor | None = None
    """The blocks on the device, int64; made when first needed, for a run seldom needs it."""
    clean: int = 0
    """Positions up to here hold what the request wrote, or zeros."""


class PagedCache:
    """Room for `slots` sequences of `context` tokens.

    `layers[i]` is `[2 x kv_heads, positions, head_size]`, keys before values.
    """

    def __init__(
        self, config: DecoderConfig, slots: int, context: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots, self.capacity = slots, capacity_for(context)
        self.slot_blocks = self.capacity // BLOCK
        """Blocks that each slot holds."""
        self.scratch = slots * self.capacity
        """Position of the pool that rows without a request write to; no request ever reads it."""
        self._heads, self._size, self._device = 2 * config.kv_heads, config.head_size, device
        shape = (config.layers, self._heads, cache_positions(slots, context), config.head_size)
        self.pool = torch.zeros(shape, dtype=dtype, device=device)
        """All layers."""
        self.layers = list(self.pool.unbind(0))
        # Few operations know numbers of 8 bits, so those are moved as the bytes that they are.
        self._narrow = dtype.itemsize == 1
        self._raw = [layer.view(torch.uint8) if self._narrow else layer for layer in self.layers]
        self._blocks = [layer.view(self._heads, -1, BLOCK * config.head_size) for layer in self._raw]
        homes = (self._heads, slots, self.capacity, config.head_size)
        self._homes = [layer[:, : self.scratch].view(homes).transpose(0, 1) for layer in self.layers]
        self._scratch_index = torch.full((self.slot_blocks,), self.scratch // BLOCK, device=device)
        self._tables: list[_Table | None] = [None] * slots
        self.tables = torch.full((slots, self.slot_blocks), self.scratch // BLOCK, dtype=torch.int32, device=device)
        """Each slot's blocks on the device, for the kernels that find them themselves."""

    def admit(self, slot: int, blocks: Sequence[int]) -> None:
        """Gives `slot` its blocks, in the order of their positions; what stood in them is never read."""
        assert len(blocks) == self.slot_blocks, f"slot {slot} was given {len(blocks)} blocks, not {self.slot_blocks}"
        run = all(block == blocks[0] + place for place, block in enumerate(blocks))
        self._tables[slot] = _Table(tuple(blocks), blocks[0] * BLOCK if run else None)
        self.tables[slot, : len(blocks)] = upload(blocks, torch.int32, self._device)

    def locate(self, lengths: Sequence[int]) -> tuple[list[int], list[int]]:
        """Position in the sequence, and place in the pool, of each slot's last token; `scratch` where length is 0."""
        places = [self._place(slot, length - 1) if length else self.scratch for slot, length in enumerate(lengths)]
        return [max(0, length - 1) for length in lengths], places

    def at_home(self, lengths: Sequence[int]) -> bool:
        """Whether every slot with a length has its blocks where `together` reads them."""
        return all(self._table(slot).first == slot * self.capacity for slot, length in enumerate(lengths) if length)

    def write(self, layer: int, slot: int, start: int, values: torch.Tensor) -> None:
        """Puts keys and values `[2 x kv_heads, count, head_size]` at `start` and after it."""
        table, end = self._table(slot), start + values.shape[1]
        if self._narrow:
            largest = torch.finfo(self.pool.dtype).max
            values = values.clamp(-largest, largest).to(self.pool.dtype).view(torch.uint8)
        if table.first is not None:
            self._raw[layer][:, table.first + start : table.first + end] = values
        else:
            positions = torch.arange(start, end, device=self._device)
            places = self._index(slot)[positions // BLOCK] * BLOCK + positions % BLOCK
            self._raw[layer].index_copy_(1, places, values)
        table.clean = max(table.clean, end)

    def read(self, layer: int, slot: int, length: int) -> torch.Tensor:
        """Keys and values of the first `length` positions: `[2 x kv_heads, length, head_size]`."""
        table = self._table(slot)
        if table.first is not None:
            return self.layers[layer][:, table.first : table.first + length]
        whole = self._blocks[layer].index_select(1, self._index(slot)[: -(-length // BLOCK)])
        return whole.view(self.pool.dtype).view(self._heads, -1, self._size)[:, :length]

    def together(self, layer: int, rows: int, length: int) -> torch.Tensor:
        """The first `rows` slots at once, without a copy: `[rows, 2 x kv_heads, length, head_size]`. See `at_home`."""
        return self._homes[layer][:rows, :, :length]

    def gather_index(self, lengths: Sequence[int], span: int) -> torch.Tensor:
        """For `gather`: the blocks of each row's first `span` positions, int64."""
        count = -(-span // BLOCK)
        tables = [self._index(slot) if length else self._scratch_index for slot, length in enumerate(lengths)]
        return torch.cat([index[:count] for index in tables])

    def gather(self, layer: int, index: torch.Tensor, rows: int, span: int) -> torch.Tensor:
        """The same as `together`, copied from wherever the blocks lie."""
        whole = self._blocks[layer].index_select(1, index)
        return whole.view(self._heads, rows, -1, self._size).transpose(0, 1)[:, :, :span]

    def clean(self, slot: int, length: int) -> None:
        """Zeroes what `slot` has not written of its first `length` positions.

        Attention masks by adding minus infinity to a score and multiplying a value by 0: a NaN that an earlier
        request left there would come through both.
        """
        table = self._table(slot)
        if table.clean >= length:
            return
        while table.clean < length:
            end = length if table.first is not None else min(length, (table.clean // BLOCK + 1) * BLOCK)
            place = self._place(slot, table.clean)
            self.pool[:, :, place : place + end - table.clean] = 0
            table.clean = end

    def _place(self, slot: int, position: int) -> int:
        return self._table(slot).blocks[position // BLOCK] * BLOCK + position % BLOCK

    def _index(self, slot: int) -> torch.Tensor:
        table = self._table(slot)
        if table.index is None:
            table.index = torch.tensor(table.blocks, dtype=torch.int64).to(self._device)
        return table.index

    def _table(self, slot: int) -> _Table:
        table = self._tables[slot]
        assert table is not None, f"slot {slot} was used before it was given blocks"
        return table
