"""Attention on a GPU, and what stands before it, by kernels that find the cache's blocks themselves.

Between the decoder and `paged_kernels.py` (decode steps) and `prompt_kernels.py`. A decode step's launch has the same
shape whatever the sequences' lengths are, and reads lengths and block tables from the device, so that it can be part of
a CUDA graph. A sequence is cut into shares by its own length alone, and their outcomes are joined in a fixed order: a
row's bits depend on nothing but the row. Needs triton, so it is imported only where a GPU computes (and by tests, under
triton's interpreter).
"""

import math
from typing import Self

import torch
import triton.language as tl  # type: ignore[import-untyped]

from tandem_api.fit_steps import power_of_two
from tandem_server.engine.native import paged_kernels as kernels
from tandem_server.engine.native import prompt_kernels
from tandem_server.engine.native.blocks import BLOCK
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.kernel_shape import KernelShape

LOG2_E = math.log2(math.e)
OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
OPERAND_BYTES = {tl.float32: 4, tl.bfloat16: 2, tl.float16: 2}
GATE_PART = 1024
"""Numbers that a program of the gate makes."""
HEADS_AT_ONCE = 8
"""Heads of a prompt's token that a program norms, turns and caches."""
JOINED_AT_ONCE = 16
"""Shares whose partial results a program holds at once."""
FP8_LIMIT = 448.0
"""The largest number of float8_e4m3fn; it has no infinity, so what is beyond would become NaN."""


