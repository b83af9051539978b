"""The discrete laws, by which likelihoods are proved, against a plain sum over all images."""

import itertools
import math
from collections import Counter

import pytest
import torch
from discrete_laws import Independent, Markov, Mixture, bell, random_walk
from scipy import stats


def weights(*shape, seed=0):
    """Random weights; a third of them are 0."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(*shape, generator=generator)
    return draws * (draws > 1 / 3) + (torch.arange(shape[-1]) == 0) * 0.2


INDEPENDENT = [weights(4, 3, seed=seed) for seed in range(3)]
START, TRANSITION, SHARES = weights(3), weights(3, 3, seed=5), torch.tensor([0.5, 0.2, 0.3])
LAWS = {
    "independent": Independent(INDEPENDENT[0], (1, 2, 2)),
    "one law for all": Independent(INDEPENDENT[0][0], (1, 2, 2)),
    "colour": Independent(INDEPENDENT[0], (2, 1, 2)),
    "markov": Markov(START, TRANSITION, (1, 2, 2)),
    "mixture": Mixture(SHARES, [Independent(table, (1, 2, 2)) for table in INDEPENDENT]),
}


def share(table, level):
    return float(table[level]) / float(table.sum())


def independent(tables, image):
    return math.prod(share(table, level) for table, level in zip(tables, image, strict=True))


def probability(name, image):
    """By the definition, for one image as a tuple of levels."""
    if name == "markov":
        steps = (share(TRANSITION[a], b) for a, b in itertools.pairwise(image))
        return share(START, image[0]) * math.prod(steps)
    if name == "mixture":
        return sum(float(w) * independent(table, image) for w, table in zip(SHARES, INDEPENDENT, strict=True))
    return independent([INDEPENDENT[0][0]] * 4 if name == "one law for all" else INDEPENDENT[0], image)


@pytest.mark.parametrize("name", LAWS)
def test_law_against_a_sum_over_all_images(name):
    """Probabilities, entropy, support, and the frequencies of samples."""
    law, images = LAWS[name], list(itertools.product(range(3), repeat=4))
    expected = {image: probability(name, image) for image in images}
    assert sum(expected.values()) == pytest.approx(1)
    found = law.log_prob(torch.tensor(images, dtype=torch.uint8).reshape(-1, *law.shape)).exp().tolist()
    assert found == pytest.approx(list(expected.values()), rel=1e-6)
    entropy = -sum(p * math.log(p) for p in expected.values() if p)
    assert law.entropy == pytest.approx(entropy, rel=1e-6)
    assert law.bits_per_dim(law.entropy) == pytest.approx(entropy / 4 / math.log(2), rel=1e-6)

    possible = {image for image, p in expected.items() if p}
    if name != "markov":
        support = [tuple(image) for image in law.support().flatten(1).tolist()]
        assert len(support) == len(set(support)) and set(support) == possible
    raw = law.sample(20_000, torch.Generator().manual_seed(1))
    assert raw.dtype == torch.uint8 and raw.shape[1:] == law.shape and law.levels == 3
    counts = Counter(map(tuple, raw.flatten(1).tolist()))
    assert set(counts) <= possible
    pairs = [(counts[image], 20_000 * expected[image]) for image in possible]
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    assert stats.chi2.sf(statistic, len(possible) - 1) > 1e-3


def test_bells_and_walks():
    """Bins of a normal law, renewed to sum to 1 within the range of levels."""
    p = bell(17, 3.0, 2.5)
    edges = stats.norm(3.0, 2.5).cdf(range(18))
    assert p.tolist() == pytest.approx(((edges[1:] - edges[:-1]) / (edges[17] - edges[0])).tolist(), rel=1e-9)
    walk = random_walk(17, 2.0, back=0.5)
    assert walk.shape == (17, 17) and walk[16].argmax() == 12 and walk[8].argmax() == 8


def test_too_many_states_are_refused():
    with pytest.raises(ValueError, match=r"at most 1,048,576 states, got 4,294,967,296"):
        Independent(torch.ones(256), (1, 2, 2)).support()
