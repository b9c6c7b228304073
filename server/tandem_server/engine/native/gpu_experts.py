"""A mixture of experts on a GPU, without asking the device where its router sent the rows: so graphs can record it.

Takes the place of `Experts` where matrices are held as they are. All experts of a layer are one tensor. Few rows: each
goes through its experts by itself. Many: rows are sorted by expert on the device, and each program takes some of one
expert's, of as many programs as there can be at most. A row's bits depend on neither, for its sums run in one order.
"""

from collections.abc import Iterable
from functools import cache
from types import ModuleType

import torch

from tandem_server.engine.native.config import ExpertsConfig
from tandem_server.engine.native.feedforward import Experts
from tandem_server.engine.native.linear import Linear, PlainLinear

Matrices = tuple[torch.Tensor, torch.Tensor | None]
"""Weights `[experts, outputs, inputs]` and biases `[experts, outputs]`; or those of one expert."""
Tiles = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
"""Each program's expert; where rows are sorted also their order, each program's first one in it, and how many."""


@cache
def _kernels() -> tuple[ModuleType, ModuleType]:
    from tandem_server.engine.native import expert_kernels, paged_attention  # late: only a GPU's machine has triton

    return expert_kernels, paged_attention


def stacked(matrices: Iterable[Matrices], count: int) -> Matrices:
    """The `count` experts' as one tensor, little of which is held twice."""
    weights: torch.Tensor | None = None
    biases: torch.Tensor | None = None
    for number, (weight, bias) in enumerate(matrices):
        if weights is None:
            weights = weight.new_empty(count, *weight.shape)
            biases = None if bias is None else bias.new_empty(count, *bias.shape)
        weights[number] = weight
        if bias is not None and biases is not None:
            biases[number] = bias
    assert weights is not None
    return weights, biases


class StackedExperts(Experts):
    """See `Experts`; `gate_up` and `down` are `stacked`."""

    def __init__(
        self, config: ExpertsConfig, router: Linear, gate_up: Matrices, down: Matrices, activation: str
    ) -> None:
        super().__init__(config, router, _views(gate_up), _views(down), activation)
        self._gate_up, self._down, self._name = gate_up, down, activation

    def __call__(self, x: torch.Tensor, shared: bool) -> torch.Tensor:
        config, chosen_count = self._config, self._config.chosen
        weights, chosen = self._route(x)
        rows = _rows(chosen.numel(), config.count)
        tiles = (chosen.flatten(), None, None, None) if not rows else _tiles(chosen.flatten(), config.count, rows)
        both = _multiply(x, self._gate_up, tiles, rows, chosen_count, None)
        inner = _kernels()[1].gated(both, self._name, config.limit, config.alpha)
        parts = _multiply(inner, self._down, tiles, rows, 1, weights)
        return parts.view(len(x), chosen_count, -1).sum(1)


def _views(matrices: Matrices) -> list[Linear]:
    weights, biases = matrices
    return [PlainLinear(weight, None if biases is None else biases[n]) for n, weight in enumerate(weights)]


def _rows(pairs: int, experts: int) -> int:
    """Pairs of one expert that a program multiplies at once; 0: they are not sorted, a program takes a single one."""
    if pairs <= experts:
        return 0
    return 16 if pairs <= 32 * experts else 64


def _tiles(chosen: torch.Tensor, experts: int, rows: int) -> Tiles:
    """Pairs `chosen` `[pairs]` in the order of their experts, cut into programs' shares: no more than there can be."""
    numbers = torch.arange(len(chosen) // rows + min(experts, len(chosen)), device=chosen.device)
    counts = torch.zeros(experts, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen))
    tiles = (counts + rows - 1) // rows
    ends = tiles.cumsum(0)
    expert = torch.searchsorted(ends, numbers, right=True)
    own = expert.clamp(max=experts - 1)
    skipped = (numbers - (ends - tiles)[own]) * rows
    firsts = (counts.cumsum(0) - counts)[own] + skipped
    left = torch.where(expert < experts, counts[own] - skipped, 0).clamp(max=rows)
    return own, chosen.argsort(stable=True), firsts, left


def _multiply(
    x: torch.Tensor, matrices: Matrices, tiles: Tiles, rows: int, chosen: int, factors: torch.Tensor | None
) -> torch.Tensor:
    """`[pairs, outputs]` of `x`, whose row i // chosen is pair i's; times `factors`, one for each pair."""
    (weights, biases), (experts, order, firsts, counts) = matrices, tiles
    _, outputs, inputs = weights.shape
    kernel, paged = _kernels()
    out = torch.empty(len(x) * chosen, outputs, dtype=x.dtype, device=x.device)
    exact = x.element_size() > 2
    columns = 32 if exact else 128 if rows > 16 else 64
    kernel.multiply[(len(experts), -(-outputs // columns))](
        x,
        weights,
        x if biases is None else biases,
        x if factors is None else factors,
        out,
        experts,
        experts if order is None else order,
        experts if firsts is None else firsts,
        experts if counts is None else counts,
        INPUTS=inputs,
        OUTPUTS=outputs,
        CHOSEN=chosen,
        # float32 is multiplied without tensor cores, which takes more registers.
        ROWS=16 if exact else max(16, rows),
        COLUMNS=columns,
        DEPTH=32 if exact else 64,
        SORTED=order is not None,
        BIASED=biases is not None,
        WEIGHTED=factors is not None,
        OPERAND=paged.OPERANDS[x.dtype],
        num_warps=4,
        num_stages=3 if exact else 4,
    )
    return out
