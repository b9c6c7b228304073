"""A model of the transformers library as a step sees it; beside `decoder.py`, which is ours throughout.

What a row carries between a forward and the sampler are its logits, for each architecture has its own way from the
hidden state to them. Rows are computed together where `prove_span` finds that this changes no bit, else one by one.
"""

import torch
from torch import nn

from tandem_server.engine.native.blocks import BLOCK
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.library import LibraryWeights, forward, refused_by_check
from tandem_server.engine.native.library_attention import NAME, Reader, installed
from tandem_server.engine.native.linear import Linear, row_invariant_sizes

CHECKED_TOKENS = 45
CHECKED_PARTS = (20, 19)
"""Chunks in which the check's text comes in; the rest of it comes token by token."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.08, torch.float16: 0.02}
"""Share of the largest logit by which the check's logits may differ."""


class LibraryDecoder:
    """One model of the library over a cache of ours."""

    def __init__(self, config: DecoderConfig, weights: LibraryWeights, slots: int, context: int) -> None:
        self.config, self.slots, self.context = config, slots, context
        self.switch: int | None = None
        self._model, self._linears = weights.model, weights.linears
        self.device, self.dtype = weights.model.device, weights.model.dtype
        self.cache = PagedCache(config, slots, context, self.dtype, self.device)
        self._reader = Reader(config, self.cache, weights.facts)
        self.together = self.device.type != "cpu"
        """Whether a decode step's rows are computed in one forward."""

    @property
    def width(self) -> int:
        """A row carries its logits."""
        return self.config.vocabulary

    @property
    def span(self) -> int:
        """See `Attention.span`."""
        return self._reader.attention.span

    @property
    def cache_bytes(self) -> int:
        """Memory of all slots' keys and values."""
        return self.cache.pool.nbytes

    def linears(self) -> list[Linear]:
        """The replaced matrices; none where rows are computed one by one."""
        return self._linears if self.together else []

    def begin(self, slot: int, length: int) -> None:
        """Nothing depends on a sequence's length here."""

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        """Logits of one token a slot; arguments as `Decoder.decode`."""
        if self.together:
            self._reader.begin_decode(positions, places, lengths)
            return self._forward(tokens, positions, 0)
        logits = torch.zeros(len(lengths), self.width, dtype=self.dtype, device=self.device)
        for slot, length in enumerate(lengths):
            if length:
                logits[slot : slot + 1] = self.prefill(slot, tokens[slot : slot + 1], length - 1)
        return logits

    def prefill(self, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """The last token's logits `[1, vocabulary]`; arguments as `Decoder.prefill`."""
        self._reader.begin_prefill(slot, start, len(tokens))
        return self._forward(tokens, torch.arange(start, start + len(tokens), device=self.device), 1)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits themselves, float32."""
        return hidden.float()

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, keep: int) -> torch.Tensor:
        with installed(self._reader):
            return forward(self._model, tokens[None], positions[None], keep)

    @torch.inference_mode()
    def prove_span(self) -> None:
        """Checks the model against the library, then finds out whether its rows may be computed together.

        Raises:
            LoadError: its logits through the cache are not the library's.
        """
        self._reader.attention.prove()
        generator = torch.Generator().manual_seed(20_260_103)
        count = min(CHECKED_TOKENS, self.context)
        texts = torch.randint(1, self.config.vocabulary, (self.slots, count), generator=generator).to(self.device)
        self._check(texts)
        if self._linears and self._only_linears() and self.slots > 1:
            self.together = self._rows_are_invariant(texts)

    def _check(self, texts: torch.Tensor) -> None:
        blocks = self.cache.slot_blocks
        for slot in range(self.slots):
            self.cache.admit(slot, range(slot * blocks, (slot + 1) * blocks))
        text = texts[0]
        self._model.set_attn_implementation("eager")
        try:
            wanted = forward(self._model, text[None], torch.arange(len(text), device=self.device)[None], 0).float()
        finally:
            self._model.set_attn_implementation(NAME)
        tolerance = TOLERANCE[self.dtype] * float(wanted.abs().max())
        ends = (CHECKED_PARTS[0], sum(CHECKED_PARTS), *range(sum(CHECKED_PARTS) + 1, len(text) + 1))
        start = 0
        for end in (end for end in ends if end <= len(text)):
            logits = self.prefill(0, text[start:end], start)[0].float()
            difference = float((logits - wanted[end - 1]).abs().max())
            if not difference <= tolerance:
                raise refused_by_check(self.config.architecture, difference)
            start = end

    def _only_linears(self) -> bool:
        """Whether no matrix is left that was not replaced: experts get as many rows as the batch sends them."""
        modules = (module for module in self._model.modules() if not isinstance(module, nn.Embedding))
        return all(p.dim() < 2 for module in modules for p in module.parameters(recurse=False))

    def _rows_are_invariant(self, texts: torch.Tensor) -> bool:
        """Whether a decode step gives each row the same bits in every batch in which the matrices do.

        A kernel of the library that chooses its order of summation by the number of rows would show here.
        """
        lengths = [max(1, BLOCK - slot) for slot in range(self.slots)]
        lengths = [min(length, texts.shape[1] - 1) for length in lengths]
        for slot, length in enumerate(lengths):
            self.prefill(slot, texts[slot, :length], 0)
        self.together = True
        whole = self._step(texts, [length + 1 for length in lengths])
        return all(
            torch.equal(self._step(texts, [length + 1 for length in lengths[:rows]]), whole[:rows])
            for rows in row_invariant_sizes(self._linears, self.slots, self.dtype)
        )

    def _step(self, texts: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        rows = torch.arange(len(lengths), device=self.device)
        positions, places = (torch.tensor(numbers, device=self.device) for numbers in self.cache.locate(lengths))
        return self.decode(texts[rows, positions], positions, places, lengths)
