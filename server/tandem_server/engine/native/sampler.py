"""Chooses the next token of every row at once, on the device, from state that is kept there by slot.

Last part of a step. Each row's way through here depends on its own parameters only (`Needs` merely leaves out what
no row asks for), so a token never depends on the neighbours. Random rows add Gumbel noise and take the largest.
"""

import logging
from dataclasses import dataclass

import torch

from tandem_server.engine.native.biases import Biases
from tandem_server.engine.native.cpu_compiler import NotCompiled
from tandem_server.engine.native.cpu_draw import CompiledDraw
from tandem_server.engine.native.largest import largest, top
from tandem_server.engine.native.needs import (
    SHORT_LIST,
    Needs,
    is_biased,
    is_penalised,
    is_short,
    is_sorted,
    is_typical,
)
from tandem_server.engine.native.noise import gumbel, row_keys
from tandem_server.engine.native.plan import Admission
from tandem_server.engine.native.transfer import upload

IN_CACHE = 1 << 16
"""Numbers."""

log = logging.getLogger("tandem.runner")


@dataclass(frozen=True)
class Sampled:
    """Tokens int64 `[rows]`; `finite` bool `[rows]`; with logprobs: ids `[rows, 1 + n]` and values, chosen first."""

    tokens: torch.Tensor
    finite: torch.Tensor
    ids: torch.Tensor | None = None
    values: torch.Tensor | None = None


