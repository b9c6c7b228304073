"""Which parts of the sampler a request's parameters call for: decided on the host, from the parameters alone.

Between the scheduler, which gathers the needs of a step's rows, and the sampler, which leaves out what no row needs.
"""

from dataclasses import dataclass

from tandem_server.engine.wire import Sampling

SHORT_LIST = 128
"""Rows with a top_k up to this are filtered among that many candidates; others sort the vocabulary."""


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
    logprobs: int | None = None


def is_penalised(sampling: Sampling) -> bool:
    """Whether earlier tokens change the request's logits."""
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def is_short(sampling: Sampling) -> bool:
    """Whether the request's candidates fit the short list."""
    return sampling.temperature > 0 and 0 < sampling.top_k <= SHORT_LIST


def is_sorted(sampling: Sampling) -> bool:
    """Whether the request filters over the whole vocabulary."""
    filters = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    return sampling.temperature > 0 and filters and not is_short(sampling)


def needs_of(samplings: list[Sampling]) -> Needs:
    """What a step whose rows are these calls for."""
    logprobs = [sampling.logprobs for sampling in samplings if sampling.logprobs is not None]
    return Needs(
        random=any(sampling.temperature > 0 for sampling in samplings),
        short=any(map(is_short, samplings)),
        sorted=any(map(is_sorted, samplings)),
        unfiltered=any(s.temperature > 0 and not is_short(s) and not is_sorted(s) for s in samplings),
        penalties=any(map(is_penalised, samplings)),
        logprobs=max(logprobs) if logprobs else None,
    )
