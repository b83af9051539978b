"""The bound of K steps: each step by its two Gaussians, the sum over all steps, and the excess
known in closed form.
"""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import indm
from indm.foreign.discrete import divergence_of_step

K = 60
BETAS = torch.linspace(1e-3, 0.2, K, dtype=torch.float64)
ALPHAS = (1 - BETAS).cumprod(0)
MEAN, STD = 0.3, 0.5


class Learned(nn.Module):
    """A network of 3 entries and its learned variances; any function does."""

    def __init__(self, twice=True):
        super().__init__()
        self.twice = twice

    def forward(self, x, k):
        assert torch.equal(k, k.round())
        noise = 0.7 * x + 0.1 * k[:, None] / K
        return torch.cat([noise, (x + k[:, None] / K).sin()], 1) if self.twice else noise


def exact(x, k):
    """E[n|x_k] for N(MEAN, STD²)."""
    alpha = ALPHAS[k.long()][:, None]
    return (1 - alpha).sqrt() * (x - alpha.sqrt() * MEAN) / (alpha * STD**2 + 1 - alpha)


def model_of(network, d=3, betas=BETAS, **options):
    path = {"betas": betas}
    return indm.from_denoiser(network, predicts="noise", path=path, shape=(d,), **options).double()


def by_hand(network, x, noise, k, variance):
    """KL(q(x_{k−1}|x_k, x_0) ‖ p_θ), as DDPM writes it."""
    beta, now, before = BETAS[k], ALPHAS[k], ALPHAS[k - 1]
    x_k = now.sqrt() * x + (1 - now).sqrt() * noise
    output = network(x_k, torch.full((len(x),), float(k)).double())
    predicted = output[:, : x.shape[1]]
    small = beta * (1 - before) / (1 - now)
    mean = before.sqrt() * beta / (1 - now) * x + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_k
    model_mean = (x_k - beta / (1 - now).sqrt() * predicted) / (1 - beta).sqrt()
    share = 0.5 * (output[:, x.shape[1] :] + 1)
    own = {"large": beta, "small": small}.get(
        variance, (share * beta.log() + (1 - share) * small.log()).exp()
    )
    p, q = (
        Normal(model_mean, torch.as_tensor(own).sqrt().expand_as(x)),
        Normal(mean, small.sqrt().expand_as(x)),
    )
    return kl_divergence(Independent(q, 1), Independent(p, 1))


