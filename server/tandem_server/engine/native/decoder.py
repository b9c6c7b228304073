"""The fused decoder: token ids in, last hidden states and logits out, keys and values kept in `cache.py`.

On the path of a step, between the plan and the sampler. A row's result depends on its own tokens only: attention
spans are proven (`attention.py`), prompts run in chunks whose borders are the request's own, and the matrices are
row-invariant (see `linear.py`). Where a sequence's blocks lie changes what is copied, never a bit of the result.
What differs from family to family is in the weights and the configuration: a norm that is there or not, a number.
"""

import torch
import torch.nn.functional as F

from tandem_server.engine.native.attention import Attend, Attention
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.linear import Linear
from tandem_server.engine.native.rope import rope_tables
from tandem_server.engine.native.weights import DecoderWeights, LayerWeights


class Decoder:
    """A decoder with room for `slots` sequences of `context` tokens."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, slots: int, context: int, pool_blocks: int | None = None
    ) -> None:
        self.config, self.weights, self.slots, self.context = config, weights, slots, context
        table = weights.embedding
        self.device, self.dtype = table.device, table.dtype
        self.cache = PagedCache(config, slots, context, self.dtype, self.device, pool_blocks)
        self.capacity = self.cache.capacity
        self.switch = config.rope_switch(context)
        """A sequence that grows beyond so many tokens must be read again from its start; see `begin`."""
        self._attention = Attention(config, self.cache, [layer.sinks for layer in weights.layers])
        self._flat = [layer.view(-1, config.head_size) for layer in self.cache.layers]
        self._ropes = {
            layer.rope: rope_tables(
                layer.rope, config.head_size, self.capacity, self.dtype, self.device, self.switch is not None
            )
            for layer in config.layer_configs
        }
        self._rope_starts = [0] * slots
        """Row of the position tables where each slot's begin."""
        self._head_starts = torch.arange(2 * config.kv_heads, device=self.device) * self.cache.layers[0].shape[1]
        self._embedding_scale = config.hidden**0.5 if config.family.scaled_embedding else None

    @property
    def width(self) -> int:
        """A row carries its hidden state."""
        return self.config.hidden

    @property
    def span(self) -> int:
        """Decode steps attend to a multiple of so many keys."""
        return self._attention.span

    @property
    def cache_bytes(self) -> int:
        """Memory of all slots' keys and values."""
        return self.cache.pool.nbytes

    def linears(self) -> list[Linear]:
        """Every matrix that a step multiplies by."""
        return self.weights.linears()

    def prove_span(self) -> None:
        """Takes the finest attention span that changes no bit; see `Attention.prove`."""
        self._attention.prove()

    def begin(self, slot: int, length: int) -> None:
        """A sequence of `length` tokens is about to be read into `slot` from its first token on.

        Frequencies of the longrope kind depend on how long the whole sequence is, and so does everything in the cache.
        """
        long = self.switch is not None and length > self.switch
        self._rope_starts[slot] = self.capacity if long else 0

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
        config, rows, size = self.config, len(lengths), self.config.head_size
        attends = {
            window: self._attention.decode(positions, lengths, window)
            for window in {layer.window for layer in config.layer_configs}
        }
        turned = positions
        if any(self._rope_starts[:rows]):
            turned = positions + torch.tensor(self._rope_starts[:rows], device=self.device)
        ropes = {rope: (cos[turned][:, None], sin[turned][:, None]) for rope, (cos, sin) in self._ropes.items()}
        targets = (places[:, None] + self._head_starts).view(-1)
        x = self._embed(tokens)
        for index, (layer, own) in enumerate(zip(self.weights.layers, config.layer_configs, strict=True)):
            qk, v = self._project(layer, x, *ropes[own.rope])
            query, key = qk[:, : config.heads], qk[:, config.heads :]
            self._flat[index].index_copy_(0, targets, torch.cat((key, v), 1).view(-1, size))
            mixed = attends[own.window](index, query.reshape(rows, config.kv_heads, -1, size))
            x = self._finish(layer, x, mixed.reshape(rows, -1), shared=True)
        return self._norm(x, self.weights.norm)

    def prefill(self, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """A chunk of one slot's prompt.

        Args:
            slot: which.
            tokens: int64 `[count]`, standing at `start` and after it.
            start: how many of the slot's tokens are in the cache already.

        Returns:
            The last token's hidden state `[1, hidden]`, normalised.
        """
        config, count, size = self.config, len(tokens), self.config.head_size
        kv, first = config.kv_heads, start + self._rope_starts[slot]
        attends: dict[int | None, Attend] = {
            window: self._attention.prefill(slot, start, count, window)
            for window in {layer.window for layer in config.layer_configs}
        }
        rows = slice(first, first + count)
        ropes = {rope: (cos[rows, None], sin[rows, None]) for rope, (cos, sin) in self._ropes.items()}
        x = self._embed(tokens)
        for index, (layer, own) in enumerate(zip(self.weights.layers, config.layer_configs, strict=True)):
            qk, v = self._project(layer, x, *ropes[own.rope])
            self.cache.write(index, slot, start, torch.cat((qk[:, config.heads :], v), 1).transpose(0, 1))
            query = qk[:, : config.heads].transpose(0, 1).view(kv, -1, count, size)
            mixed = attends[own.window](index, query).reshape(-1, count, size)
            x = self._finish(layer, x, mixed.transpose(0, 1).reshape(count, -1), shared=False)
        return self._norm(x[-1:], self.weights.norm)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[rows, vocabulary]`."""
        logits, cap = self.weights.head(hidden).float(), self.config.logit_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.embedding(tokens, self.weights.embedding)
        # The scale is rounded to the number format first, as the checkpoints were trained.
        return x if self._embedding_scale is None else x * torch.tensor(self._embedding_scale, dtype=self.dtype)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype == x.dtype:
            return F.rms_norm(x, weight.shape, weight, self.config.norm_epsilon)
        return F.rms_norm(x.float(), weight.shape, weight, self.config.norm_epsilon).to(x.dtype)

    def _project(
        self, layer: LayerWeights, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys, turned to their positions, `[rows, heads + kv_heads, size]`; values."""
        config = self.config
        qkv = layer.qkv(self._norm(x, layer.input_norm)).view(len(x), -1, config.head_size)
        turning = config.heads + config.kv_heads
        qk, v = qkv[:, :turning], qkv[:, turning:]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = qk[:, : config.heads], qk[:, config.heads :]
            qk = torch.cat((self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)), 1)
        rotated = cos.shape[-1]
        if rotated == config.head_size:
            return torch.addcmul(qk * cos, qk.roll(rotated // 2, -1), sin), v
        part, rest = qk[..., :rotated], qk[..., rotated:]
        return torch.cat((torch.addcmul(part * cos, part.roll(rotated // 2, -1), sin), rest), -1), v

    def _finish(self, layer: LayerWeights, x: torch.Tensor, mixed: torch.Tensor, shared: bool) -> torch.Tensor:
        """What follows attention in a block: output projection and feed-forward, each onto the residual."""
        if layer.attention_norm is None:
            x = layer.output.onto(x, mixed)
        else:
            x = x + self._norm(layer.output(mixed), layer.attention_norm)
        normed = self._norm(x, layer.feed_norm)
        if layer.feed_output_norm is None:
            return layer.feed.onto(x, normed, shared)
        return x + self._norm(layer.feed(normed, shared), layer.feed_output_norm)
