"""The attention function that models of the transformers library call, over the paged cache.

Registered under `NAME`. The library makes no mask for a name that it does not know, and hands each layer's queries,
keys and values to whatever `installed` has put in place: a `Probe` that learns the layers' shapes, or a `Reader` that
writes to the cache and attends to it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.attention import Attend, Attention, scored
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig

NAME = "tandem_paged"
_FOREIGN = ("position_bias", "head_mask", "layer_head_mask", "alibi", "cross_attention_states", "indexer")
"""Arguments that change the scores in ways that are not computed here."""


@dataclass(frozen=True)
class LayerFacts:
    """What one attention layer asks for."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    scale: float
    cap: float | None
    window: int | None
    sinks: torch.Tensor | None = None
    """float32 `[heads]`."""


class Installed(Protocol):
    """What computes the attention of a forward."""

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, facts: LayerFacts
    ) -> torch.Tensor:
        """`[heads, tokens, key_size]`, `[kv_heads, tokens, ...]` twice, to `[tokens, heads, value_size]`."""


_INSTALLED: ContextVar[Installed] = ContextVar("installed")


def register() -> None:
    """Makes the function known to the library; may be called again."""
    from transformers import AttentionInterface  # imported late: it takes seconds

    AttentionInterface.register(NAME, _attention)


@contextmanager
def installed(attention: Installed) -> Iterator[None]:
    """Within, `attention` computes the attention of every model that uses `NAME`."""
    token = _INSTALLED.set(attention)
    try:
        yield
    finally:
        _INSTALLED.reset(token)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **asked: Any
) -> tuple[torch.Tensor, None]:
    """The library's calling convention: `[1, heads, tokens, size]` in, `[1, tokens, heads, size]` out."""
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise LoadError(f"{type(module).__name__} does not say which layer it is")
    if attention_mask is not None:
        raise LoadError(f"{type(module).__name__} keeps part of its meaning in an attention mask")
    foreign = next((name for name in _FOREIGN if asked.get(name) is not None), None)
    if foreign or asked.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise LoadError(f"{type(module).__name__} asks for {foreign or 'attention to tokens that come later'}")
    scale, window, cap, sinks = (asked.get(name) for name in ("scaling", "sliding_window", "softcap", "s_aux"))
    facts = LayerFacts(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        key_size=key.shape[-1],
        value_size=value.shape[-1],
        scale=float(scale) if scale is not None else query.shape[-1] ** -0.5,
        cap=float(cap) if cap else None,
        window=int(window) if window else None,
        sinks=None if sinks is None else sinks.detach().float(),
    )
    return _INSTALLED.get()(layer, query[0], key[0], value[0], facts)[None], None


class Probe:
    """Attention within one forward, without a cache; remembers what each layer asked for."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerFacts] = {}

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, facts: LayerFacts
    ) -> torch.Tensor:
        if layer in self.layers:
            raise LoadError(f"layer {layer} attends twice")
        if facts.heads % facts.kv_heads or query.shape[-1] != facts.key_size:
            raise LoadError(f"layer {layer} has {facts.heads} query heads for {facts.kv_heads} of {facts.key_size}")
        self.layers[layer] = facts
        count = query.shape[1]
        places = torch.arange(count, device=query.device)
        unseen = places > places[:, None]
        if facts.window:
            unseen |= places <= places[:, None] - facts.window
        mask = torch.zeros(unseen.shape, device=query.device).masked_fill_(unseen, float("-inf"))
        size = max(facts.key_size, facts.value_size)
        grouped = _wide(query, size).reshape(facts.kv_heads, -1, count, size)
        mixed = scored(grouped, _wide(key, size), _wide(value, size), mask, facts.scale, facts.cap, facts.sinks)
        return mixed.reshape(facts.heads, count, size)[..., : facts.value_size].transpose(0, 1)


class Reader:
    """Attention of a decode step or of a prompt's chunk over the cache."""

    def __init__(self, config: DecoderConfig, cache: PagedCache, facts: dict[int, LayerFacts]) -> None:
        self._config, self._cache = config, cache
        self._index = {layer: index for index, layer in enumerate(facts)}
        self.attention = Attention(config, cache, [fact.sinks for fact in facts.values()])
        self._flat = [layer.view(-1, config.head_size) for layer in cache.layers]
        self._head_starts = torch.arange(2 * config.kv_heads, device=cache.pool.device) * cache.layers[0].shape[1]
        self._windows = {layer.window for layer in config.layer_configs}
        self._attends: dict[int | None, Attend] = {}
        self._targets: torch.Tensor | None = None
        self._chunk = (0, 0)

    def begin_decode(self, positions: torch.Tensor, places: torch.Tensor, lengths: list[int]) -> None:
        """The next forward is of one token a slot; see `Decoder.decode`."""
        self._attends = {window: self.attention.decode(positions, lengths, window) for window in self._windows}
        self._targets = (places[:, None] + self._head_starts).view(-1)

    def begin_prefill(self, slot: int, start: int, count: int) -> None:
        """The next forward is of `count` tokens of one slot."""
        self._attends = {window: self.attention.prefill(slot, start, count, window) for window in self._windows}
        self._targets, self._chunk = None, (slot, start)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, facts: LayerFacts
    ) -> torch.Tensor:
        index, size, kv = self._index[layer], self._config.head_size, self._config.kv_heads
        attend = self._attends[self._config.layer_configs[index].window]
        query, both = _wide(query, size), torch.cat((_wide(key, size), _wide(value, size)))
        if self._targets is None:
            self._cache.write(index, *self._chunk, both)
            mixed = attend(index, query.reshape(kv, -1, query.shape[1], size)).reshape(facts.heads, -1, size)
            return mixed.transpose(0, 1)[..., : facts.value_size]
        self._flat[index].index_copy_(0, self._targets, both.transpose(0, 1).reshape(-1, size))
        rows = query.transpose(0, 1).reshape(query.shape[1], kv, -1, size)
        return attend(index, rows).reshape(len(rows), facts.heads, size)[..., : facts.value_size]


def _wide(x: torch.Tensor, size: int) -> torch.Tensor:
    """Heads of `size`, zeros behind what they have: they add nothing to a score, and are cut off what is mixed."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))
