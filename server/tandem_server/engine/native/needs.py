"""Which parts of the sampler a request's parameters call for: decided on the host, from the parameters alone.

Between the scheduler, which gathers the needs of a step's rows, and the sampler, which leaves out what no row needs.
"""

from dataclasses import dataclass
from math import inf

from tandem_server.engine.wire import Sampling

SHORT_LIST = 128
"""Rows with a top_k up to this are filtered among that many candidates; others sort the vocabulary."""


MAX_BIASES = 512
"""Of one request: its logit_bias, two or more for each bad word, and its stop tokens."""
MAX_WORD_TOKENS = 8
"""Of one bad word."""
ALWAYS = 1 << 62


@dataclass(frozen=True)
class Needs:
    """Which of the sampler's parts the step's rows call for; what none asks for is not computed."""

    random: bool = False
    short: bool = False
    """A row keeps at most `SHORT_LIST` candidates."""
    sorted: bool = False
    """A row filters over the whole vocabulary."""
    unfiltered: bool = False
    """A row draws from the whole vocabulary."""
    penalties: bool = False
    biases: bool = False
    typical: bool = False
    logprobs: int | None = None


def is_penalised(sampling: Sampling) -> bool:
    """Whether earlier tokens change the request's logits."""
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


@dataclass(frozen=True)
class Bias:
    """`value` is added to the logit of `token` while fewer than `until` tokens are made and `after` came last."""

    token: int
    value: float
    until: int = ALWAYS
    after: tuple[int, ...] = ()


def biases_of(sampling: Sampling, stop_tokens: tuple[int, ...]) -> list[Bias]:
    """All entries of a request."""
    given = [Bias(token, value) for token, value in sampling.logit_bias.items()]
    banned = [Bias(word[-1], -inf, after=tuple(word[:-1])) for word in sampling.bad_words]
    held = [Bias(token, -inf, sampling.min_tokens) for token in stop_tokens] if sampling.min_tokens else []
    return given + banned + held


def bias_problem(sampling: Sampling, stop_tokens: tuple[int, ...], vocabulary: int) -> str | None:
    """What is wrong with a request's biases, or None."""
    if any(not 1 <= len(word) <= MAX_WORD_TOKENS for word in sampling.bad_words):
        return f"a bad word must have 1 to {MAX_WORD_TOKENS} tokens"
    entries = biases_of(sampling, stop_tokens)
    if len(entries) > MAX_BIASES:
        return f"logit_bias, bad words and stop tokens are {len(entries)} entries, at most {MAX_BIASES} are possible"
    outside = next((entry.token for entry in entries if not 0 <= entry.token < vocabulary), None)
    if outside is not None:
        return f"token id {outside} of logit_bias, bad words or stop tokens is outside the vocabulary of {vocabulary}"
    return None


def is_biased(sampling: Sampling) -> bool:
    """Whether the request makes tokens likelier, less likely or impossible."""
    return bool(sampling.logit_bias or sampling.bad_words or sampling.min_tokens)


def is_short(sampling: Sampling) -> bool:
    """Whether the request's candidates fit the short list."""
    return sampling.temperature > 0 and 0 < sampling.top_k <= SHORT_LIST


def is_sorted(sampling: Sampling) -> bool:
    """Whether the request filters over the whole vocabulary."""
    filters = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0 or sampling.typical_p < 1.0
    return sampling.temperature > 0 and filters and not is_short(sampling)


def is_typical(sampling: Sampling) -> bool:
    """Whether the request's candidates are filtered by how typical they are."""
    return sampling.temperature > 0 and sampling.typical_p < 1.0


def needs_of(samplings: list[Sampling]) -> Needs:
    """What a step whose rows are these calls for."""
    logprobs = [sampling.logprobs for sampling in samplings if sampling.logprobs is not None]
    return Needs(
        random=any(sampling.temperature > 0 for sampling in samplings),
        short=any(map(is_short, samplings)),
        sorted=any(map(is_sorted, samplings)),
        unfiltered=any(s.temperature > 0 and not is_short(s) and not is_sorted(s) for s in samplings),
        penalties=any(map(is_penalised, samplings)),
        biases=any(map(is_biased, samplings)),
        typical=any(map(is_typical, samplings)),
        logprobs=max(logprobs) if logprobs else None,
    )
