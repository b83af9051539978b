"""A step of a training against the same step written out, what is skipped, and the share of a run
that is over.
"""

import math

import pytest
import torch
from torch import nn

from indm.score import ScoreModel
from indm.sde import VPSDE
from indm.training import LEVELS, Descent, learning_rate_factor, progress_until, size_and_spread


def parts(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"score": nn.Linear(3, 3), "flow": nn.Linear(3, 3)})


def groups_of(model: nn.ModuleDict) -> list[dict]:
    rates = {"score": 1e-2, "flow": 1e-3}
    return [
        {"name": name, "params": list(model[name].parameters()), "lr": rate}
        for name, rate in rates.items()
    ]


def loss_of(model: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    return model["score"](model["flow"](x)).square().sum()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_is_that_of_a_plain_loop(fused):
    """The gradient of each group is clipped by itself, and the average follows the weights."""
    x, clip, factors = torch.randn(20, 5, 3), 0.5, {"score": 1.0, "flow": 0.25}
    plain, model = parts(), parts()
    optimizer = torch.optim.AdamW(groups_of(plain), fused=fused)
    descent = Descent(model, torch.optim.AdamW(groups_of(model), fused=fused), decay=0.3, clip=clip)
    average = [p.detach().clone() for p in plain.parameters()]
    for n, rows in enumerate(x, 1):

        def gradients(rows=rows):
            loss_of(model, rows).backward()
            return {}

        terms = descent.advance(gradients, factors.get)
        loss_of(plain, rows).backward()
        for group, rate in zip(optimizer.param_groups, (1e-2, 1e-3), strict=True):
            norm = torch.cat([p.grad.flatten() for p in group["params"]]).norm()
            assert terms[f"{group['name']}_grad_norm"].item() == pytest.approx(
                norm.item(), rel=1e-5
            )
            for p in group["params"]:
                p.grad *= min(1.0, clip / norm)
            group["lr"] = rate * factors[group["name"]]
        optimizer.step()
        optimizer.zero_grad()
        weight = 1 - min(0.3, (1 + n) / (10 + n))
        average = [
            a + weight * (p.detach() - a) for a, p in zip(average, plain.parameters(), strict=True)
        ]
    assert descent.step == 20 and not terms["skipped"]
    for found, expected in (
        (model.parameters(), plain.parameters()),
        (descent.ema.model.parameters(), average),
    ):
        torch.testing.assert_close(list(found), list(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("broken", ["term", "gradient"])
def test_what_is_not_finite_changes_neither_weights_nor_moments_nor_statistics(fused, broken):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    group = {"name": "model", "params": list(model.parameters())}
    descent = Descent(model, torch.optim.AdamW([group], 0.1, fused=fused))

    def gradients(scale: float, term: float):
        (scale * model(torch.randn(8, 3))[:, 0].exp().sum()).backward()
        return {"loss": torch.tensor(term)}

    def state():
        moments = [value for part in descent.optimizer.state.values() for value in part.values()]
        return [value.clone() for value in (*model.state_dict().values(), *moments)]

    descent.advance(lambda: gradients(1.0, 0.0), 1.0)
    before = state()
    wrong = (math.inf, 0.0) if broken == "gradient" else (1.0, math.nan)
    assert descent.advance(lambda: gradients(*wrong), 1.0)["skipped"] == 1 and descent.step == 2
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert descent.advance(lambda: gradients(1.0, 0.0), 1.0)["skipped"] == 0
    assert not any(torch.equal(a, b) for a, b in zip(before, state(), strict=True) if a.numel() > 1)


def test_a_course_ends_by_steps_or_by_the_clock():
    def ticks(step: float):
        readings = iter(range(100))
        return lambda: 10.0 + step * next(readings)

    assert list(progress_until(steps=5)) == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert list(progress_until(deadline=12.0, clock=ticks(0.5))) == [0.25, 0.5, 0.75]
    assert list(progress_until(2, 20.0, ticks(1.0))) == [0.1, 0.5]
    assert list(progress_until(8, 12.0, ticks(0.5))) == [0.25, 0.5, 0.75], (
        "the clock is ahead of the steps"
    )
    assert list(progress_until(8, deadline=9.0, clock=ticks(0.5))) == [], "it is late"


def test_an_average_without_decay_is_the_weights():
    model = parts()
    descent = Descent(model, torch.optim.AdamW(groups_of(model)))

    def gradients():
        loss_of(model, torch.randn(5, 3)).backward()
        return {}

    for progress in progress_until(steps=6):
        descent.advance(
            gradients, learning_rate_factor(descent.step, progress, warmup=2, decay=0.5)
        )
        pairs = zip(model.parameters(), descent.ema.model.parameters(), strict=True)
        assert all(torch.equal(p, averaged) for p, averaged in pairs)


class Echo(nn.Module):
    """y + 2 at levels between two numbers, and 0 elsewhere."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high, self.seen = low, high, set()

    def forward(self, y: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        self.seen.add(level[0].item())
        return (y + 2) * ((level > self.low) & (level < self.high)).float()[:, None]


def test_size_and_spread_are_those_of_the_loudest_noise_level():
    """Of y + 2 with y = α z + σ n, z and n normal: E‖y + 2‖² = 5 d, and the odd part is σ n."""
    sde, generator = VPSDE(), torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 3, generator=generator)
    loud = Echo(-math.inf, math.inf)
    size, spread = size_and_spread(ScoreModel(loud, sde), z, generator)
    assert size == pytest.approx(math.sqrt(15), rel=0.02)
    assert spread == pytest.approx(math.sqrt(3), rel=0.02), "σ is 1 at the end"
    assert len(loud.seen) == LEVELS
    ends = [sde.log_snr(torch.tensor([t], dtype=torch.float64)).item() for t in (sde.eps, 1.0)]
    spans = [max(values) - min(values) for values in (ends, loud.seen)]
    assert spans[1] == pytest.approx(spans[0] / 2, rel=0.01), "a level is half of a log SNR"
    quiet = sorted(loud.seen)[:1]
    low = Echo(quiet[0] - 0.1, quiet[0] + 0.1)
    size, spread = size_and_spread(ScoreModel(low, sde), z, generator)
    assert size == pytest.approx(math.sqrt(15), rel=0.02) and 0 < spread < 0.1
