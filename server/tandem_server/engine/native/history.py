"""Every token of each slot's sequence, on the device: for models that must read a sequence again once it has grown.

Used by `step.py`, only where the decoder has a `switch` (longrope): beyond that length all positions of the sequence
turn by other frequencies, so what the cache holds of it is void and is computed anew from the tokens kept here. That
makes one step of such a request as long as a prompt of `switch` tokens.
"""

import torch

from tandem_server.engine.native.model import Model

CHUNK = 256
"""Tokens that are read at once: no more than a prompt's chunk has."""


class History:
    """Tokens by slot and position."""

    def __init__(self, decoder: Model, switch: int) -> None:
        self._decoder, self._switch = decoder, switch
        # One column more than needed: rows that take no token write there.
        self._tokens = torch.zeros(decoder.slots, decoder.context + 1, dtype=torch.int64, device=decoder.device)

    def admit(self, slot: int, prompt: torch.Tensor) -> None:
        """A new sequence of `slot`, int64 `[tokens]`."""
        self._tokens[slot, : len(prompt)] = prompt

    def record(self, taken: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor) -> None:
        """New tokens of the first `len(tokens)` slots at `positions`, where `taken`; all `[rows]`."""
        columns = torch.where(taken, positions, self._decoder.context)
        self._tokens[: len(tokens)].scatter_(1, columns[:, None], tokens[:, None])

    def reread(self, slot: int, position: int) -> None:
        """Reads the sequence of `slot` again if its next token, at `position`, takes it beyond the switch."""
        if position != self._switch:
            return
        self._decoder.begin(slot, position + 1)
        for start in range(0, position, CHUNK):
            self._decoder.prefill(slot, self._tokens[slot, start : min(start + CHUNK, position)], start)
