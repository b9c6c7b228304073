"""Sampling: distributions, filters, penalties, and random numbers that depend on seed, position and token alone."""

import pytest
import torch

from tandem_server.engine.native.needs import needs_of
from tandem_server.engine.native.noise import gumbel, row_keys
from tandem_server.engine.native.plan import Admission
from tandem_server.engine.native.sampler import Sampler
from tandem_server.engine.wire import Sampling

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("draws")]

CPU = torch.device("cpu")
DRAWS = 20_000


def draw(logits: torch.Tensor, sampling: Sampling, rows: int = 1, draws: int = DRAWS) -> torch.Tensor:
    """Tokens drawn from `logits` `[vocabulary]` at so many positions of one seed: int64 `[draws]`."""
    sampler = Sampler(rows, len(logits), CPU)
    for slot in range(rows):
        sampler.admit(Admission(slot, sampling, [0]))
    taken = torch.ones(rows, dtype=torch.bool)
    drawn = []
    for start in range(0, draws, rows):
        positions = torch.arange(start, start + rows)
        drawn.append(sampler.sample(logits.expand(rows, -1), taken, positions, needs_of([sampling])).tokens)
    return torch.cat(drawn)


def shares(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    return tokens.bincount(minlength=vocabulary) / len(tokens)


def distance(observed: torch.Tensor, wanted: torch.Tensor) -> float:
    """Chi-square per degree of freedom, over tokens that are expected at least five times."""
    often = wanted * DRAWS >= 5
    chi = ((observed - wanted)[often] ** 2 / wanted[often]).sum() * DRAWS
    return float(chi / (often.sum() - 1))


LOGITS = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    observed = shares(draw(LOGITS, Sampling(temperature=temperature, seed=11), rows=100), 40)
    assert distance(observed, (LOGITS / temperature).softmax(-1)) < 1.8


@pytest.mark.parametrize("path", ["short", "sorted"])
def test_top_k_top_p_and_min_p_keep_what_they_should(path):
    probabilities = LOGITS.softmax(-1)
    order = probabilities.argsort(descending=True)
    # More candidates than the short list holds call for the sorted path; a padded vocabulary makes room for them.
    wide = torch.cat((LOGITS, torch.full((260,), -1e9)))
    top_k = 10 if path == "short" else 200
    tokens = draw(wide, Sampling(temperature=1.0, top_k=top_k, top_p=0.8, min_p=0.05, seed=5), rows=100)
    kept = order[:top_k]
    renormed = probabilities[kept] / probabilities[kept].sum()
    inside = (renormed.cumsum(-1) - renormed < 0.8) & (renormed >= 0.05 * renormed[0])
    wanted = torch.zeros(300)
    wanted[kept[inside]] = renormed[inside] / renormed[inside].sum()
    observed = shares(tokens, 300)
    assert set(tokens.tolist()) == set(kept[inside].tolist())
    assert distance(observed, wanted) < 1.8


def test_a_tiny_top_p_leaves_the_likeliest_token():
    assert set(draw(LOGITS, Sampling(temperature=1.0, top_p=1e-6, seed=5), 100).tolist()) == {int(LOGITS.argmax())}


def test_top_k_one_and_temperature_zero_are_greedy():
    best = {int(LOGITS.argmax())}
    assert set(draw(LOGITS, Sampling(temperature=1.0, top_k=1, seed=5), 100).tolist()) == best
    assert set(draw(LOGITS, Sampling(temperature=0.0), 100).tolist()) == best


@pytest.mark.parametrize("sampling", [Sampling(seed=9), Sampling(seed=9, top_k=20), Sampling(seed=9, top_p=0.9)])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_its_slot(sampling):
    alone = draw(LOGITS, sampling, rows=1, draws=500)
    assert torch.equal(alone, draw(LOGITS, sampling, rows=10, draws=500))
    sampler = Sampler(5, 40, CPU)
    neighbours = [Sampling(temperature=0.0), Sampling(top_k=3, seed=1), Sampling(top_p=0.3, seed=2, min_p=0.1)]
    neighbours.append(Sampling(repetition_penalty=1.5, seed=4, logprobs=3))
    for slot, own in enumerate([*neighbours, sampling]):
        sampler.admit(Admission(slot, own, [1, 2, 3]))
    logits = torch.cat((torch.randn(4, 40), LOGITS[None]))
    taken = torch.ones(5, dtype=torch.bool)
    for position in range(200):
        positions = torch.tensor([7, 8, 9, 10, position])
        sampled = sampler.sample(logits, taken, positions, needs_of([*neighbours, sampling]))
        assert int(sampled.tokens[4]) == int(alone[position])


def test_noise_is_uniform_and_independent_between_seeds_positions_and_tokens():
    tokens = torch.arange(50_000)[None]

    def uniform(seed: int, position: int) -> torch.Tensor:
        noise = gumbel(row_keys(torch.tensor([seed]), torch.tensor([position])), tokens)[0]
        return torch.exp(-torch.exp(-noise.double()))

    base = uniform(1, 1)
    assert base.isfinite().all()
    deciles = torch.histc(base, 10, 0, 1) / len(base)
    assert (deciles - 0.1).abs().max() < 0.006
    for other in (uniform(2, 1), uniform(1, 2), uniform(0, 0), uniform(2**62 + 1, 1), base.roll(1)):
        correlation = float(torch.corrcoef(torch.stack((base, other)))[0, 1])
        assert abs(correlation) < 0.02
    first = torch.tensor(
        [float(gumbel(row_keys(torch.tensor([s]), torch.tensor([5])), tokens[:, :1])) for s in range(500)]
    )
    assert abs(float(torch.exp(-torch.exp(-first)).mean()) - 0.5) < 0.05


def test_penalties_count_prompt_and_answer():
    """Against a straightforward reference, over a run of steps."""
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2)
    prompt = [3, 3, 8]
    sampler = Sampler(2, 40, CPU)
    sampler.admit(Admission(1, sampling, prompt))
    generated: list[int] = []
    for step in range(30):
        logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(step))
        wanted = logits[1].clone()
        for token in set(prompt + generated):
            wanted[token] = wanted[token] / 1.3 if wanted[token] > 0 else wanted[token] * 1.3
        for token in set(generated):
            wanted[token] -= 0.4 + 0.2 * generated.count(token)
        taken = torch.tensor([False, True])
        token = int(sampler.sample(logits, taken, torch.tensor([0, step]), needs_of([sampling])).tokens[1])
        assert token == int(wanted.argmax())
        generated.append(token)
    sampler.admit(Admission(1, sampling, [1]))
    logits = torch.zeros(2, 40)
    logits[1, generated[0]] = 1.0
    again = sampler.sample(logits, torch.tensor([False, True]), torch.tensor([0, 0]), needs_of([sampling]))
    assert int(again.tokens[1]) == generated[0], "the slot's counts begin anew with each request"


