"""Tokens that a request makes likelier, less likely or impossible: logit_bias, bad words, and no end before min_tokens.

Part of the sampler, before the penalties. Each slot has a short list of entries, a number that is added to one token's
logit while its condition holds; conditions look at how many tokens were made, and at the last ones, all on the device.
"""

import torch

from tandem_server.engine.native.needs import MAX_BIASES, MAX_WORD_TOKENS, Bias, biases_of
from tandem_server.engine.native.plan import NOTHING, Admission

ANY = -1
"""In an entry's condition: whatever token stood there."""


class Biases:
    """Entries of all slots; 40 KB a slot, made when the first request needs them."""

    def __init__(self, slots: int, device: torch.device) -> None:
        shape, before = (slots, MAX_BIASES), MAX_WORD_TOKENS - 1
        self._device = device
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._values = torch.zeros(shape, dtype=torch.float32, device=device)
        self._until = torch.zeros(shape, dtype=torch.int64, device=device)
        self._before = torch.full((*shape, before), ANY, dtype=torch.int64, device=device)
        self._made = torch.zeros(slots, 1, dtype=torch.int64, device=device)
        # The last tokens of each answer, newest last.
        self._last = torch.full((slots, before), NOTHING, dtype=torch.int64, device=device)

    def admit(self, admission: Admission) -> None:
        """Writes a request's entries into its slot."""
        slot, entries = admission.slot, biases_of(admission.sampling, admission.stop_tokens)
        padded = entries + [Bias(0, 0.0, 0)] * (MAX_BIASES - len(entries))
        self._tokens[slot] = torch.tensor([entry.token for entry in padded], dtype=torch.int64)
        self._values[slot] = torch.tensor([entry.value for entry in padded], dtype=torch.float32)
        self._until[slot] = torch.tensor([entry.until for entry in padded], dtype=torch.int64)
        wide = self._before.shape[-1]
        before = [[ANY] * (wide - len(entry.after)) + list(entry.after) for entry in padded]
        self._before[slot] = torch.tensor(before, dtype=torch.int64)
        self._made[slot] = 0
        self._last[slot] = NOTHING - 1  # neither a token nor ANY

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` float32 `[rows, vocabulary]` with what applies added; a row without entries keeps its values."""
        rows = len(logits)
        before, last = self._before[:rows], self._last[:rows, None]
        applies = ((before == ANY) | (before == last)).all(-1) & (self._made[:rows] < self._until[:rows])
        return logits.scatter_add(1, self._tokens[:rows], torch.where(applies, self._values[:rows], 0.0))

    def note(self, tokens: torch.Tensor, taken: torch.Tensor) -> None:
        """Remembers the new `tokens` int64 `[rows]` of the rows that are really `taken` (bool `[rows]`)."""
        rows = len(tokens)
        last = self._last[:rows]
        moved = torch.cat((last[:, 1:], tokens[:, None]), -1)
        self._last[:rows] = torch.where(taken[:, None], moved, last)
        self._made[:rows] += taken[:, None]
