"""Draws of missing entries given the others: against the closed form of Gaussians."""

import math

import pytest
import torch
from closed_form import MixtureScore
from flow_tools import perturb

import indm
from indm import inpainting
from indm.flows import ElementwiseFlow, Identity
from indm.model import INDM
from indm.scaling import Scaling
from indm.sde.linear import VPSDE

SIDE = 6
HALF, RANDOM = torch.zeros(SIDE, SIDE, dtype=torch.bool), torch.zeros(SIDE, SIDE, dtype=torch.bool)
HALF[:, SIDE // 2 :] = True
RANDOM.view(-1)[
    torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))[: SIDE**2 // 2]
] = True


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class FieldScore(torch.nn.Module):
    """The exact score of a Gaussian field on a grid: correlations e^{−r²/8}, and a fiftieth of the
    variance white.
    """

    def __init__(self):
        super().__init__()
        self.sde = VPSDE(eps=1e-4)
        places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
        self.covariance = (
            0.98 * (-torch.cdist(places, places).square() / 8).exp()
            + 0.02 * torch.eye(SIDE**2).double()
        )
        self.mean = (places[:, 0] / 2).sin() / 2
        self.variances, self.basis = torch.linalg.eigh(self.covariance)

    def forward(self, z, t):
        alpha, sigma = self.sde.alpha(t)[:, None].to(z), self.sde.sigma(t)[:, None].to(z)
        along = (z.flatten(1) - alpha * self.mean.to(z)) @ self.basis.to(z)
        return -(along / (alpha**2 * self.variances.to(z) + sigma**2) @ self.basis.T.to(z)).reshape(
            z.shape
        )

    def given(self, x, missing):
        """Mean and covariance of the missing entries, (m,) and (m, m), given the others of x."""
        u, o = missing.flatten(), ~missing.flatten()
        gain = self.covariance[u][:, o] @ torch.linalg.inv(self.covariance[o][:, o])
        return self.mean[u] + gain @ (x.flatten() - self.mean)[o], (
            self.covariance[u] - gain @ self.covariance[o]
        )[:, u]


def whitened(missing, n=1000, **options):
    """Draws of a field's missing entries, in the coordinate in which the exact ones are N(0, I);
    and what was seen.
    """
    score = FieldScore()
    x = (
        score.mean
        + torch.linalg.cholesky(score.covariance)
        @ torch.randn(SIDE**2, generator=seeded(3)).double()
    )
    x = x.reshape(1, SIDE, SIDE)
    model = INDM(Identity(), score, Scaling(0.1, 2.0), shape=(1, SIDE, SIDE))
    draws = indm.inpaint(
        model, 2 * x + 0.1, missing, n, batch_size=n, generator=seeded(0), **options
    )
    assert torch.equal(draws[:, 0][:, ~missing], (2 * x + 0.1)[0][~missing].expand(n, -1))
    mean, covariance = score.given(x, missing)
    off = ((draws[:, 0][:, missing] - 0.1) / 2 - mean).T
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), off, upper=False)


def is_standard_normal(white, bias=0.06):
    """Whether mean and covariance, by their RMS over directions, are off by what so many draws are,
    and ``bias``.
    """
    d, n = white.shape
    mean = white.mean(1).square().mean().sqrt()
    covariance = (torch.cov(white) - torch.eye(d)).square().sum().div(d).sqrt()
    return bool(mean < bias + 2 / math.sqrt(n) and covariance < bias + 1.2 * math.sqrt((d + 1) / n))


@pytest.mark.parametrize("missing", [HALF, RANDOM], ids=["half", "random"])
def test_missing_entries_of_a_gaussian_field_have_the_law_of_the_closed_form(missing):
    assert is_standard_normal(whitened(missing))


@pytest.mark.parametrize(
    "name, wrong",
    [("MOST_PRODUCTS", 1), ("gmres", lambda A, r, goal, most: r)],
    ids=["one product", "V = I"],
)
def test_the_law_is_wrong_where_the_formula_is(name, wrong, monkeypatch):
    monkeypatch.setattr(inpainting, name, wrong)
    assert not is_standard_normal(whitened(HALF))


