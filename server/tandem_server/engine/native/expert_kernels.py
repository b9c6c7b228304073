# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201
"""Triton kernel of experts: rows times the matrices of the experts that they were sent to.

Launched by `gpu_experts.py`. A row and one of its experts are a pair; pair i is of row i // CHOSEN. Names in capitals
are known when the kernel is compiled.
"""

import triton
import triton.language as tl


@triton.jit
def multiply(
    x,
    weights,
    biases,
    factors,
    out,
    experts,
    order,
    firsts,
    counts,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SORTED: tl.constexpr,
    BIASED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Some columns of up to `ROWS` pairs of one expert; sums go through the inputs in one order, whatever the rows."""
    tile, rows = tl.program_id(0), tl.arange(0, ROWS)
    count = tl.load(counts + tile).to(tl.int32) if SORTED else 1
    if count > 0:
        expert = tl.load(experts + tile).to(tl.int64)
        is_row = rows < count
        if SORTED:
            pair = tl.load(order + tl.load(firsts + tile) + rows, mask=is_row, other=0).to(tl.int64)
        else:
            pair = tile.to(tl.int64) + rows * 0
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = columns < OUTPUTS
        from_x = x + (pair // CHOSEN)[:, None] * INPUTS
        from_weights = weights + expert * OUTPUTS * INPUTS + columns[None, :] * INPUTS
        sums = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
        for first in range(0, INPUTS, DEPTH):
            depth = first + tl.arange(0, DEPTH)
            is_input = depth < INPUTS
            a = tl.load(from_x + depth[None, :], mask=is_row[:, None] & is_input[None, :], other=0.0)
            b = tl.load(from_weights + depth[:, None], mask=is_input[:, None] & is_column[None, :], other=0.0)
            sums += tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision="ieee")
        if BIASED:
            sums += tl.load(biases + expert * OUTPUTS + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
        if WEIGHTED:
            sums *= tl.load(factors + pair, mask=is_row, other=0.0).to(tl.float32)[:, None]
        to = out + pair[:, None] * OUTPUTS + columns[None, :]
        tl.store(to, sums.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])
