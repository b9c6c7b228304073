"""Every parameter of `Sampling`, alone and in combinations, against a straightforward sampler in numpy.

The reference works on one row, in float64, by the book: biases, penalties, temperature, top_k, typical_p, top_p, min_p,
then the largest of log-probability plus noise. It shares nothing with the sampler but the definition of the noise,
which is computed here anew from its description. A token may differ only where two candidates are nearer than float32
can tell.
"""

import random

import msgspec
import numpy as np
import pytest
import torch

from tandem_server.engine.native.needs import SHORT_LIST, needs_of
from tandem_server.engine.native.plan import Admission
from tandem_server.engine.native.sampler import Sampler
from tandem_server.engine.wire import Sampling

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("draws")]

VOCABULARY = 300
STOPS = (1, 4, 7)
STEPS = 12
NEAR = 2e-5
"""Differences of score below this are ties to float32."""
M64, M32 = (1 << 64) - 1, (1 << 32) - 1


def mix64(x: int) -> int:
    """SplitMix64's finaliser."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M64
    return x ^ (x >> 31)


def mix32(x: int) -> int:
    """The finaliser "lowbias32"."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & M32
    x = (x ^ (x >> 15)) * 0x846CA68B & M32
    return x ^ (x >> 16)


def noise(seed: int, position: int, token: int) -> float:
    """Gumbel noise of (seed, position, token)."""
    golden = 0x9E3779B97F4A7C15
    key = mix64(mix64((seed + golden) & M64) ^ (position * golden & M64))
    bits = mix32(mix32((token * 0x9E3779B9 & M32) ^ (key & M32)) ^ (key >> 32))
    return float(-np.log(-np.log(((bits >> 9) + 0.5) * 2.0**-23)))


def reference_scores(
    logits: np.ndarray, sampling: Sampling, prompt: list[int], made: list[int], position: int
) -> np.ndarray:
    """Whose largest is the token; minus infinity where a filter leaves a token out."""
    scores = logits.astype(np.float64)
    for token, value in sampling.logit_bias.items():
        scores[token] += value
    if len(made) < sampling.min_tokens:
        scores[list(STOPS)] = -np.inf
    for word in sampling.bad_words:
        if len(word) == 1 or made[1 - len(word) :] == word[:-1]:
            scores[word[-1]] = -np.inf
    for token in {*prompt, *made}:
        scores[token] *= 1 / sampling.repetition_penalty if scores[token] > 0 else sampling.repetition_penalty
    for token in set(made):
        scores[token] -= sampling.presence_penalty + sampling.frequency_penalty * made.count(token)
    if sampling.temperature == 0:
        return scores
    scores = scores / sampling.temperature
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    if sampling.top_k:
        order = order[: sampling.top_k]
    if sampling.typical_p < 1:
        order = typical(scores, order, sampling.typical_p)
    weights = np.exp(scores[order] - scores[order[0]])
    shares = weights / weights.sum()
    kept, mass = [], 0.0
    for token, share in zip(order, shares, strict=True):
        if mass >= sampling.top_p and kept:
            break
        mass += share
        if share >= sampling.min_p * shares[0]:
            kept.append(token)
    result = np.full(len(scores), -np.inf)
    for token in kept:
        result[token] = scores[token] + noise(sampling.seed, position, token)
    return result


def typical(scores: np.ndarray, order: list[int], share: float) -> list[int]:
    """The candidates nearest to the expected surprise that together reach `share`, in their order."""
    weights = np.exp(scores[order] - scores[order[0]])
    shares = dict(zip(order, weights / weights.sum(), strict=True))
    entropy = -sum(p * np.log(p) for p in shares.values() if p > 0)
    kept, mass = set(), 0.0
    for token in sorted(order, key=lambda token: abs(-np.log(shares[token]) - entropy) if shares[token] else np.inf):
        if mass >= share:
            break
        kept.add(token)
        mass += shares[token]
    return [token for token in order if token in kept]


