"""The feed-forward half of a block: one pair of matrices, or a mixture of experts.

Called by the decoder. Rows of a decode step belong to different requests (`shared`): there an expert computes all
rows, each at its place, and those that were not sent to it are dropped, so that a row's bits do not depend on where
its neighbours were sent. A prompt's rows are one request's, and each expert gets its own of them only.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Protocol

import torch
import torch.nn.functional as F

from tandem_server.engine.native.config import ExpertsConfig
from tandem_server.engine.native.cpu_linear import CompiledLinear
from tandem_server.engine.native.linear import Linear

Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""By the names in `config.ACTIVATIONS`."""


@cache
def _gate_kernel() -> Callable[[torch.Tensor, str], torch.Tensor]:
    from tandem_server.engine.native.paged_attention import gated  # late: only a GPU's machine has triton

    return gated


class FeedForward(Protocol):
    """What stands behind a block's second norm."""

    def __call__(self, x: torch.Tensor, shared: bool) -> torch.Tensor:
        """`[rows, hidden]` to the same; `shared` where the rows are of several requests."""

    def onto(self, residual: torch.Tensor, x: torch.Tensor, shared: bool) -> torch.Tensor:
        """`residual` plus it."""

    def linears(self) -> list[Linear]:
        """Every matrix in it."""


class Dense:
    """`down(activation(gate(x)) * up(x))`, gate and up one matrix."""

    def __init__(self, gate_up: Linear, down: Linear, activation: str) -> None:
        self._gate_up, self._down, self._activation = gate_up, down, activation

    def __call__(self, x: torch.Tensor, shared: bool) -> torch.Tensor:
        return self._down(self._inner(x))

    def onto(self, residual: torch.Tensor, x: torch.Tensor, shared: bool) -> torch.Tensor:
        return self._down.onto(residual, self._inner(x))

    def linears(self) -> list[Linear]:
        return [self._gate_up, self._down]

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self._gate_up, CompiledLinear) and self._activation == "silu":
            return self._gate_up.gated(x)
        both = self._gate_up(x)
        if both.is_cuda:
            return _gate_kernel()(both, self._activation)
        gate, up = both.chunk(2, -1)
        return ACTIVATIONS[self._activation](gate) * up


class Experts:
    """Each row goes through the `chosen` experts that its router scores highest, weighted by their shares."""

    def __init__(
        self, config: ExpertsConfig, router: Linear, gate_ups: list[Linear], downs: list[Linear], activation: str
    ) -> None:
        self._config, self._router = config, router
        self._gate_ups, self._downs, self._activation = gate_ups, downs, ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor, shared: bool) -> torch.Tensor:
        weights, chosen = self._route(x)
        result = torch.zeros_like(x)
        for expert, rows, places in _by_expert(chosen):
            part = self._expert(expert, x)[rows] if shared else self._expert(expert, x[rows])
            result.index_add_(0, rows, part * weights[rows, places, None])
        return result

    def onto(self, residual: torch.Tensor, x: torch.Tensor, shared: bool) -> torch.Tensor:
        return residual + self(x, shared)

    def linears(self) -> list[Linear]:
        return [self._router, *self._gate_ups, *self._downs]

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares and numbers of each row's experts, `[rows, chosen]`.

        A softmax over the chosen ones only is the whole softmax divided by their sum.
        """
        shares, chosen = self._router(x).float().softmax(-1).topk(self._config.chosen, -1)
        if self._config.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares.to(x.dtype), chosen

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate_ups[expert](x).chunk(2, -1)
        limit, alpha = self._config.limit, self._config.alpha
        if limit is None:
            return self._downs[expert](self._activation(gate) * up)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return self._downs[expert](gate * torch.sigmoid(gate * alpha) * (up + 1))


def _by_expert(chosen: torch.Tensor) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Each expert that any row goes through, by rising number, with those rows and its place in their lists."""
    order, width = chosen.flatten().argsort(stable=True), chosen.shape[1]
    found, first = [], 0
    for expert, count in enumerate(chosen.flatten().bincount().tolist()):
        if count:
            part = order[first : first + count]
            found.append((expert, part // width, part % width))
        first += count
    return found
