"""The fused decoder on a GPU: kernels that find the cache's blocks themselves take the place of views and gathers.

Between `gpu_step.py` and `paged_attention.py`. A decode step reads everything from the device, so that it can be
recorded. Chunks of prompts, of one or of many, are normed, turned and cached by the same kernel, then attended to by
another one of ours; or, where a chunk is long and needs no mask, by torch with the platform's flash attention.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.attention import Attend
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig, LayerConfig
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.feedforward import Dense
from tandem_server.engine.native.gpu_experts import StackedExperts
from tandem_server.engine.native.prompts import Part, rows_of, slices_of, work_of
from tandem_server.engine.native.transfer import upload_each
from tandem_server.engine.native.weights import DecoderWeights, LayerWeights

FLASH_FROM = 512
"""Tokens of a chunk: torch attends to one sequence at a time, which costs the host more than short ones are worth."""


class PagedKernels(Protocol):
    """Attention that finds its blocks itself; see `PagedAttention`, which is it on a GPU."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt that one program computes."""

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
        """The same for many tokens of each sequence."""


MakeKernels = Callable[[DecoderConfig, PagedCache, torch.dtype], PagedKernels]


def gpu_kernels() -> MakeKernels:
    """Makes the kernels that a GPU attends by. Raises LoadError where triton is missing."""
    try:
        from tandem_server.engine.native.paged_attention import PagedAttention
    except ImportError as error:
        raise LoadError(f"attention on a GPU needs triton, which comes with torch for CUDA: {error}") from None
    return PagedAttention.of


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
        """Whether a decode step never asks the device for a number, as quantised experts do: where rows were sent."""
        return all(isinstance(layer.feed, Dense | StackedExperts) for layer in self.weights.layers)

    def begin(self, slot: int, length: int) -> None:
        """See `Decoder.begin`."""
        super().begin(slot, length)
        if self._starts is not None:
            # Not by an assignment: to one number that is a copy from the host, which waits for the device.
            self._starts[slot : slot + 1].fill_(self._rope_starts[slot])

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

    def head_into(self, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        """As `head`, written to `logits`."""
        logits.copy_(self.weights.head(hidden))
        cap = self.config.logit_cap
        if cap is not None:
            logits.div_(cap).tanh_().mul_(cap)

    def prefill(self, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """See `Decoder.prefill`."""
        return self.prefill_together(tokens, [Part(slot, start, len(tokens))])

    def prefill_together(self, tokens: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        """Chunks of several prompts in one forward.

        Args:
            tokens: int64 `[rows]`, of one part after the other.
            parts: what they are, each slot at most once.

        Returns:
            Hidden states of each part's last token, `[parts, hidden]`, normalised.
        """
        config, tables = self.config, self.cache.tables
        windows = list({layer.window for layer in config.layer_configs})
        work = [work_of(parts, self._kernels.prompt_tokens, partial(self._flashes, window)) for window in windows]
        seats, lengths, last, *on_device = upload_each((*rows_of(parts), *work), self.device)
        attends = {
            window: self._attend_prompts(parts, own.view(-1, 4), window)
            for window, own in zip(windows, on_device, strict=True)
        }
        x = self._embed(tokens)
        layers = zip(self.weights.layers, config.layer_configs, self.cache.layers, strict=True)
        for index, (layer, own, cached) in enumerate(layers):
            query = self._turn_and_write(x, layer, own, cached, tables, lengths, self._starts, seats)
            x = self._finish(layer, x, attends[own.window](index, query).view(len(x), -1), shared=False)
        return self._norm(x.index_select(0, last), self.weights.norm)

    def _flashes(self, window: int | None, part: Part) -> bool:
        """Whether the platform's own attention is the faster one: long, and without a mask."""
        unmasked = part.start == 0 and (window is None or part.count <= window)
        return self.config.plain_attention and unmasked and part.count >= FLASH_FROM

    def _attend_prompts(self, parts: Sequence[Part], work: torch.Tensor, window: int | None) -> Attend:
        """From layer and queries `[rows, kv_heads, group, size]` to mixed values of the same shape."""
        config = self.config
        flashing = [
            (rows, self._attention.prefill(part.slot, part.start, part.count, window))
            for part, rows in zip(parts, slices_of(parts), strict=True)
            if self._flashes(window, part)
        ]

        def attend(index: int, query: torch.Tensor) -> torch.Tensor:
            if len(work):
                mixed = self._kernels.attend_prompt(
                    query,
                    self.cache.layers[index],
                    self.cache.tables,
                    work,
                    scale=config.attention_scale or config.head_size**-0.5,
                    cap=config.attention_cap,
                    window=window,
                    sinks=self.weights.layers[index].sinks,
                )
            else:
                mixed = torch.empty_like(query)
            for rows, flash in flashing:
                mixed[rows] = flash(index, query[rows].permute(1, 2, 0, 3)).permute(2, 0, 1, 3)
            return mixed

        return attend

    def _turn_and_write(
        self,
        x: torch.Tensor,
        layer: LayerWeights,
        own: LayerConfig,
        cached: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        starts: torch.Tensor | None,
        seats: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Queries of a block, its keys and values put into the cache."""
        projected = layer.qkv(self._norm(x, layer.input_norm)).view(len(x), -1, self.config.head_size)
        norms, rope = (layer.query_norm, layer.key_norm), self._ropes[own.rope]
        epsilon = self.config.norm_epsilon
        return self._kernels.turn_and_write(projected, norms, epsilon, rope, cached, tables, lengths, starts, seats)
