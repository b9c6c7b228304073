"""The fused decoder on a GPU: kernels that find the cache's blocks themselves take the place of views and gathers.

Between `gpu_step.py` and `paged_attention.py`. A decode step reads everything from the device, so that it can be
recorded; a prompt's chunk is normed, turned and cached by the same kernel, then attended to by torch, whose attention
is the platform's flash attention wherever no mask is needed: in a prompt's first chunk without a window.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from tandem_server.engine.native.attention import Attend
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig, LayerConfig
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.feedforward import Dense
from tandem_server.engine.native.weights import DecoderWeights, LayerWeights


class PagedKernels(Protocol):
    """Attention that finds its blocks itself; see `PagedAttention`, which is it on a GPU."""

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
    ) -> torch.Tensor:
        """Norms and turns queries and keys, writes what is new to the cache, gives the queries."""

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
        """Mixed values of the queries' shape."""


MakeKernels = Callable[[DecoderConfig, PagedCache, torch.dtype], PagedKernels]


class GpuDecoder(Decoder):
    """See `Decoder`.

    Args:
        config: shape of the model.
        weights: on the device.
        slots: sequences at once.
        context: tokens of each.
        make_kernels: `PagedAttention.of`.
        pool_blocks: of the memory that all slots share; None: each has its own.
        cache_dtype: of keys and values; None: as the weights.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        slots: int,
        context: int,
        make_kernels: MakeKernels,
        pool_blocks: int | None = None,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, weights, slots, context, pool_blocks, cache_dtype)
        self._kernels = make_kernels(config, self.cache, self.dtype)
        # Only where positions may begin elsewhere than in the first row of their tables.
        self._starts = None if self.switch is None else torch.zeros(slots, dtype=torch.int64, device=self.device)

    def prove_span(self) -> None:
        """Nothing is to be found out: the kernels read what a row has and no more."""

    @property
    def recordable(self) -> bool:
        """Whether a decode step never asks the device for a number: what experts compute depends on the router."""
        return all(isinstance(layer.feed, Dense) for layer in self.weights.layers)

    def begin(self, slot: int, length: int) -> None:
        """See `Decoder.begin`."""
        super().begin(slot, length)
        if self._starts is not None:
            self._starts[slot] = self._rope_starts[slot]

    def decode_on_device(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """One token for each of the first `len(tokens)` slots; see `decode`, which is given numbers of the host.

        Args:
            tokens: int64 `[rows]`, any valid id where a slot does not take part.
            lengths: int32 `[rows]`, keys to attend to with the new one, 0 where the slot does not take part.

        Returns:
            Hidden states `[rows, hidden]`, normalised.
        """
        config, cache, rows = self.config, self.cache, len(lengths)
        scale = config.attention_scale or config.head_size**-0.5
        x = self._embed(tokens)
        for layer, own, cached in zip(self.weights.layers, config.layer_configs, cache.layers, strict=True):
            query = self._turn_and_write(x, layer, own, cached, cache.tables, lengths, self._starts)
            mixed = self._kernels.attend(
                query,
                cached,
                cache.tables,
                lengths,
                scale=scale,
                cap=config.attention_cap,
                window=own.window,
                sinks=layer.sinks,
            )
            x = self._finish(layer, x, mixed.view(rows, -1), shared=True)
        return self._norm(x, self.weights.norm)

    def prefill(self, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """See `Decoder.prefill`."""
        config, count = self.config, len(tokens)
        attends: dict[int | None, Attend] = {
            window: self._attention.prefill(slot, start, count, window)
            for window in {layer.window for layer in config.layer_configs}
        }
        # To the kernel a chunk is as many sequences, one longer than the other, that share their blocks.
        table = self.cache.tables[slot].expand(count, -1)
        lengths = torch.arange(start + 1, start + count + 1, dtype=torch.int32, device=self.device)
        starts = None if self._starts is None else self._starts[slot].repeat(count)
        x = self._embed(tokens)
        layers = zip(self.weights.layers, config.layer_configs, self.cache.layers, strict=True)
        for index, (layer, own, cached) in enumerate(layers):
            query = self._turn_and_write(x, layer, own, cached, table, lengths, starts).permute(1, 2, 0, 3)
            mixed = attends[own.window](index, query)
            x = self._finish(layer, x, mixed.permute(2, 0, 1, 3).reshape(count, -1), shared=False)
        return self._norm(x[-1:], self.weights.norm)

    def _turn_and_write(
        self,
        x: torch.Tensor,
        layer: LayerWeights,
        own: LayerConfig,
        cached: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        starts: torch.Tensor | None,
    ) -> torch.Tensor:
        """Queries of a block, its keys and values put into the cache."""
        projected = layer.qkv(self._norm(x, layer.input_norm)).view(len(x), -1, self.config.head_size)
        norms, rope = (layer.query_norm, layer.key_norm), self._ropes[own.rope]
        epsilon = self.config.norm_epsilon
        return self._kernels.turn_and_write(projected, norms, epsilon, rope, cached, tables, lengths, starts)
