"""Whether the error that a likelihood states covers its true one where the field is hostile to the
solver's steps.

    python bench/solver_coverage.py                # a field that may have ripples: solves begin
    with 64 steps python bench/solver_coverage.py --smooth       # the network says that it has
    none, which is not true

Scores of two dimensions in double precision, with one draw of N(0, I), or of the mixture, for each
row: ripples sin(k·level), kinks and jumps in the level, pulses, and narrow mixtures. The true error
is the difference from a solve in ``--converged`` steps with the same noise. "Accepted" are those
whose stated error is within the tolerance, "wrong" are accepted ones whose true error is above the
stated one.
"""

import argparse
import math
import warnings

import torch
from torch import Tensor, nn

import indm
from indm.flows import Identity
from indm.likelihood import NLL_ERROR, LikelihoodReport
from indm.score import GivenScore, ScoreModel
from indm.sde import VPSDE

KINDS = ("ripples", "kinks", "jumps", "pulses", "narrow mixtures")
# ripples per unit of the level log(σ/α)
FREQUENCIES = (3, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 100, 130, 160)
WIDTHS = (0.3, 0.1, 0.03)  # widths of pulses
DEVIATIONS = (0.3, 0.1, 0.03, 0.01, 0.003)  # deviations of the components of a mixture
ANGLES = math.pi / 3 * torch.arange(6, dtype=torch.float64)
MEANS = 1.4 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


class Hostile(nn.Module):
    """A network at conditions c (B, 4), a kind of :data:`KINDS` and its size, quickness or width,
    and place.
    """

    def __init__(self, smooth: bool):
        super().__init__()
        self.is_smooth, self.takes_condition = smooth, True

    def forward(self, y: Tensor, level: Tensor, c: Tensor) -> Tensor:
        kind, size, own, place = c.unbind(1)
        off = level - place
        change = torch.stack(
            [(own * off).sin(), off.relu().tanh(), (off > 0).double(), (-((off / own) ** 2)).exp()]
        )
        change = change.gather(0, kind.long().clamp_max(3)[None])[0]
        mixed = self._of_mixture(y, level, own)
        return torch.where(kind[:, None] == 4, mixed, (size * change)[:, None] * y.tanh())

    def _of_mixture(self, y: Tensor, level: Tensor, std: Tensor) -> Tensor:
        alpha, sigma = (-2 * level).sigmoid().sqrt()[:, None], (2 * level).sigmoid().sqrt()[:, None]
        variance = (alpha * std[:, None]) ** 2 + sigma**2
        off = y[:, None] - alpha[:, :, None] * MEANS
        share = (-0.5 * off.square().sum(2) / variance).softmax(1)
        return sigma * ((share[:, :, None] * off).sum(1) / variance - y)


def cases(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Conditions and data of ``n`` rows for each field, in places of their own."""
    fields: list[tuple[int, float, float]] = [
        (0, size, k) for k in FREQUENCIES for size in (0.03, 0.3)
    ]
    fields += [(kind, size, 1) for kind in (1, 2) for size in (0.1, 0.5)]
    fields += [(3, 0.5, width) for width in WIDTHS] + [(4, 1, std) for std in DEVIATIONS]
    c = torch.tensor(fields, dtype=torch.float64).repeat_interleave(n, 0)
    place = 6 * torch.rand(len(c), 1, dtype=torch.float64, generator=generator) - 3
    x = torch.randn(len(c), 2, dtype=torch.float64, generator=generator)
    mixed = MEANS[torch.randint(6, (len(c),), generator=generator)] + c[:, 2:] * x
    return torch.cat([c, place], 1), torch.where(c[:, :1] == 4, mixed, x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=24, help="for each field")
    parser.add_argument(
        "--converged", type=int, default=3072, help="steps of the converged solution"
    )
    parser.add_argument(
        "--smooth", action="store_true", help="the network says, wrongly, that it is smooth in t"
    )
    o = parser.parse_args()
    c, x = cases(o.samples, torch.Generator().manual_seed(0))
    model = indm.INDM(Identity(), GivenScore(ScoreModel(Hostile(o.smooth), VPSDE()), c))

    def solved(**options) -> LikelihoodReport:
        return indm.nll(model, x, generator=torch.Generator().manual_seed(1), **options)

    with warnings.catch_warnings(action="ignore"):
        exact, report = solved(steps=o.converged), solved()
    true, stated = (report.total - exact.total).abs(), report.solver_error
    accepted, wrong = stated <= NLL_ERROR * 2 * math.log(2), true > stated
    print(f"{report.nfe} evaluations on average")
    print(
        "| field | cases | covered | accepted | of these wrong | their largest true error, nats |"
    )
    print("|---|---|---|---|---|---|")
    for i, name in enumerate((*KINDS, "all")):
        rows = c[:, 0] == i if i < len(KINDS) else torch.ones_like(wrong)
        counts = (
            int(part.sum())
            for part in (rows, rows & ~wrong, rows & accepted, rows & accepted & wrong)
        )
        largest = true[rows & accepted].max().item() if bool((rows & accepted).any()) else 0.0
        print(f"| {name} | {' | '.join(map(str, counts))} | {largest:.2g} |")


if __name__ == "__main__":
    main()
