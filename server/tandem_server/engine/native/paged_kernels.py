# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201
"""Triton kernels of a step: decode attention over the paged cache, what comes before it, and a feed-forward's gate.

Launched by `paged_attention.py`, which says what the arguments are. Names in capitals are known when a kernel is
compiled. Query heads that share a key head are the rows of one product, padded to the 16 that tensor cores take.
Scores are in powers of two: exp2 is the instruction that a GPU has.
"""

import triton
import triton.language as tl


@triton.jit
def cut(length, SHARES: tl.constexpr, LEAST_TILES: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr):
    """First key that is seen, first tile, tiles in all, and tiles of a share: from the length alone."""
    seen = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else length * 0
    first = seen // TILE
    tiles = (length + TILE - 1) // TILE - first
    return seen, first, tiles, tl.maximum((tiles + SHARES - 1) // SHARES, LEAST_TILES)


@triton.jit
def attend_share(
    query,
    layer,
    tables,
    lengths,
    partial,
    most_of,
    sum_of,
    scale,
    cap,
    query_row,
    query_head,
    layer_head,
    table_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_WIDE: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_WIDE: tl.constexpr,
    SHARES: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """One share of one sequence's keys, for the query heads of one key head: sums of values, and of their weights."""
    row, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    seen, first, tiles, own = cut(length, SHARES, LEAST_TILES, TILE, WINDOW)
    begin = first + share * own
    end = tl.minimum(begin + own, first + tiles)
    if begin < end:
        groups, dims = tl.arange(0, GROUP_WIDE), tl.arange(0, SIZE_WIDE)
        is_query = (groups[:, None] < GROUP) & (dims[None, :] < SIZE)
        at = row.to(tl.int64) * query_row + head * query_head
        q = tl.load(query + at + groups[:, None] * SIZE + dims[None, :], mask=is_query, other=0.0).to(OPERAND)
        keys_at = layer + head.to(tl.int64) * layer_head
        values_at = layer + (head.to(tl.int64) + KV_HEADS) * layer_head
        most = tl.full([GROUP_WIDE], float("-inf"), tl.float32)
        total = tl.full([GROUP_WIDE], 0.0, tl.float32)
        mixed = tl.full([GROUP_WIDE, SIZE_WIDE], 0.0, tl.float32)
        for tile in range(begin, end):
            keys = tile * TILE + tl.arange(0, TILE)
            # What is not seen is not read: a neighbour's or a former request's NaN would come through a weight of 0.
            is_seen = (keys >= seen) & (keys < length)
            block = tl.load(tables + row.to(tl.int64) * table_row + keys // BLOCK, mask=is_seen, other=0)
            place = (block.to(tl.int64) * BLOCK + keys % BLOCK) * SIZE
            here = place[:, None] + dims[None, :]
            is_number = is_seen[:, None] & (dims[None, :] < SIZE)
            k = tl.load(keys_at + here, mask=is_number, other=0.0).to(OPERAND)
            v = tl.load(values_at + here, mask=is_number, other=0.0).to(OPERAND)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if CAPPED:
                # tanh(x) = 2 sigmoid(2x) - 1
                scores = (2 * tl.sigmoid(2 * (scores / cap)) - 1) * cap * 1.4426950408889634
            scores = tl.where(is_seen[None, :], scores, float("-inf"))
            # Every tile of a share has a key that is seen, so the largest score is never minus infinity.
            higher = tl.maximum(most, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
            fade = tl.exp2(most - higher)
            total = total * fade + tl.sum(weights, 1)
            mixed = mixed * fade[:, None] + tl.dot(weights.to(OPERAND), v, input_precision="ieee")
            most = higher
        result = ((row.to(tl.int64) * KV_HEADS + head) * GROUP + groups) * SHARES + share
        tl.store(most_of + result, most, mask=groups < GROUP)
        tl.store(sum_of + result, total, mask=groups < GROUP)
        tl.store(partial + result[:, None] * SIZE + dims[None, :], mixed, mask=is_query)


@triton.jit
def join_shares(
    partial,
    most_of,
    sum_of,
    lengths,
    sinks,
    out,
    value_scale,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_WIDE: tl.constexpr,
    SHARES: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
):
    """All shares of one sequence's query head, in the order of their keys."""
    row, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + row)
    _, _, tiles, own = cut(length, SHARES, LEAST_TILES, TILE, WINDOW)
    made = (tiles + own - 1) // own
    dims = tl.arange(0, SIZE_WIDE)
    at = row.to(tl.int64) * HEADS + head
    most = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    mixed = tl.full([SIZE_WIDE], 0.0, tl.float32)
    if SINKS:
        most = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total += 1.0
    for first in range(0, made, AT_ONCE):
        shares = first + tl.arange(0, AT_ONCE)
        is_made = shares < made
        highest_of = tl.load(most_of + at * SHARES + shares, mask=is_made, other=float("-inf"))
        totals = tl.load(sum_of + at * SHARES + shares, mask=is_made, other=0.0)
        is_number = is_made[:, None] & (dims[None, :] < SIZE)
        parts = tl.load(partial + (at * SHARES + shares[:, None]) * SIZE + dims[None, :], mask=is_number, other=0.0)
        higher = tl.maximum(most, tl.max(highest_of, 0))
        fade, weights = tl.exp2(most - higher), tl.exp2(highest_of - higher)
        total = total * fade + tl.sum(totals * weights, 0)
        mixed = mixed * fade + tl.sum(parts * weights[:, None], 0)
        most = higher
    mixed = mixed / tl.where(length > 0, total, 1.0) * value_scale
    tl.store(out + at * SIZE + dims, mixed.to(out.dtype.element_ty), mask=dims < SIZE)


@triton.jit
def turn_and_write(
    projected,
    query_norm,
    key_norm,
    cosines,
    sines,
    starts,
    lengths,
    tables,
    seats,
    query,
    layer,
    epsilon,
    key_factor,
    value_factor,
    projected_row,
    table_row,
    layer_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_WIDE: tl.constexpr,
    ROTATED: tl.constexpr,
    NORMED: tl.constexpr,
    STARTS: tl.constexpr,
    SEATED: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Some heads of one sequence's new token: queries are normed and turned, keys cached after that, values as is."""
    row, heads = tl.program_id(0).to(tl.int64), tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    position = tl.load(lengths + row) - 1
    seat = row
    if SEATED:
        seat = tl.load(seats + row).to(tl.int64)
    if position >= 0:
        dims = tl.arange(0, SIZE_WIDE)
        is_query, is_key = heads < HEADS, (heads >= HEADS) & (heads < HEADS + KV_HEADS)
        is_number = (heads < HEADS + 2 * KV_HEADS)[:, None] & (dims < SIZE)[None, :]
        source = projected + row * projected_row + heads[:, None] * SIZE
        number = tl.load(source + dims[None, :], mask=is_number, other=0.0).to(tl.float32)
        rotates = dims < ROTATED
        is_turned = (is_query | is_key)[:, None] & rotates[None, :]
        partners = tl.where(rotates, (dims + ROTATED // 2) % ROTATED, dims)
        partner = tl.load(source + partners[None, :], mask=is_turned, other=0.0).to(tl.float32)
        if NORMED:
            spread = tl.rsqrt(tl.sum(number * number, 1) / SIZE + epsilon)[:, None]
            of_query = tl.load(query_norm + dims, mask=dims < SIZE, other=0.0).to(tl.float32)[None, :]
            of_key = tl.load(key_norm + dims, mask=dims < SIZE, other=0.0).to(tl.float32)[None, :]
            weights = tl.where(is_query[:, None], of_query, of_key)
            number = tl.where((is_query | is_key)[:, None], number * (spread * weights), number)
            of_query = tl.load(query_norm + partners, mask=rotates, other=0.0).to(tl.float32)[None, :]
            of_key = tl.load(key_norm + partners, mask=rotates, other=0.0).to(tl.float32)[None, :]
            partner *= spread * tl.where(is_query[:, None], of_query, of_key)
        turn = position.to(tl.int64)
        if STARTS:
            turn += tl.load(starts + seat)
        cosine = tl.load(cosines + turn * ROTATED + dims, mask=rotates, other=1.0).to(tl.float32)[None, :]
        sine = tl.load(sines + turn * ROTATED + dims, mask=rotates, other=0.0).to(tl.float32)[None, :]
        number = tl.where(is_turned, number * cosine + partner * sine, number)
        to = query + (row * HEADS + heads[:, None]) * SIZE + dims[None, :]
        tl.store(to, number.to(query.dtype.element_ty), mask=is_number & is_query[:, None])
        if LIMIT > 0:
            number *= tl.where(is_key, key_factor, value_factor)[:, None]
            number = tl.minimum(tl.maximum(number, -LIMIT), LIMIT)
        block = tl.load(tables + seat * table_row + position // BLOCK).to(tl.int64)
        place = (heads - HEADS).to(tl.int64) * layer_head + (block * BLOCK + position % BLOCK) * SIZE
        to = layer + place[:, None] + dims[None, :]
        tl.store(to, number.to(layer.dtype.element_ty), mask=is_number & (heads >= HEADS)[:, None])


@triton.jit
def gate(
    both,
    out,
    both_row,
    limit,
    alpha,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMITED: tl.constexpr,
):
    """Part of a row of `activation(gate) * up`, of which `both` has the gates before the ups."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * PART + tl.arange(0, PART)
    is_number = columns < WIDTH
    x = tl.load(both + row * both_row + columns, mask=is_number, other=0.0).to(tl.float32)
    up = tl.load(both + row * both_row + WIDTH + columns, mask=is_number, other=0.0).to(tl.float32)
    if LIMITED:
        x, up = tl.minimum(x, limit), tl.minimum(tl.maximum(up, -limit), limit) + 1
        x = x * tl.sigmoid(x * alpha)
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    else:
        # tanh(x) = 2 sigmoid(2x) - 1
        x = x * tl.sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x))
    tl.store(out + row * WIDTH + columns, (x * up).to(out.dtype.element_ty), mask=is_number)