class Sampler:
    """Sampling state of all slots."""

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._shape, self._device = (slots, vocabulary), device
        # Columns: temperature (1 where greedy), top_p, min_p, repetition, presence and frequency penalty, typical_p.
        self._numbers = torch.ones(slots, 7, dtype=torch.float32, device=device)
        # Columns: seed, top_k (the vocabulary's size for all), is random, is short, is sorted, is typical.
        self._integers = torch.zeros(slots, 6, dtype=torch.int64, device=device)
        self._vocabulary = torch.arange(vocabulary, device=device)[None]
        self._counts: torch.Tensor | None = None
        self._in_prompt: torch.Tensor | None = None
        self._biases: Biases | None = None
        self.compiled = compiled_draw(self._numbers, self._integers, vocabulary)
        """Draws on a CPU, where it can be had."""

    def admit(self, admission: Admission) -> None:
        """Writes a request's parameters into its slot."""
        s, slot = admission.sampling, admission.slot
        numbers = (
            s.temperature if s.temperature > 0 else 1.0,
            s.top_p,
            s.min_p,
            s.repetition_penalty,
            s.presence_penalty,
            s.frequency_penalty,
            s.typical_p,
        )
        top_k = min(s.top_k, self._shape[1]) if s.top_k > 0 else self._shape[1]
        integers = (s.seed, top_k, s.temperature > 0, is_short(s), is_sorted(s), is_typical(s))
        self._numbers[slot] = upload(numbers, torch.float32, self._device)
        self._integers[slot] = upload(integers, torch.int64, self._device)
        if is_biased(s) and self._biases is None:
            self._biases = Biases(self._shape[0], self._device)
        if self._biases is not None:
            self._biases.admit(admission)
        if is_penalised(s) and self._counts is None:
            self._counts = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
            self._in_prompt = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
        if self._counts is not None and self._in_prompt is not None:
            self._counts[slot].zero_()
            self._in_prompt[slot].zero_()
            if is_penalised(s):
                # Not by an assignment: that would copy the number to the device and wait for it.
                self._in_prompt[slot].index_fill_(0, upload(admission.prompt, torch.int64, self._device), True)

    def sample(self, logits: torch.Tensor, taken: torch.Tensor, positions: torch.Tensor, needs: Needs) -> Sampled:
        """The next token of the first `rows` slots.

        Args:
            logits: float32 `[rows, vocabulary]`.
            taken: bool `[rows]`, whose token is really used.
            positions: int64 `[rows]`, where the new token will stand.
            needs: what the taken rows call for.
        """
        rows = len(logits)
        scores = self._biases.apply(logits) if needs.biases and self._biases is not None else logits
        scores = self._penalised(scores, rows) if needs.penalties else scores
        tokens, finite = self._choose(scores, taken, positions, needs)
        if needs.biases and self._biases is not None:
            self._biases.note(tokens, taken)
        if needs.penalties and self._counts is not None:
            self._counts[:rows].scatter_add_(1, tokens[:, None], taken[:, None].to(torch.int32))
        if needs.logprobs is None:
            return Sampled(tokens, finite)
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(needs.logprobs, logits.shape[1]), -1)
        chosen = tokens[:, None]
        return Sampled(
            tokens, finite, torch.cat((chosen, ids), -1), torch.cat((logprobs.gather(-1, chosen), values), -1)
        )

    def _choose(
        self, scores: torch.Tensor, taken: torch.Tensor, positions: torch.Tensor, needs: Needs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' tokens, 0 where there is none, and whether their scores are finite."""
        rows = len(scores)
        if self.compiled is not None:
            tokens, finite = self.compiled(scores, positions, taken)
            if not needs.typical:
                return tokens, finite
            elsewhere = self._integers[:rows, 5].bool()
        else:
            best, tokens = largest(scores)
            finite, elsewhere = best.isfinite(), self._integers[:rows, 2].bool()
        if needs.random:
            tokens = torch.where(elsewhere, self._draw(scores, positions, needs), tokens)
        return torch.where(finite, tokens, 0), finite

    def _penalised(self, logits: torch.Tensor, rows: int) -> torch.Tensor:
        """Repetition counts prompt and answer, presence and frequency the answer alone; 1, 0 and 0 change no bit."""
        assert self._counts is not None
        assert self._in_prompt is not None
        counts, (repetition, presence, frequency) = self._counts[:rows], self._numbers[:rows, 3:6, None].unbind(1)
        answered = counts > 0
        divided = torch.where(logits > 0, logits / repetition, logits * repetition)
        scores = torch.where(answered | self._in_prompt[:rows], divided, logits)
        return scores - (counts * frequency + answered * presence)

    def _draw(self, scores: torch.Tensor, positions: torch.Tensor, needs: Needs) -> torch.Tensor:
        rows = len(scores)
        numbers, integers = self._numbers[:rows], self._integers[:rows]
        temperatures = numbers[:, :1]
        keys = row_keys(integers[:, 0], positions)
        drawn = torch.zeros(rows, dtype=torch.int64, device=self._device)
        if needs.unfiltered:
            drawn = self._draw_from_all(scores, temperatures, keys)
        if needs.short:
            values, ids = top(scores, min(SHORT_LIST, scores.shape[1]))
            values = values / temperatures
            drawn = torch.where(integers[:, 3].bool(), self._draw_filtered(values, ids, keys, needs), drawn)
        if needs.sorted:
            values, ids = (scores / temperatures).sort(dim=-1, descending=True, stable=True)
            drawn = torch.where(integers[:, 4].bool(), self._draw_filtered(values, ids, keys, needs), drawn)
        return drawn

    def _draw_from_all(self, scores: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Noise for a vocabulary passes through memory some forty times: on a CPU, few enough rows for its cache."""
        at_once = max(1, IN_CACHE // scores.shape[1]) if self._device.type == "cpu" else len(scores)
        parts = zip(*(torch.split(every, at_once) for every in (scores, temperatures, keys)), strict=True)
        return torch.cat([largest((s / t).add_(gumbel(k, self._vocabulary)))[1] for s, t, k in parts])

    def _draw_filtered(self, values: torch.Tensor, ids: torch.Tensor, keys: torch.Tensor, needs: Needs) -> torch.Tensor:
        """Draws among candidates in falling order: top_k, then typical_p, then top_p and min_p over what is left."""
        rows, count = values.shape
        top_p, min_p = self._numbers[:rows, 1:2], self._numbers[:rows, 2:3]
        ranks = self._vocabulary[:, :count]
        values = values.masked_fill(ranks >= self._integers[:rows, 1:2], float("-inf"))
        if needs.typical:
            values = _typical(values, self._numbers[:rows, 6:7])
        probabilities = values.softmax(-1)
        most, best = probabilities.max(-1, keepdim=True)
        before = probabilities.cumsum(-1) - probabilities
        kept = (before < top_p) & (probabilities >= min_p * most)
        kept |= ranks == best
        noisy = values.masked_fill(~kept, float("-inf")) + gumbel(keys, ids)
        return ids.gather(-1, noisy.argmax(-1, keepdim=True))[:, 0]


def compiled_draw(numbers: torch.Tensor, integers: torch.Tensor, vocabulary: int) -> CompiledDraw | None:
    """What draws on a CPU; None on a GPU, and where it cannot be had: torch's operators do it then."""
    if numbers.device.type != "cpu":
        return None
    try:
        return CompiledDraw(numbers, integers, vocabulary)
    except NotCompiled as error:
        log.info("tokens are drawn by torch's operators: %s", error)
        return None


def _typical(values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """`values` `[rows, n]` without those that are less typical than what makes up each row's share `[rows, 1]`.

    Locally typical sampling (Meister et al. 2022): a token is typical when its surprise is near the distribution's
    entropy. A share of 1 leaves a row as it is.
    """
    logs = values.log_softmax(-1)
    probabilities = logs.exp()
    entropy = -torch.where(probabilities > 0, probabilities * logs, 0.0).sum(-1, keepdim=True)
    order = (-logs - entropy).abs().argsort(dim=-1, stable=True)
    ordered = probabilities.gather(-1, order)
    kept = (ordered.cumsum(-1) - ordered < shares) | (shares >= 1)
    return values.masked_fill(~kept.gather(-1, order.argsort(-1)), float("-inf"))