def test_both_modes_of_a_mixture_are_drawn_with_their_weights():
    """Given 1, the other entry is 1 or −1, with probabilities 0.6 and 0.4."""
    means, stds, weights = (
        torch.tensor([[-1.0, 0.3], [1.0, 1.0], [1.0, -1.0]]),
        torch.full((3,), 0.15),
        [0.5, 0.3, 0.2],
    )
    model = INDM(Identity(), MixtureScore(VPSDE(), means, stds, torch.tensor(weights)), shape=(2,))
    seen, mask = torch.tensor([1.0, math.nan]), torch.tensor([False, True])
    draws = indm.inpaint(model, seen, mask, 1000, batch_size=1000, generator=seeded(0))[:, 1]
    up, down = draws[draws > 0], draws[draws < 0]
    assert len(up) / 1000 == pytest.approx(0.6, abs=0.05)
    for mode, mean in ((up, 1.0), (down, -1.0)):
        assert mode.mean().item() == pytest.approx(
            mean, abs=0.05
        ) and mode.std().item() == pytest.approx(0.15, abs=0.03)


def test_draws_of_an_elementwise_flow_are_those_of_its_latents():
    score, flow = FieldScore(), perturb(ElementwiseFlow((1, SIDE, SIDE))).double()
    z = torch.randn(1, SIDE, SIDE, generator=seeded(1)).double()
    (x,) = flow.inverse(z[None]).detach()
    of_x, of_z = (
        indm.inpaint(
            INDM(h, score, Scaling().double(), shape=z.shape),
            v,
            RANDOM,
            4,
            steps=5,
            generator=seeded(0),
        )
        for h, v in ((flow, x), (Identity(), z))
    )
    torch.testing.assert_close(flow.latent(of_x), of_z, rtol=0, atol=1e-4)


def test_what_is_not_finite_may_be_missing_and_draws_are_the_same_in_inference_mode():
    model, mask = build("identity", levels=None), RANDOM[:8, :8].new_zeros(8, 8)
    mask[0], observed = True, torch.ones(1, 8, 8)
    observed[:, 0] = math.nan
    expected = indm.inpaint(model, observed, mask, 2, steps=3, generator=seeded(0))
    with torch.inference_mode():
        found = indm.inpaint(model, observed + 0, mask, 2, steps=3, generator=seeded(0))
    assert (
        torch.equal(found, expected)
        and bool(expected.isfinite().all())
        and bool((expected[:, :, 1:] == 1).all())
    )


def build(flow, condition=None, shape=(1, 8, 8), levels=17):
    tables = {
        "flow": {"name": flow},
        "sde": {"name": "vp"},
        "net": {"name": "unet", "channels": 8, "multipliers": [1]},
    }
    tables |= {"condition": condition} if condition else {}
    return indm.build_model(tables, shape, Scaling.images(levels) if levels else Scaling())


def test_grey_levels_stay_as_they_were_for_events_and_masks_of_each_draw():
    model = build("elementwise", {"name": "classes", "labels": ["a", "b"], "drop": 0.1})
    raw = torch.randint(17, (3, 1, 8, 8), generator=seeded(0), dtype=torch.uint8)
    mask = torch.rand(3, 1, 8, 8, generator=seeded(1)) < 0.5
    first, again, larger = (
        indm.inpaint(
            model,
            raw,
            mask,
            3,
            c=["a", "b", "b"],
            guidance=2.0,
            steps=3,
            batch_size=b,
            generator=seeded(0),
        )
        for b in (3, 3, 2)
    )
    for draws in (first, again, larger):
        assert draws.dtype == torch.uint8 and torch.equal(draws[~mask], raw[~mask])
    assert torch.equal(first, again) and not torch.equal(first[mask], raw[mask])


GREY, MASK = torch.zeros(1, 8, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": build("coupling")}, "flow"),
        ({"observed": GREY / 2, "mask": ~MASK}, "observed"),
        ({"observed": GREY + 17, "mask": ~MASK}, "observed"),
        (
            {
                "model": build("identity", levels=None),
                "observed": torch.full((1, 8, 8), math.nan),
                "mask": ~MASK,
            },
            "observed",
        ),
        ({"steps": 0}, "steps"),
        ({"n": 0}, "n must"),
        ({"c": 1}, "c must"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    arguments = {"model": build("elementwise"), "observed": GREY, "mask": MASK, "n": 2} | change
    with pytest.raises(ValueError, match=said):
        indm.inpaint(**arguments)


@pytest.mark.parametrize(
    "change",
    [{"mask": MASK.long()}, {"mask": MASK[:3]}, {"observed": GREY.expand(3, 1, 8, 8)}],
    ids=str,
)
def test_masks_and_images_of_other_shapes_are_pytorch_s_errors(change):
    arguments = {"model": build("elementwise"), "observed": GREY, "mask": MASK, "n": 2} | change
    with pytest.raises(RuntimeError, match="tensor"):
        indm.inpaint(**arguments)
