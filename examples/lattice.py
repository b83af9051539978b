"""A small Boltzmann generator: models of a lattice field φ⁴, trained on draws and reweighted to its
action.

python examples/lattice.py               # two minutes of one core
"""

from pathlib import Path

import torch
import tyro

import indm
from indm.flows import CouplingFlow, Identity
from indm.nets import Zero

SIDE, COUPLING = 4, 4.5


def action(x):
    """S = Σ λφ⁴ − φ · (sum of the four neighbours) of rows (n, 16), on a torus: m² = −4. It has two
    phases.
    """
    field = x.reshape(-1, SIDE, SIDE)
    around = sum(field.roll(shift, axis) for axis in (1, 2) for shift in (1, -1))
    return (COUPLING * field**4 - field * around).flatten(1).sum(1)


def draws(n, generator):
    """n fields, by as many chains of Metropolis steps, each with a random sign."""
    x = torch.full((n, SIDE**2), 0.6)
    for _ in range(1500):
        proposed = x + 0.15 * torch.randn(x.shape, generator=generator)
        moves = torch.rand(n, generator=generator).log() < action(x) - action(proposed)
        x = torch.where(moves[:, None], proposed, x)
    return x * (2 * torch.randint(2, (n, 1), generator=generator) - 1)


def fit(model, rows, loss, steps, **rates):
    """Train the parts of the model, flow and score, that have a rate."""
    parts = [{"params": getattr(model, part).parameters(), "lr": lr} for part, lr in rates.items()]
    optimizer = torch.optim.Adam(parts)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [*rates.values()], total_steps=steps)
    for _ in range(steps):
        value, _ = loss(model, rows[torch.randint(len(rows), (256,))])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def main(steps: int = 700, out: Path = Path("runs/example-lattice")) -> None:
    """steps: of the optimizer, for each model; out: the folder for weights.npz."""
    torch.manual_seed(0)
    rows = draws(10_000, torch.Generator().manual_seed(0))
    fresh = draws(200, torch.Generator().manual_seed(1))

    def made(flow, network):
        return indm.INDM(flow, indm.ScoreModel(network, indm.VPSDE(eps=1e-3)), shape=(SIDE**2,))

    flow = made(CouplingFlow((SIDE**2,)), Zero())
    fit(flow, rows, indm.flow_loss, steps, flow=1e-2)
    linear = made(Identity(), indm.MLP((SIDE**2,)))
    fit(linear, rows, indm.mle_loss, steps, score=2e-3)
    both = made(CouplingFlow((SIDE**2,)), indm.MLP((SIDE**2,)))
    fit(both, rows, indm.flow_loss, steps // 2 + 1, flow=1e-2)
    fit(both, rows, indm.mle_loss, steps // 2 + 1, flow=1e-3, score=1e-3)

    for name, model in {"flow alone": flow, "linear diffusion": linear, "INDM": both}.items():
        given = {"n": 300, "target_draws": fresh, "nll_error": 2e-2, "exact": True}
        generator = torch.Generator().manual_seed(2)
        found = indm.reweight(
            lambda x: -action(x), model, generator=generator, progress=False, **given
        )
        print(name, found, sep="\n", end="\n\n")
        found.save(out / f"{name}.npz")


if __name__ == "__main__":
    tyro.cli(main)