def test_rows_with_infinite_or_missing_numbers_are_told():
    sampler = Sampler(4, 40, CPU)
    for slot in range(4):
        sampler.admit(Admission(slot, Sampling(seed=slot), [0]))
    logits = torch.zeros(4, 40)
    logits[0, 3], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    sampled = sampler.sample(logits, torch.ones(4, dtype=torch.bool), torch.zeros(4).long(), needs_of([Sampling()]))
    assert sampled.finite.tolist() == [False, False, False, True]
    assert sampled.tokens[:3].tolist() == [0, 0, 0], "a valid id, for the step in flight that reads it"


@pytest.mark.parametrize("vocabulary", [5, 40, 64, 700, 4097])
def test_of_equals_the_first_is_taken_and_only_top_k_remain(vocabulary):
    """Greedy and top_k among scores of which many are equal, the largest in turn in each place."""
    best = [0, vocabulary // 2, vocabulary - 2, vocabulary - 1]
    sampler = Sampler(8, vocabulary, CPU)
    for slot in range(8):
        sampling = Sampling(temperature=0.0 if slot < 4 else 2.0, top_k=3, seed=slot)
        sampler.admit(Admission(slot, sampling, [0]))
    logits = (torch.arange(vocabulary) % 7).float().neg().repeat(8, 1)
    for row in range(8):
        logits[row, best[row % 4]] = 1.0
        logits[row, vocabulary - 1] = 1.0
    needs = needs_of([Sampling(temperature=0.0), Sampling(top_k=3)])
    least = logits.topk(3, -1).values[:, -1]
    for position in range(300):
        sampled = sampler.sample(logits, torch.ones(8, dtype=torch.bool), torch.full((8,), position), needs)
        assert sampled.tokens[:4].tolist() == best
        assert all(logits[row, int(sampled.tokens[row])] >= least[row] for row in range(4, 8))


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.95, seed=3), Sampling(min_p=0.01, seed=4), Sampling(seed=5)])
@pytest.mark.parametrize("spread", [0.01, 2.0])
def test_large_vocabularies_are_drawn_by_their_weights(sampling, spread):
    """Flat, where nearly all tokens are kept, and steep, where few are."""
    logits = torch.randn(701, generator=torch.Generator().manual_seed(6)) * spread
    weights = logits.softmax(-1)
    order = weights.argsort(descending=True)
    kept = weights[order].cumsum(-1) - weights[order] < sampling.top_p
    kept &= weights[order] >= sampling.min_p * weights.max()
    wanted = torch.zeros(701)
    wanted[order[kept]] = weights[order[kept]] / weights[order[kept]].sum()
    observed = shares(draw(logits, sampling, rows=50), 701)
    assert bool((observed[wanted == 0] == 0).all())
    if spread > 1:
        assert distance(observed, wanted) < 2.5
    else:
        tenths = torch.tensor([float((observed - wanted)[part].sum()) for part in order[kept].chunk(10)])
        assert tenths.abs().max() < 0.015
