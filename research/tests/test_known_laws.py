"""The discrete laws, by which likelihoods are proved, against a plain sum over all images."""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy import stats

import indm
from indm.dequantization import Uniform
from indm.likelihood import latent_reference
from indm.model import INDM
from research.known_laws import Independent, Markov, Mixture, bell, random_walk


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
    support = [tuple(image) for image in law.support().flatten(1).tolist()]
    assert len(support) == len(set(support)) and set(support) == possible
    nats = -law.log_prob(law.support()) + 0.3
    assert law.excess(nats, law.support()).tolist() == pytest.approx([0.3 / 4 / math.log(2)] * len(possible))
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


# ── the proof ────────────────────────────────────────────────────────────────────────────────────────────────────

TABLES = {
    "flow": {"name": "identity"},
    "sde": {"name": "vp", "beta_max": 10.0, "eps": 3e-3},
    "net": {"name": "mlp", "width": 32, "depth": 2, "fourier": 0},
    "dequantization": {"name": "variational", "width": 8, "depth": 2},
}
TRAINING = {"steps": 200, "batch_size": 2048, "lr": 1e-2, "dequantization_lr": 1e-2, "decay": 0.5, "ema": 0.99}


@pytest.mark.long
def test_every_bound_is_above_the_entropy_and_the_best_is_near(tmp_path):
    """A chain of two pixels of 17 levels, all 289 images weighted by their probabilities. The model is trained with
    learned noise; with any other noise its bounds are of the same probabilities, so none is below the entropy."""
    law = Markov(bell(17, 8.5, 2.3), random_walk(17, 1.8, back=0.6), (1, 1, 2))
    quiet = {"validate_every": math.inf, "checkpoint_every": math.inf, "mixed_precision": "no"}
    indm.train(TABLES | {"train": TRAINING | quiet}, tmp_path / "run", data=law.data())
    learned = INDM.load(tmp_path / "run")
    images, repeats = law.support(), 3
    rows, probabilities = images.repeat(repeats, 1, 1, 1), law.log_prob(images).exp()

    def excess(nats):
        """The bound minus the entropy in bits of an entry, and the standard error of its draws."""
        draws = law.excess(nats, rows).reshape(repeats, len(images))
        error = (probabilities**2 * draws.var(0) / repeats).sum().sqrt()
        return (probabilities * draws.mean(0)).sum().item(), error.item()

    for noise in (learned.dequantization, Uniform()):
        model = INDM(learned.flow, learned.score, learned.scaling, law.shape, noise)
        generator, bounds = torch.Generator().manual_seed(0), {}
        for draws in (1, 4):
            report = indm.importance_bound(model, rows, draws=draws, steps=32, batch_size=10_000, generator=generator)
            bounds[draws] = excess(report.nats)
            total = (-report.nats.double()).exp().reshape(repeats, len(images)).sum(1)  # over all possible images
            assert total.mean() < 1 + 3 * total.std() / math.sqrt(repeats) + 1e-3
        x, log_q = model.from_data(rows, generator=generator)
        options = {"times": 32, "reference": latent_reference(model, rows), "generator": generator}
        bounds["nelbo"] = excess(indm.nelbo(model, x, log_q=log_q, **options).nats.detach())
        assert all(value > -3 * error for value, error in bounds.values()), bounds
        assert bounds[4][0] < bounds[1][0] + 3 * math.hypot(bounds[1][1], bounds[4][1])
        if noise is learned.dequantization:
            assert bounds[4][0] < 0.01