@pytest.mark.parametrize("variance", ["large", "small", "learned"])
def test_a_step_is_the_divergence_of_its_two_gaussians(variance):
    model, x, noise = model_of(Learned()), torch.randn(5, 3).double(), torch.randn(5, 3).double()
    denoiser = model.score.backbone
    levels = denoiser.noises.whole_levels()
    for k in (1, 2, 30, K - 1):
        rows = [levels[i].expand(5) for i in (k - 1, k)]
        found = divergence_of_step(denoiser, x, *rows, noise, variance)
        torch.testing.assert_close(
            found, by_hand(denoiser.network, x, noise, k, variance), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("eps", [0, 20])
def test_the_bound_is_the_sum_over_all_steps(eps):
    """Its mean over k and noise, beside the sum over k > ε, prior and decoder, each on average over
    its noise.
    """
    network, n = Learned(twice=False), 16_000
    model, generator = model_of(network, eps=eps), torch.Generator().manual_seed(0)
    x = torch.tensor([[0.4, -1.0, 0.2]]).double()
    drawn = indm.discrete_nelbo(model, x.expand(n, 3), times=8, generator=generator).nats
    noise = torch.randn(n, 3, generator=generator).double()
    total = sum(by_hand(network, x.expand(n, 3), noise, k, "large") for k in range(eps + 1, K))
    last, first = ALPHAS[-1], ALPHAS[eps]
    prior = kl_divergence(
        Normal(last.sqrt() * x, (1 - last).sqrt()), Normal(torch.zeros(1).double(), 1.0)
    ).sum()
    x_0 = first.sqrt() * x + (1 - first).sqrt() * noise
    data = (x_0 - (1 - first).sqrt() * network(x_0, torch.full((n,), eps).double())) / first.sqrt()
    decoder = -Normal(data, ((1 - first) / first).sqrt()).log_prob(x.expand(n, 3)).sum(1)
    by_sum = total + prior + decoder
    error = (drawn.var() / n + by_sum.var() / n).sqrt()
    assert abs(drawn.mean() - by_sum.mean()) < 4 * error < 0.5


@pytest.mark.parametrize("variance, excess", [("large", 0.001), ("small", 0.456)])
def test_the_excess_of_an_exact_network_depends_on_the_variance(variance, excess):
    """Per dimension, for N(0.3, 0.25), the linear schedule and 1,000 steps."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = (1 - betas).cumprod(0)

    def network(x, k):
        alpha = alphas[k.long()][:, None]
        return (1 - alpha).sqrt() * (x - alpha.sqrt() * MEAN) / (alpha * STD**2 + 1 - alpha)

    model, generator = (
        model_of(network, 1, betas, variance=variance),
        torch.Generator().manual_seed(1),
    )
    x = MEAN + STD * torch.randn(20_000, 1, generator=generator).double()
    bound = indm.discrete_nelbo(model, x, times=8, generator=generator).nats
    over = bound + Normal(MEAN, STD).log_prob(x).sum(1)
    assert over.mean().item() == pytest.approx(
        excess, abs=4 * over.std().item() / len(x) ** 0.5 + 1e-3
    )


def test_the_first_step_leads_to_eps_wherever_that_is():
    """The bound rises with ε from that at one whole k to that at the next: no step is left out
    between both.
    """
    x = MEAN + STD * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()

    def bound(eps):
        model, generator = model_of(exact, 1, eps=eps), torch.Generator().manual_seed(1)
        return indm.discrete_nelbo(model, x, times=4, generator=generator).nats.mean().item()

    at, little, most, following = map(bound, (5, 5.01, 5.99, 6))
    assert -Normal(MEAN, STD).log_prob(x).mean().item() < at and following < at + 0.03
    assert abs(little - at) < 0.01 and abs(most - following) < 0.01


def test_grey_levels_are_decoded():
    """Of two grey levels, as likely each, the exact network's bound is near log 2 an entry with the
    small variance.

    Data that are points are known where the noise is small, so that β_k is too large there, by a
    sum in closed form.
    """
    values, betas = (
        torch.tensor([-1.0, 1.0]).double(),
        torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
    )
    alphas = (1 - betas).cumprod(0)

    def network(x, k):
        alpha = alphas[k.long()][:, None]
        data = (alpha.sqrt() * x / (1 - alpha)).tanh()
        return (x - alpha.sqrt() * data) / (1 - alpha).sqrt()

    model = model_of(network, 2, betas, scaling=indm.Scaling.between(-1, 1, 2))
    raw = torch.randint(0, 2, (8000, 2), generator=torch.Generator().manual_seed(0))
    x, log_q = model.from_data(raw)
    assert torch.equal(x, values[raw])
    options = {"times": 8, "log_q": log_q}
    small, large = (
        indm.discrete_nelbo(
            model, x, variance=v, generator=torch.Generator().manual_seed(1), **options
        ).nats
        for v in ("small", "large")
    )
    error = small.std().item() / len(raw) ** 0.5
    assert abs(small.mean().item() - 2 * math.log(2)) < 4 * error + 0.02 < 0.15
    ratio = (1 - alphas[:-1]) / (1 - alphas[1:])
    excess = (ratio - 1 - ratio.log()).sum().item()  # of two entries
    assert (
        abs((large - small).mean().item() - excess)
        < 4 * (large - small).std().item() / len(raw) ** 0.5 + 0.02
    )


def test_what_has_no_steps_is_refused():
    x = torch.zeros(1, 3).double()
    with pytest.raises(ValueError, match="path must be a table of steps"):
        indm.discrete_nelbo(indm.from_denoiser(exact, predicts="noise", path="edm", shape=(3,)), x)
    with pytest.raises(
        ValueError, match="variance must be 'large' or 'small', as the network gives none"
    ):
        indm.discrete_nelbo(model_of(exact, variance="learned"), x)
    with pytest.raises(
        ValueError, match="variance must be one of large, small, learned, got 'big'"
    ):
        indm.discrete_nelbo(model_of(exact), x, variance="big")
    linear = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
    with pytest.raises(ValueError, match="model must come from from_denoiser"):
        indm.discrete_nelbo(indm.build_model(linear, (3,)), x)
