# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201
"""Triton kernel of prompts: attention of many tokens of many sequences over the paged cache, in one launch.

Launched by `paged_attention.py`; beside `paged_kernels.py`, whose remarks hold here as well. What a program computes
comes from a list that the host makes of the chunks: so many tokens of one sequence, from its own first one on. A
token's bits therefore depend on its own sequence alone.
"""

import triton
import triton.language as tl


@triton.jit
def attend_prompt(
    query,
    layer,
    tables,
    work,
    sinks,
    out,
    scale,
    cap,
    value_scale,
    query_row,
    query_head,
    layer_head,
    table_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_WIDE: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Some tokens of one prompt that follow each other, for the query heads of one key head: `ROWS` in one product."""
    item, head = work + tl.program_id(0) * 4, tl.program_id(1)
    first_row, seat = tl.load(item).to(tl.int64), tl.load(item + 1).to(tl.int64)
    start, count = tl.load(item + 2), tl.load(item + 3)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, SIZE_WIDE)
    token, member = rows // GROUP_WIDE, rows % GROUP_WIDE
    is_query = ((token < count) & (member < GROUP))[:, None] & (dims[None, :] < SIZE)
    at = (first_row + token) * query_row + head * query_head + member * SIZE
    q = tl.load(query + at[:, None] + dims[None, :], mask=is_query, other=0.0).to(OPERAND)
    position = start + token
    keys_at = layer + head.to(tl.int64) * layer_head
    values_at = layer + (head.to(tl.int64) + KV_HEADS) * layer_head
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.full([ROWS], 0.0, tl.float32)
    mixed = tl.full([ROWS, SIZE_WIDE], 0.0, tl.float32)
    end = start + count
    seen = tl.maximum(start + 1 - WINDOW, 0) if WINDOW > 0 else start * 0
    for tile in range(seen // TILE, (end + TILE - 1) // TILE):
        keys = tile * TILE + tl.arange(0, TILE)
        # As in `attend_share`, what no row sees is not read.
        is_there = (keys >= seen) & (keys < end)
        block = tl.load(tables + seat * table_row + keys // BLOCK, mask=is_there, other=0)
        place = (block.to(tl.int64) * BLOCK + keys % BLOCK) * SIZE
        here = place[:, None] + dims[None, :]
        is_number = is_there[:, None] & (dims[None, :] < SIZE)
        k = tl.load(keys_at + here, mask=is_number, other=0.0).to(OPERAND)
        v = tl.load(values_at + here, mask=is_number, other=0.0).to(OPERAND)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if CAPPED:
            scores = (2 * tl.sigmoid(2 * (scores / cap)) - 1) * cap * 1.4426950408889634
        is_seen = (keys[None, :] <= position[:, None]) & (keys[None, :] < end)
        if WINDOW > 0:
            is_seen &= keys[None, :] > position[:, None] - WINDOW
        scores = tl.where(is_seen, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        # A row's window may begin behind this tile: then there is nothing yet to be compared with.
        level = tl.where(higher > float("-inf"), higher, 0.0)
        weights = tl.exp2(scores - level[:, None])
        fade = tl.exp2(most - level)
        total = total * fade + tl.sum(weights, 1)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(OPERAND), v, input_precision="ieee")
        most = higher
    if SINKS:
        sink = tl.load(sinks + head * GROUP + member, mask=member < GROUP, other=0.0).to(tl.float32)
        sink *= 1.4426950408889634
        higher = tl.maximum(most, sink)
        fade = tl.exp2(most - higher)
        total = total * fade + tl.exp2(sink - higher)
        mixed *= fade[:, None]
    result = ((first_row + token) * KV_HEADS + head) * GROUP + member
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None] * value_scale
    tl.store(out + result[:, None] * SIZE + dims[None, :], mixed.to(out.dtype.element_ty), mask=is_query)