def compare(samplings: list[Sampling], seed: int) -> int:
    """Runs one row a sampling, beside each other, for some steps; gives the number of rows that were near ties."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    sampler = Sampler(len(samplings), VOCABULARY, torch.device("cpu"))
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))] for _ in samplings]
    for slot, (sampling, prompt) in enumerate(zip(samplings, prompts, strict=True)):
        sampler.admit(Admission(slot, sampling, prompt, STOPS))
    made: list[list[int]] = [[] for _ in samplings]
    ties = 0
    for step in range(STEPS):
        # Few tokens stand out, as in a real model, so that penalties meet tokens that were made before.
        logits = torch.randn(len(samplings), VOCABULARY, generator=generator)
        logits[:, :8] += 4
        # A penalty multiplies where a score is negative, and divides where it is not.
        logits -= 9 * (step % 2)
        positions = torch.tensor([len(prompt) + step for prompt in prompts])
        taken = torch.ones(len(samplings), dtype=torch.bool)
        sampled = sampler.sample(logits, taken, positions, needs_of(samplings))
        for row, sampling in enumerate(samplings):
            token = int(sampled.tokens[row])
            scores = reference_scores(logits[row].numpy(), sampling, prompts[row], made[row], int(positions[row]))
            best = int(scores.argmax())
            if token != best:
                assert scores[best] - scores[token] < NEAR, f"{sampling}, step {step}: {token} instead of {best}"
                ties += 1
            made[row].append(token)
    return ties


ALONE = {
    "temperature": [Sampling(temperature=t, seed=s) for s, t in enumerate((0.0, 0.1, 0.7, 1.0, 2.0))],
    "top_k": [Sampling(top_k=k, seed=k) for k in (1, 2, 40, SHORT_LIST, SHORT_LIST + 1, VOCABULARY, 5000)],
    "top_p": [Sampling(top_p=p, seed=5) for p in (0.01, 0.3, 0.5, 0.9, 0.999)],
    "min_p": [Sampling(min_p=p, seed=6) for p in (0.001, 0.05, 0.3, 1.0)],
    "typical_p": [Sampling(typical_p=p, top_k=k, seed=6) for p in (0.05, 0.4, 0.9, 0.999) for k in (0, 50)],
    "min_tokens": [Sampling(min_tokens=n, seed=n) for n in (1, 5, STEPS - 1, STEPS, 100)],
    "logit_bias": [
        Sampling(logit_bias=bias, seed=4) for bias in ({0: 5.0, 299: -5.0}, {3: -100.0}, dict.fromkeys(range(8), -90.0))
    ],
    "bad_words": [
        Sampling(bad_words=words, seed=3) for words in ([[2]], [[2, 3]], [[a, b] for a in range(8) for b in range(8)])
    ],
    "repetition_penalty": [Sampling(repetition_penalty=r, seed=7) for r in (0.5, 1.1, 2.0)],
    "presence_penalty": [Sampling(presence_penalty=p, seed=8) for p in (-2.0, 0.5, 2.0)],
    "frequency_penalty": [Sampling(frequency_penalty=p, seed=9) for p in (-2.0, 0.5, 2.0)],
    "seed": [Sampling(seed=s) for s in (0, 1, 2**31, 2**40 + 3, 2**63 - 1)],
}


@pytest.mark.parametrize("parameter", ALONE)
def test_each_parameter_alone(parameter):
    samplings = ALONE[parameter]
    greedy = [msgspec.structs.replace(sampling, temperature=0.0) for sampling in samplings]
    assert compare(samplings + greedy, seed=1) <= 1
    for sampling in samplings:
        assert compare([sampling], seed=2) <= 1


def test_no_parameter_is_without_a_reference():
    assert set(Sampling.__struct_fields__) == {*ALONE, "logprobs"}


def random_sampling(rng: random.Random) -> Sampling:
    return Sampling(
        temperature=rng.choice([0.0, 0.4, 1.0, 1.6]),
        top_k=rng.choice([0, 0, 3, 30, 150]),
        top_p=rng.choice([1.0, 1.0, 0.95, 0.6]),
        min_p=rng.choice([0.0, 0.0, 0.02, 0.2]),
        typical_p=rng.choice([1.0, 1.0, 0.9, 0.5]),
        min_tokens=rng.choice([0, 0, 4, 8]),
        logit_bias=rng.choice([{}, {}, {rng.randrange(12): rng.uniform(-6, 6) for _ in range(5)}]),
        bad_words=rng.choice([[], [], [[rng.randrange(8) for _ in range(rng.randint(1, 3))] for _ in range(30)]]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.15, 0.8]),
        presence_penalty=rng.choice([0.0, 0.0, 0.9, -0.4]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.6, -0.3]),
        seed=rng.getrandbits(63),
    )


def test_combinations_beside_each_other(seeds):
    for seed in seeds:
        rng = random.Random(seed)
        assert compare([random_sampling(rng) for _ in range(24)], seed) <= 2


def test_logprobs_are_those_of_the_model_before_penalties_and_filters():
    sampling = Sampling(temperature=0.5, top_k=4, repetition_penalty=1.5, seed=3, logprobs=5)
    sampler = Sampler(1, VOCABULARY, torch.device("cpu"))
    sampler.admit(Admission(0, sampling, [1, 2, 3]))
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 3
    sampled = sampler.sample(logits, torch.ones(1, dtype=torch.bool), torch.tensor([3]), needs_of([sampling]))
    numbers = logits[0].numpy().astype(np.float64)
    wanted = numbers - np.log(np.exp(numbers).sum())
    order = np.argsort(-wanted, kind="stable")[:5]
    assert sampled.ids is not None
    assert sampled.values is not None
    assert sampled.ids[0].tolist() == [int(sampled.tokens[0]), *order.tolist()]
    assert np.abs(sampled.values[0].numpy() - wanted[sampled.ids[0].numpy()]).max() < 1e-5
