"""What a step asks of a decoder, fused or of the transformers library: the seam between `step.py` and the models."""

from typing import Protocol

import torch

from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.linear import Linear


class Model(Protocol):
    """A decoder with room for `slots` sequences of `context` tokens, on one device, in one number format."""

    config: DecoderConfig
    slots: int
    context: int
    device: torch.device
    dtype: torch.dtype
    cache: PagedCache
    switch: int | None
    """A sequence that grows beyond so many tokens must be read again from its start; see `begin`."""

    @property
    def width(self) -> int:
        """Numbers that `decode` and `prefill` give a row, and that `head` takes."""

    @property
    def span(self) -> int:
        """Decode steps attend to a multiple of so many keys."""

    @property
    def cache_bytes(self) -> int:
        """Memory of all slots' keys and values."""

    def linears(self) -> list[Linear]:
        """Every matrix that a step multiplies by; their smaller batches must give the same bits."""

    def prove_span(self) -> None:
        """Finds out at load which short cuts change no bit on this machine."""

    def begin(self, slot: int, length: int) -> None:
        """A sequence of `length` tokens is about to be read into `slot` from its first token on."""

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        """One token for each of the first `len(tokens)` slots: `[rows, width]`; see `Decoder.decode`."""

    def prefill(self, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """A chunk of one slot's prompt: the last token's `[1, width]`; see `Decoder.prefill`."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[rows, vocabulary]` of `[rows, width]`."""
