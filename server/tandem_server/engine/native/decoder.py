"""The fused decoder: token ids in, last hidden states and logits out, keys and values kept in `cache.py`.

On the path of a step, between the plan and the sampler. A row's result depends on its own tokens only: attention
spans are multiples of `span`, prompts run in chunks whose borders are the request's own, and the matrices are
row-invariant (see `linear.py`). Where a sequence's blocks lie changes what is copied, never a bit of the result.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tandem_server.engine.native.blocks import SPAN
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.rope import rope_tables
from tandem_server.engine.native.weights import DecoderWeights, LayerWeights

FINER_SPANS = (64, 128, 256)
UNEVEN = 2
"""Above this ratio of computed to needed spans, slots are attended to one by one rather than at the longest span."""

Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""Layer and queries `[rows, kv_heads, heads per kv_head, size]` to mixed values of the same shape."""


class Decoder:
    """A decoder with room for `slots` sequences of `context` tokens."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, slots: int, context: int, pool_blocks: int | None = None
    ) -> None:
        self.span = SPAN
        """Decode steps attend to a multiple of so many keys; see `prove_span`."""
        self.config, self.weights, self.slots, self.context = config, weights, slots, context
        table = weights.embedding
        self.device, self.dtype = table.device, table.dtype
        self.cache = PagedCache(config, slots, context, self.dtype, self.device, pool_blocks)
        self.capacity = self.cache.capacity
        self._flat = [layer.view(-1, config.head_size) for layer in self.cache.layers]
        self._cos, self._sin = rope_tables(config.rope, config.head_size, self.capacity, self.dtype, self.device)
        self._head_starts = torch.arange(2 * config.kv_heads, device=self.device) * self.cache.layers[0].shape[1]
        self._keys = torch.arange(self.capacity, device=self.device)

    @property
    def cache_bytes(self) -> int:
        """Memory of all slots' keys and values."""
        return self.cache.pool.nbytes

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        """One token for each of the first `len(tokens)` slots.

        Args:
            tokens: int64 `[rows]`, the input token of each slot (any valid id where the slot does not take part).
            positions: int64 `[rows]`, where it stands in its sequence; see `PagedCache.locate`.
            places: int64 `[rows]`, where it stands in the pool.
            lengths: on the host: keys to attend to, 0 where the slot does not take part.

        Returns:
            Hidden states `[rows, hidden]`, normalised.
        """
        rows, kv, size = len(lengths), self.config.kv_heads, self.config.head_size
        attend = self._attention(positions, lengths)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        targets = (places[:, None] + self._head_starts).view(-1)
        x = F.embedding(tokens, self.weights.embedding)
        for index, layer in enumerate(self.weights.layers):
            qk, v = self._project(layer, x, cos, sin)
            query, key = qk[:, : self.config.heads], qk[:, self.config.heads :]
            self._flat[index].index_copy_(0, targets, torch.cat((key, v), 1).view(-1, size))
            mixed = attend(index, query.reshape(rows, kv, -1, size))
            x = self._finish(layer, x, mixed.reshape(rows, -1))
        return F.rms_norm(x, (self.config.hidden,), self.weights.norm, self.config.norm_epsilon)

    def _attention(self, positions: torch.Tensor, lengths: list[int]) -> Attend:
        """How this step's rows attend: all at once at the longest span, or one by one where that is far too long."""
        rows, kv, cache = len(lengths), self.config.kv_heads, self.cache
        spans = [min(-(-length // self.span) * self.span, self.capacity) for length in lengths]
        span = max(spans)
        at_home = cache.at_home(lengths)
        # Views one by one are cheaper than one copy of all.
        uneven = rows * span > UNEVEN * sum(spans) or (not at_home and cache.in_runs(lengths))
        for slot, length in enumerate(lengths):
            if length:
                cache.clean(slot, spans[slot] if uneven else span)
        unseen = self._keys[:span] > positions[:, None]
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device).masked_fill_(unseen, float("-inf"))
        mask = mask[:, None, None]

        def one_by_one(layer: int, query: torch.Tensor) -> torch.Tensor:
            mixed = torch.zeros_like(query)
            for slot, own in enumerate(spans):
                if own:
                    both = cache.read(layer, slot, own)[None]
                    row = slice(slot, slot + 1)
                    mixed[row] = F.scaled_dot_product_attention(
                        query[row], both[:, :kv], both[:, kv:], attn_mask=mask[row, ..., :own]
                    )
            return mixed

        if uneven:
            return one_by_one
        index = None if at_home else cache.gather_index(lengths, span)

        def together(layer: int, query: torch.Tensor) -> torch.Tensor:
            both = cache.together(layer, rows, span) if index is None else cache.gather(layer, index, rows, span)
            return F.scaled_dot_product_attention(query, both[:, :kv], both[:, kv:], attn_mask=mask)

        return together

    def prefill(self, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """A chunk of one slot's prompt.

        Args:
            slot: which.
            tokens: int64 `[count]`, standing at `start` and after it.
            start: how many of the slot's tokens are in the cache already.

        Returns:
            The last token's hidden state `[1, hidden]`, normalised.
        """
        count, kv, size = len(tokens), self.config.kv_heads, self.config.head_size
        end, group = start + count, self.config.heads // kv
        cos, sin = self._cos[start:end, None], self._sin[start:end, None]
        mask = None
        if start:
            unseen = self._keys[:end] > self._keys[start:end, None]
            mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device).masked_fill_(unseen, float("-inf"))
        x = F.embedding(tokens, self.weights.embedding)
        for index, layer in enumerate(self.weights.layers):
            qk, v = self._project(layer, x, cos, sin)
            self.cache.write(index, slot, start, torch.cat((qk[:, self.config.heads :], v), 1).transpose(0, 1))
            own = self.cache.read(index, slot, end)
            # Key heads stand where the batch would, and their query heads share them through a stride of zero.
            mixed = F.scaled_dot_product_attention(
                qk[:, : self.config.heads].transpose(0, 1).view(kv, group, count, size),
                own[:kv, None].expand(kv, group, end, size),
                own[kv:, None].expand(kv, group, end, size),
                attn_mask=mask,
                is_causal=mask is None,
            )
            x = self._finish(layer, x, mixed.reshape(-1, count, size).transpose(0, 1).reshape(count, -1))
        return F.rms_norm(x[-1:], (self.config.hidden,), self.weights.norm, self.config.norm_epsilon)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[rows, vocabulary]`."""
        return self.weights.head(hidden).float()

    @torch.inference_mode()
    def prove_span(self) -> None:
        """Takes the finest span whose results are bit for bit those of `SPAN`, on this machine and in this dtype.

        Short sequences then cost less, and the answer still does not depend on how far the longest neighbour is.
        """
        whole, kv, size = min(SPAN, self.capacity), self.config.kv_heads, self.config.head_size
        generator = torch.Generator().manual_seed(20_260_102)
        shape = (self.slots, kv, self.config.heads // kv + 2 * whole, size)
        random = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        query, keys, values = random[:, :, 2 * whole :], random[:, :, :whole], random[:, :, whole : 2 * whole]

        def attend(length: int, span: int) -> torch.Tensor:
            mask = torch.zeros(1, 1, 1, span, dtype=self.dtype, device=self.device)
            mask[..., length:] = float("-inf")
            return F.scaled_dot_product_attention(query, keys[:, :, :span], values[:, :, :span], attn_mask=mask)

        for span in FINER_SPANS:
            lengths = [1, span // 2 + 1, *range(span, whole, span)]
            if all(torch.equal(attend(n, min(-(-n // span) * span, whole)), attend(n, whole)) for n in lengths):
                self.span = span
                return

    def _project(
        self, layer: LayerWeights, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys, turned to their positions, `[rows, heads + kv_heads, size]`; values."""
        config, epsilon = self.config, self.config.norm_epsilon
        normed = F.rms_norm(x, (config.hidden,), layer.input_norm, epsilon)
        qkv = layer.qkv(normed).view(len(x), -1, config.head_size)
        turning = config.heads + config.kv_heads
        qk, v = qkv[:, :turning], qkv[:, turning:]
        if layer.query_norm is not None:
            size = (config.head_size,)
            query = F.rms_norm(qk[:, : config.heads], size, layer.query_norm, epsilon)
            qk = torch.cat((query, F.rms_norm(qk[:, config.heads :], size, layer.key_norm, epsilon)), 1)
        return torch.addcmul(qk * cos, qk.roll(config.head_size // 2, -1), sin), v

    def _finish(self, layer: LayerWeights, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """What follows attention in a block: output projection and feed-forward, each onto the residual."""
        x = layer.output.onto(x, mixed)
        normed = F.rms_norm(x, (self.config.hidden,), layer.post_norm, self.config.norm_epsilon)
        gate, up = layer.gate_up(normed).chunk(2, -1)
        return layer.down.onto(x, F.silu(gate) * up)
