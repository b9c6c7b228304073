"""The fused decoder on a CPU where our own kernels are compiled: one call computes a step, or a prompt's chunk.

Between `step.py` and `cpu_kernels`. Torch's operators cost more to call than small rows take to compute (half of a
step's time at batch 1, two thirds at 8), so norms, positions, the cache, attention and activations are done where the
matrices are multiplied. Attention finds a row's blocks in the cache's tables and reads what the row has and no more;
a prompt's tokens are to it as many sequences, one longer than the other, that share their blocks.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from tandem_server.engine.native.blocks import BLOCK
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.cpu_compiler import kernels
from tandem_server.engine.native.cpu_linear import LANES, CompiledLinear
from tandem_server.engine.native.cpu_structs import (
    ACTIVATIONS,
    Ends,
    Layer,
    Model,
    Step,
    activation_of,
    address,
    feeds_of,
    matrix_of,
)
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.weights import DecoderWeights

CHUNK, TILE, PHASES = 128, 48, 12
"""As in `structs.h`."""
LARGEST_HEAD = 256


def why_not(config: DecoderConfig) -> str | None:
    """What of the model the kernels do not compute; None: they compute it."""
    rotated = {layer.rope.rotated_size(config.head_size) for layer in config.layer_configs}
    sizes = [config.hidden, config.intermediate, config.head_size]
    sizes += [config.experts.intermediate] if config.experts else []
    found = {
        "experts between norms": config.experts is not None and config.family.sandwich,
        f"the activation {config.activation}": config.activation not in ACTIVATIONS,
        f"sizes that are no multiple of {LANES}": any(size % LANES for size in sizes),
        f"heads of {config.head_size}": config.head_size > LARGEST_HEAD,
        "layers that turn differently": len(rotated) > 1,
    }
    return next((what for what, is_so in found.items() if is_so), None)


class CpuDecoder(Decoder):
    """See `Decoder`; the weights are `CompiledLinear`s, and `why_not` finds nothing."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, slots: int, context: int, pool_blocks: int | None = None
    ) -> None:
        super().__init__(config, weights, slots, context, pool_blocks)
        library = kernels(self.dtype)
        self._kernel, self._cap = library.tandem_layers, library.tandem_cap
        self._ropes = {rope: (cos.contiguous(), sin.contiguous()) for rope, (cos, sin) in self._ropes.items()}
        self._stride = self.cache.slot_blocks
        self._kept: list[Any] = []
        """What the structures point to, beside the weights."""
        layers = (Layer * config.layers)(*(self._layer_struct(index) for index in range(config.layers)))
        self._kept.append(layers)
        threads, experts = torch.get_num_threads(), config.experts
        self.model = Model(
            layers,
            self._norm_address(weights.norm),
            config.layers,
            config.hidden,
            config.heads,
            config.kv_heads,
            config.head_size,
            config.layer_configs[0].rope.rotated_size(config.head_size),
            self.cache.layers[0].shape[1],
            threads,
            experts.chosen if experts else 1,
            bool(experts and experts.normalised),
            activation_of(config),
            config.norm_epsilon,
            config.attention_scale or config.head_size**-0.5,
            config.attention_cap or 0.0,
        )
        queries = max(TILE, config.heads // config.kv_heads)
        self._attention_width = queries * (2 * (CHUNK + config.head_size) + 2)
        self._attention_scratch = torch.empty(threads, self._attention_width)
        self._counters = torch.empty(config.layers * PHASES + 1, dtype=torch.int64)
        # Experts' rows are as many as are chosen for each.
        self._sums_width = self.model.chosen * max(
            m.sums_width for m in weights.linears() if isinstance(m, CompiledLinear)
        )
        self._scratch = self._scratch_of(slots)

    @property
    def span(self) -> int:
        """See `Decoder.span`: nothing is read beyond the block of a sequence's last token."""
        return BLOCK

    def prove_span(self) -> None:
        """Nothing is to be found out: attention reads what a row has and no more."""

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        """See `Decoder.decode`."""
        rows = len(lengths)
        turned = positions
        if any(self._rope_starts[:rows]):
            turned = positions + torch.tensor(self._rope_starts[:rows])
        seen = torch.tensor(lengths, dtype=torch.int32)
        return self._layers(tokens, turned, seen, self.cache.tables, self._stride, 0)

    def prefill(self, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """See `Decoder.prefill`."""
        end = start + len(tokens)
        turned = torch.arange(start, end) + self._rope_starts[slot]
        seen = torch.arange(start + 1, end + 1, dtype=torch.int32)
        return self._layers(tokens, turned, seen, self.cache.tables[slot], 0, len(tokens) - 1)

    def _layers(
        self,
        tokens: torch.Tensor,
        turned: torch.Tensor,
        seen: torch.Tensor,
        tables: torch.Tensor,
        table_stride: int,
        first: int,
    ) -> torch.Tensor:
        """`Step` of `structs.h`: hidden states of the rows from `first` on, normalised."""
        rows = len(tokens)
        if rows > len(self._scratch[0]):
            self._scratch = self._scratch_of(rows)
        x = self._embed(tokens).float()
        hidden = torch.empty(rows - first, self.config.hidden, dtype=self.dtype)
        addresses = [tensor.data_ptr() for tensor in (turned, seen, tables, x, hidden)]
        step = self._step_struct(addresses, rows, first, table_stride)
        self._kernel(ctypes.byref(self.model), ctypes.byref(step))
        return hidden

    def decode_struct(self, rows: int, turned: int, lengths: int, x: int, hidden: int) -> Step:
        """`Step` of `structs.h` for one token of each of the first `rows` slots; the rest are addresses."""
        return self._step_struct((turned, lengths, self.cache.tables.data_ptr(), x, hidden), rows, 0, self._stride)

    def _step_struct(self, addresses: Sequence[int], rows: int, first: int, table_stride: int) -> Step:
        """Of its first five fields and the decoder's own scratch, which has room for `rows`."""
        scratch = (tensor.data_ptr() for tensor in (*self._scratch, self._attention_scratch, self._counters))
        return Step(*addresses, *scratch, rows, first, table_stride, self._sums_width, self._attention_width)

    def ends_struct(self, logits: torch.Tensor) -> Ends:
        """`Ends` of `structs.h`."""
        scale, cap = self._embedding_scale, self.config.logit_cap
        rounded = 0.0 if scale is None else float(torch.tensor(scale, dtype=self.dtype))
        table = self.weights.embedding
        return Ends(address(table), matrix_of(self.weights.head), logits.data_ptr(), 0.0, rounded, cap or 0.0)

    def _scratch_of(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Room for `rows` rows; kept, for fresh memory costs a fault a page."""
        config = self.config
        experts, pairs = config.experts, rows * self.model.chosen
        blocked = pairs if experts else rows if config.family.sandwich else 0
        gathered, routed = (pairs, rows) if experts else (0, 0)
        inner = max(rows * config.intermediate, pairs * experts.intermediate if experts else 0)
        count = experts.count if experts else 0
        return (
            torch.empty(rows, config.qkv_width),
            torch.empty(rows, config.heads * config.head_size, dtype=self.dtype),
            torch.empty(inner, dtype=self.dtype),
            torch.empty(rows, config.hidden, dtype=self.dtype),
            torch.empty(blocked, config.hidden),
            torch.empty(gathered, config.hidden, dtype=self.dtype),
            torch.empty(routed, count + -count % LANES),
            torch.empty(gathered),
            torch.empty(2 * gathered + 2 * (count + 1), dtype=torch.int32),
            torch.empty(self.model.threads * rows * self._sums_width),
        )

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Decoder.head`; the logits are not rounded to the weights' format."""
        head, cap = self.weights.head, self.config.logit_cap
        assert isinstance(head, CompiledLinear)
        logits = head.floats(hidden)
        if cap is None:
            return logits
        if logits.shape[1] % LANES:
            return logits.div_(cap).tanh_().mul_(cap)
        # By the very function that a step of one call takes: a row's bits must not depend on which it is.
        rows, width = (ctypes.c_int64(size) for size in logits.shape)
        address_of = ctypes.c_void_p(logits.data_ptr())
        self._cap(address_of, rows, width, ctypes.c_float(cap), ctypes.c_int64(self.model.threads))
        return logits

    def _layer_struct(self, index: int) -> Layer:
        layer, own = self.weights.layers[index], self.config.layer_configs[index]
        router, feeds, experts = feeds_of(layer.feed.linears(), own.sparse)
        self._kept.append(feeds)
        norms = (layer.input_norm, layer.feed_norm, layer.attention_norm, layer.feed_output_norm)
        return Layer(
            matrix_of(layer.qkv),
            matrix_of(layer.output),
            router,
            feeds,
            *map(self._norm_address, (*norms, layer.query_norm, layer.key_norm)),
            address(layer.sinks),
            *map(address, self._ropes[own.rope]),
            address(self.cache.layers[index]),
            own.window or 0,
            experts,
        )

    def _norm_address(self, weight: torch.Tensor | None) -> int | None:
        """Of a norm's weight in float32."""
        exact = None if weight is None else weight.float()
        self._kept.append(exact)
        return address(exact)
