"""Keys and values of all slots, in blocks of one pool a layer; where a slot's blocks lie comes with the plan.

Between the decoder, which writes and attends, and the block tables of the scheduler. A slot whose blocks are one run
is read as a view; so are all slots at once where each one's run stands at its home, which is always so where every
slot has memory for its whole context. Anything else is gathered. Heads stand before positions, so either way a head's
keys are contiguous and its query heads fold onto them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tandem_api.fit_steps import capacity_for
from tandem_server.engine.native.blocks import BLOCK, runs_of
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
        self,
        config: DecoderConfig,
        slots: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
        pool_blocks: int | None = None,
    ) -> None:
        self.slots, self.capacity = slots, capacity_for(context)
        self.slot_blocks = self.capacity // BLOCK
        """Blocks that hold a whole context."""
        self.shared = pool_blocks is not None
        """Slots have no homes: their blocks lie anywhere in a pool that may be smaller than all contexts together."""
        self.scratch = slots * self.capacity if pool_blocks is None else pool_blocks * BLOCK
        """Position of the pool that rows without a request write to; no request ever reads it."""
        self._heads, self._size, self._device = 2 * config.kv_heads, config.head_size, device
        shape = (config.layers, self._heads, self.scratch + BLOCK, config.head_size)
        self.pool = torch.zeros(shape, dtype=dtype, device=device)
        """All layers."""
        self.layers = list(self.pool.unbind(0))
        # Few operations know numbers of 8 bits, so those are moved as the bytes that they are.
        self._narrow = dtype.itemsize == 1
        self._raw = [layer.view(torch.uint8) if self._narrow else layer for layer in self.layers]
        self._blocks = [layer.view(self._heads, -1, BLOCK * config.head_size) for layer in self._raw]
        homes = (self._heads, slots, self.capacity, config.head_size)
        self._homes = (
            [] if self.shared else [layer[:, : self.scratch].view(homes).transpose(0, 1) for layer in self.layers]
        )
        self._scratch_index = torch.full((self.slot_blocks,), self.scratch // BLOCK, device=device)
        self._tables: list[_Table | None] = [None] * slots
        self.tables = torch.full((slots, self.slot_blocks), self.scratch // BLOCK, dtype=torch.int32, device=device)
        """Each slot's blocks on the device, for the kernels that find them themselves."""

    def admit(self, slot: int, blocks: Sequence[int], reused: int = 0) -> None:
        """Gives `slot` its blocks, in the order of their positions; only what the `reused` first ones hold is read."""
        self._seat(slot, blocks, reused * BLOCK)

    def extend(self, slot: int, blocks: Sequence[int]) -> None:
        """Gives `slot` further blocks behind those that it has."""
        table = self._table(slot)
        self._seat(slot, (*table.blocks, *blocks), table.clean)

    def _seat(self, slot: int, blocks: Sequence[int], clean: int) -> None:
        assert len(blocks) <= self.slot_blocks, f"{len(blocks)} blocks are more than the context's {self.slot_blocks}"
        run = all(block == blocks[0] + place for place, block in enumerate(blocks))
        self._tables[slot] = _Table(tuple(blocks), blocks[0] * BLOCK if run else None, clean=clean)
        self.tables[slot, : len(blocks)] = upload(blocks, torch.int32, self._device)

    def move(self, moves: Sequence[tuple[int, int]]) -> None:
        """Copies blocks to other ones, in order; neighbours that go to neighbours go at once."""
        for source, target, count in runs_of(moves):
            self.pool[:, :, target * BLOCK : (target + count) * BLOCK] = self.pool[
                :, :, source * BLOCK : (source + count) * BLOCK
            ]

    def locate(self, lengths: Sequence[int]) -> tuple[list[int], list[int]]:
        """Position in the sequence, and place in the pool, of each slot's last token; `scratch` where length is 0."""
        places = [self._place(slot, length - 1) if length else self.scratch for slot, length in enumerate(lengths)]
        return [max(0, length - 1) for length in lengths], places

    def at_home(self, lengths: Sequence[int]) -> bool:
        """Whether every slot with a length has its blocks where `together` reads them."""
        return not self.shared and all(
            self._table(slot).first == slot * self.capacity for slot, length in enumerate(lengths) if length
        )

    def in_runs(self, lengths: Sequence[int]) -> bool:
        """Whether `read` of every slot with a length is a view."""
        return all(self._table(slot).first is not None for slot, length in enumerate(lengths) if length)

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
        """For `gather`: the blocks of each row's first `span` positions, int64.

        Behind what a slot has stands its first block, which is as good as zeros where attention is masked.
        """
        count, parts = -(-span // BLOCK), []
        for slot, length in enumerate(lengths):
            index = self._index(slot)[:count] if length else self._scratch_index[:count]
            parts += [index, index[:1].expand(count - len(index))]
        return torch.cat(parts)

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
        length = min(length, len(table.blocks) * BLOCK)
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
            table.index = upload(table.blocks, torch.int64, self._device)
        return table.index

    def _table(self, slot: int) -> _Table:
        table = self._tables[slot]
        assert table is not None, f"slot {slot} was used before it was given blocks"
        return table
