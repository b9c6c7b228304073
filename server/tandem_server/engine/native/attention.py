"""How a step's rows attend to the cache: all at once or one by one, to everything before them or through a window.

Called by the decoders. torch's attention does the work where it can: its spans are multiples of `span`, so that a row
gives the same bits however long its neighbours are. Score caps and sinks it does not know; there `scored` computes
one sequence at a time over exactly the keys that it has, which needs no proof.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from tandem_api.fit_steps import SCORES_AT_ONCE
from tandem_server.engine.native.blocks import BLOCK, SPAN
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig

FINER_SPANS = (64, 128, 256)
UNEVEN = 2
"""Above this ratio of computed to needed keys, slots are attended to one by one rather than all over the same ones."""

Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""Layer and queries `[rows, kv_heads, heads per kv_head, size]` (in a prompt `[kv_heads, heads per kv_head, count,
size]`) to mixed values of the same shape."""


class Attention:
    """Attention over one cache."""

    def __init__(
        self, config: DecoderConfig, cache: PagedCache, dtype: torch.dtype, sinks: Sequence[torch.Tensor | None]
    ) -> None:
        self.span = SPAN
        """Decode steps attend to a multiple of so many keys; see `prove`."""
        self._skips = True
        """Spans that lie before a window are left out; see `prove`."""
        self._config, self._cache, self._sinks = config, cache, sinks
        self._kv, self._device, self._dtype = config.kv_heads, cache.pool.device, dtype
        self._keys = torch.arange(cache.capacity, device=self._device)

    def decode(self, positions: torch.Tensor, lengths: list[int], window: int | None) -> Attend:
        """For one token of each slot, at `positions` `[rows]`; `lengths` counts it, 0 for slots without one."""
        if not self._config.plain_attention:
            return self._decode_scored(lengths, window)
        cache, kv, scale = self._cache, self._kv, self._config.attention_scale
        ends = [min(-(-length // self.span) * self.span, cache.capacity) for length in lengths]
        begins = [self._begin(length, window) for length in lengths]
        end, begin = max(ends), min((b for b, length in zip(begins, lengths, strict=True) if length), default=0)
        needed = sum(e - b for e, b in zip(ends, begins, strict=True))
        at_home = cache.at_home(lengths)
        # Views one by one are cheaper than one copy of all.
        uneven = len(lengths) * (end - begin) > UNEVEN * needed or (not at_home and cache.in_runs(lengths))
        for slot, length in enumerate(lengths):
            if length:
                cache.clean(slot, ends[slot] if uneven else end)
        mask = self._mask(positions, begin, end, window)[:, None, None]

        def one_by_one(layer: int, query: torch.Tensor) -> torch.Tensor:
            mixed = torch.zeros_like(query)
            for slot, (first, last) in enumerate(zip(begins, ends, strict=True)):
                if last:
                    both = cache.read(layer, slot, last)[None, :, first:]
                    row, seen = slice(slot, slot + 1), mask[slot : slot + 1, ..., first - begin : last - begin]
                    mixed[row] = F.scaled_dot_product_attention(
                        query[row], both[:, :kv], both[:, kv:], attn_mask=seen, scale=scale
                    )
            return mixed

        if uneven:
            return one_by_one
        rows, index = len(lengths), None
        if not at_home:
            index = cache.gather_index(lengths, end).view(rows, -1)[:, begin // BLOCK :].reshape(-1)

        def together(layer: int, query: torch.Tensor) -> torch.Tensor:
            if index is None:
                both = cache.together(layer, rows, end)[:, :, begin:]
            else:
                both = cache.gather(layer, index, rows, end - begin)
            return F.scaled_dot_product_attention(query, both[:, :kv], both[:, kv:], attn_mask=mask, scale=scale)

        return together

    def prefill(self, slot: int, start: int, count: int, window: int | None) -> Attend:
        """For `count` tokens of one slot, the first at `start`."""
        config, cache, kv, end = self._config, self._cache, self._kv, start + count
        group, size = config.heads // kv, config.head_size
        begin = max(0, start + 1 - window) if window else 0
        triangle = start == 0 and (window is None or count <= window)
        mask = None
        if not (triangle and config.plain_attention):
            mask = self._mask(self._keys[start:end], begin, end, window)

        def attend(layer: int, query: torch.Tensor) -> torch.Tensor:
            own = cache.read(layer, slot, end)[:, begin:].to(query.dtype)
            if not config.plain_attention:
                return self._scored(layer, query, own, mask)
            # Key heads stand where the batch would, and their query heads share them through a stride of zero.
            return F.scaled_dot_product_attention(
                query,
                own[:kv, None].expand(kv, group, end - begin, size),
                own[kv:, None].expand(kv, group, end - begin, size),
                attn_mask=mask,
                is_causal=mask is None,
                scale=config.attention_scale,
            )

        return attend

    def _begin(self, length: int, window: int | None) -> int:
        """First key that is read for a sequence: whole spans before its window are not."""
        return max(0, length - window) // SPAN * SPAN if window and self._skips else 0

    def _mask(self, positions: torch.Tensor, begin: int, end: int, window: int | None) -> torch.Tensor:
        """`[positions, end - begin]`: 0 where a key is seen, minus infinity where it is not."""
        keys = self._keys[begin:end]
        unseen = keys > positions[:, None]
        if window:
            unseen |= keys <= positions[:, None] - window
        return torch.zeros(unseen.shape, dtype=self._dtype, device=self._device).masked_fill_(unseen, float("-inf"))

    def _decode_scored(self, lengths: list[int], window: int | None) -> Attend:
        def attend(layer: int, query: torch.Tensor) -> torch.Tensor:
            mixed = torch.zeros_like(query)
            for slot, length in enumerate(lengths):
                if length:
                    own = self._cache.read(layer, slot, length)[:, max(0, length - window) if window else 0 :]
                    mixed[slot] = self._scored(layer, query[slot][:, :, None], own, None)[:, :, 0]
            return mixed

        return attend

    def _scored(self, layer: int, query: torch.Tensor, own: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        sinks = self._sinks[layer]
        scale = self._config.attention_scale or self._config.head_size**-0.5
        keys, values = own[: self._kv], own[self._kv :]
        return scored(query, keys, values, mask, scale, self._config.attention_cap, sinks)

    @torch.inference_mode()
    def prove(self) -> None:
        """Takes the finest span whose results are bit for bit those of `SPAN`, on this machine and in this dtype.

        Short sequences then cost less, and the answer still does not depend on how far the longest neighbour is. In the
        same way it is made sure that a span without a key that is seen may be left out before the others. On a GPU the
        longest span stays.
        """
        if not self._config.plain_attention or self._device.type != "cpu":
            return
        config, size, capacity = self._config, self._config.head_size, self._cache.capacity
        group, whole, double = config.heads // self._kv, min(SPAN, capacity), min(2 * SPAN, capacity)
        generator = torch.Generator().manual_seed(20_260_102)
        shape = (self._cache.slots, self._kv, group + 2 * double, size)
        random = torch.randn(shape, generator=generator).to(self._device, self._dtype)
        query, keys, values = random[:, :, 2 * double :], random[:, :, :double], random[:, :, double : 2 * double]

        def attend(seen: range, begin: int, end: int) -> torch.Tensor:
            mask = torch.full((1, 1, 1, double), float("-inf"), dtype=self._dtype, device=self._device)
            mask[..., seen.start : seen.stop] = 0
            own, mixed, scale = keys[:, :, begin:end], values[:, :, begin:end], config.attention_scale
            return F.scaled_dot_product_attention(query, own, mixed, attn_mask=mask[..., begin:end], scale=scale)

        for span in FINER_SPANS:
            lengths = [1, span // 2 + 1, *range(span, whole, span)]
            if all(
                torch.equal(attend(range(n), 0, min(-(-n // span) * span, whole)), attend(range(n), 0, whole))
                for n in lengths
            ):
                self.span = span
                break
        windows = [range(whole, double), range(whole, whole + 1), range(double - 100, double)] if double > whole else []
        self._skips = all(torch.equal(attend(w, whole, double), attend(w, 0, double)) for w in windows)


def scored(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one sequence from its scores, in float32: `[kv_heads, group, count, size]` as `query`.

    Args:
        query: `[kv_heads, group, count, size]`.
        keys: `[kv_heads, length, size]`.
        values: `[kv_heads, length, size]`.
        mask: `[count, length]`, added to the scores; None where every key is seen.
        scale: factor of the scores.
        cap: the scores become `cap * tanh(score / cap)`.
        sinks: `[kv_heads * group]`: one more score a head, which stands for no value.
    """
    heads, group, count, size = query.shape
    mixed = torch.empty_like(query)
    for first in range(0, count, SCORES_AT_ONCE):
        part = query[:, :, first : first + SCORES_AT_ONCE]
        scores = torch.bmm(part.reshape(heads, -1, size), keys.transpose(1, 2)).float().mul_(scale)
        if cap is not None:
            scores = scores.div_(cap).tanh_().mul_(cap)
        scores = scores.view(heads, group, -1, keys.shape[1])
        if mask is not None:
            scores += mask[first : first + SCORES_AT_ONCE]
        if sinks is None:
            shares = scores.softmax(-1)
        else:
            column = sinks.view(heads, group, 1, 1).expand(*scores.shape[:3], 1)
            shares = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
        shares = shares.to(values.dtype).reshape(heads, -1, keys.shape[1])
        mixed[:, :, first : first + SCORES_AT_ONCE] = torch.bmm(shares, values).view(part.shape)
    return mixed