class PagedAttention:
    """The kernels with the memory for their partial results, which stands still, as graphs need it.

    Args:
        shape: of the work.
        rows: the most sequences of a launch.
        operand: what is multiplied: the queries' format, or a wider one (triton's interpreter has no bfloat16 there).
        device: where to compute.
        key_scale: what cached keys are multiplied by when they are read, where the cache is FP8.
        value_scale: the same for values.
    """

    def __init__(
        self,
        shape: KernelShape,
        rows: int,
        operand: torch.dtype,
        device: torch.device,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> None:
        self.shape, self._operand = shape, OPERANDS[operand]
        self._key_scale, self._value_scale = key_scale, value_scale
        heads = (rows, shape.kv_heads * shape.group, shape.shares)
        self._partial = torch.empty(*heads, shape.size, dtype=torch.float32, device=device)
        self._most = torch.empty(heads, dtype=torch.float32, device=device)
        self._sums = torch.empty(heads, dtype=torch.float32, device=device)

    @classmethod
    def of(cls, config: DecoderConfig, cache: PagedCache, operand: torch.dtype) -> Self:
        """For all slots of `cache`, on its device."""
        device = cache.pool.device
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        shape = KernelShape.of(config, cache.capacity, cache.pool.itemsize, processors)
        return cls(shape, cache.slots, operand, device)

    def turn_and_write(
        self,
        projected: torch.Tensor,
        norms: tuple[torch.Tensor | None, torch.Tensor | None],
        epsilon: float,
        rope: tuple[torch.Tensor, torch.Tensor],
        layer: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        starts: torch.Tensor | None = None,
        seats: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What stands between projection and attention in one kernel: norms, positions, new entries of the cache.

        Rows of length 0 write nothing, and their queries are not made.

        Args:
            projected: `[rows, heads + 2 x kv_heads, size]` contiguous: queries, keys, values of each one's last token.
            norms: weights `[size]` of the norms of queries and of keys; None where there are none.
            epsilon: of the norms.
            rope: cosines and signed sines `[positions, rotated]`; see `rope_tables`.
            layer: `[2 x kv_heads, positions, size]`, keys before values.
            tables: int32 `[sequences, blocks]`.
            lengths: int32 `[rows]`, the new token counted.
            starts: int64 `[sequences]`: row of the position tables where each sequence's begin; None: all at 0.
            seats: int32 `[rows]`: which sequence each row is of; None: row i is of sequence i.

        Returns:
            Queries `[rows, kv_heads, group, size]`.
        """
        shape, rows = self.shape, len(projected)
        heads = (rows, shape.kv_heads, shape.group, shape.size)
        query = torch.empty(heads, dtype=projected.dtype, device=projected.device)
        cosines, sines = rope
        query_norm, key_norm = norms
        # A decode step has few rows, a prompt so many that starting programs is what takes the time.
        at_once = 1 if seats is None else HEADS_AT_ONCE
        kernels.turn_and_write[(rows, -(-projected.shape[1] // at_once))](
            projected,
            projected if query_norm is None else query_norm,
            projected if key_norm is None else key_norm,
            cosines,
            sines,
            lengths if starts is None else starts,
            lengths,
            tables,
            lengths if seats is None else seats,
            query,
            layer,
            epsilon,
            1.0 / self._key_scale,
            1.0 / self._value_scale,
            projected.stride(0),
            tables.stride(0),
            layer.stride(0),
            HEADS=shape.kv_heads * shape.group,
            KV_HEADS=shape.kv_heads,
            SIZE=shape.size,
            SIZE_WIDE=power_of_two(shape.size),
            ROTATED=cosines.shape[-1],
            NORMED=query_norm is not None,
            STARTS=starts is not None,
            SEATED=seats is not None,
            AT_ONCE=at_once,
            BLOCK=BLOCK,
            LIMIT=FP8_LIMIT if layer.dtype.itemsize == 1 else 0.0,
            num_warps=1 if seats is None else 4,
        )
        return query

    def attend(
        self,
        query: torch.Tensor,
        layer: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        *,
        scale: float,
        cap: float | None = None,
        window: int | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mixed values of one token a sequence, `[rows, kv_heads, group, size]` in the queries' format.

        Args:
            query: `[rows, kv_heads, group, size]`, the last two dimensions contiguous.
            layer: `[2 x kv_heads, positions, size]`, keys before values.
            tables: int32 `[at least rows, blocks]`: row i's blocks, in the order of their positions.
            lengths: int32 `[rows]`: keys to attend to; 0 gives zeros, and nothing is read.
            scale: factor of the scores.
            cap: the scores become `cap * tanh(score / cap)`.
            window: a token sees so many keys, its own among them.
            sinks: `[kv_heads * group]`: one more score a head, which stands for no value.
        """
        shape, rows = self.shape, query.shape[0]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        wide = power_of_two(shape.size)
        kernels.attend_share[(rows, shape.kv_heads, shape.shares)](
            query,
            layer,
            tables,
            lengths,
            self._partial,
            self._most,
            self._sums,
            scale * self._key_scale * (1.0 if cap is not None else LOG2_E),
            0.0 if cap is None else cap,
            query.stride(0),
            query.stride(1),
            layer.stride(0),
            tables.stride(0),
            KV_HEADS=shape.kv_heads,
            GROUP=shape.group,
            GROUP_WIDE=max(16, power_of_two(shape.group)),
            SIZE=shape.size,
            SIZE_WIDE=wide,
            SHARES=shape.shares,
            LEAST_TILES=max(1, shape.least_share // shape.tile),
            TILE=shape.tile,
            BLOCK=BLOCK,
            WINDOW=window or 0,
            CAPPED=cap is not None,
            OPERAND=self._operand,
            num_warps=4,
            num_stages=3,
        )
        kernels.join_shares[(rows, shape.kv_heads * shape.group)](
            self._partial,
            self._most,
            self._sums,
            lengths,
            out if sinks is None else sinks,
            out,
            self._value_scale,
            HEADS=shape.kv_heads * shape.group,
            SIZE=shape.size,
            SIZE_WIDE=wide,
            SHARES=shape.shares,
            AT_ONCE=JOINED_AT_ONCE,
            LEAST_TILES=max(1, shape.least_share // shape.tile),
            TILE=shape.tile,
            WINDOW=window or 0,
            SINKS=sinks is not None,
            num_warps=4,
        )
        return out

    @property
    def prompt_tokens(self) -> int:
        """Of one program; see `attend_prompt`."""
        return self.shape.prompt_tokens(OPERAND_BYTES[self._operand])

    def attend_prompt(
        self,
        query: torch.Tensor,
        layer: torch.Tensor,
        tables: torch.Tensor,
        work: torch.Tensor,
        *,
        scale: float,
        cap: float | None = None,
        window: int | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mixed values of many tokens, some of each sequence, `[rows, kv_heads, group, size]`; see `attend`.

        Args:
            query: `[rows, kv_heads, group, size]`, the last two dimensions contiguous.
            layer: as in `attend`, with the keys and values of these tokens in it.
            tables: int32 `[sequences, blocks]`.
            work: int32 `[programs, 4]`: first row, sequence, the first row's position in it, and how many rows follow
                each other there, at most `prompt_tokens`. Rows that are in none are not made.
            scale, cap, window, sinks: as in `attend`.
        """
        shape = self.shape
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        rows = shape.prompt_rows(OPERAND_BYTES[self._operand])
        prompt_kernels.attend_prompt[(len(work), shape.kv_heads)](
            query,
            layer,
            tables,
            work,
            out if sinks is None else sinks,
            out,
            scale * self._key_scale * (1.0 if cap is not None else LOG2_E),
            0.0 if cap is None else cap,
            self._value_scale,
            query.stride(0),
            query.stride(1),
            layer.stride(0),
            tables.stride(0),
            KV_HEADS=shape.kv_heads,
            GROUP=shape.group,
            GROUP_WIDE=power_of_two(shape.group),
            SIZE=shape.size,
            SIZE_WIDE=power_of_two(shape.size),
            ROWS=rows,
            TILE=shape.tile,
            BLOCK=BLOCK,
            WINDOW=window or 0,
            CAPPED=cap is not None,
            SINKS=sinks is not None,
            OPERAND=self._operand,
            num_warps=8 if rows >= 128 else 4,
            num_stages=2,
        )
        return out


def gated(both: torch.Tensor, activation: str, limit: float | None = None, alpha: float = 1.0) -> torch.Tensor:
    """`activation(gate) * up` of `both` `[rows, 2 x width]`, gates before ups; `activation` as in `config.py`.

    With a `limit` it is `gate * sigmoid(gate * alpha) * (up + 1)`, both cut off there (a gate at its upper end alone).
    """
    rows, width = both.shape[0], both.shape[1] // 2
    out = torch.empty(rows, width, dtype=both.dtype, device=both.device)
    part = min(GATE_PART, power_of_two(width))
    kernels.gate[(rows, -(-width // part))](
        both,
        out,
        both.stride(0),
        0.0 if limit is None else limit,
        alpha,
        WIDTH=width,
        PART=part,
        ACTIVATION=activation,
        LIMITED=limit is not None,
        num_warps=4,
    )
    return out
