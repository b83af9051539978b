"""Does an INDM beat its flow and linear diffusion on laws of known density?
``python -m research.verdict joint``.

joint.md has the design.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor

from indm import INDM, flow_loss, mle_loss
from indm.nets import MLP, Zero
from indm.score import ScoreModel
from indm.sde import VPSDE
from indm.training import progress_until
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.verdict.dial import Atom, Law, Ridge, Rows, descended, flow_of, gaps, gradients
from research.verdict.losses import gradient_deviations, plain_loss
from research.verdict.pays import exact

TABLE, DEVIATIONS = (
    Records(RECORDS / "verdict-joint.csv"),
    Records(RECORDS / "verdict-joint-deviations.csv"),
)
DRAWS = 100  # batches, of which the deviation of gradients is
SECONDS, SEEDS = 25.0, (3, 4)  # CPU seconds of one thread for each training; seeds
ROWS = 256
ARC = 2_000  # points of a moon, of which its density is the mean


@dataclass(frozen=True)
class Ring:
    """Independent pairs r (cos a, sin a), r ~ N(1, σ²) and a uniform."""

    sigma: float
    pairs: int

    @property
    def columns(self) -> int:
        return 2 * self.pairs

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows (n, 2 · pairs), float64."""
        r = 1 + self.sigma * torch.randn(n, self.pairs, generator=generator, dtype=torch.float64)
        a = 2 * math.pi * torch.rand(n, self.pairs, generator=generator, dtype=torch.float64)
        return torch.stack([r * a.cos(), r * a.sin()], 2).flatten(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats of rows, (B,); radii below 0, ten deviations away, are left out."""
        r = x.unflatten(1, (-1, 2)).norm(dim=2)
        normal = -0.5 * ((r - 1) / self.sigma) ** 2 - math.log(self.sigma * math.sqrt(2 * math.pi))
        return (normal - (2 * math.pi * r).log()).sum(1)


@dataclass(frozen=True)
class Moons:
    """scikit-learn's two moons: half circles with normal noise of deviation ``sigma``."""

    sigma: float = 0.1
    columns = 2

    def _arcs(self, a: Tensor) -> Tensor:
        """Points (2, n, 2) of both arcs at angles a (n,)."""
        return torch.stack(
            [torch.stack([a.cos(), a.sin()], 1), torch.stack([1 - a.cos(), 0.5 - a.sin()], 1)]
        )

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows (n, 2), float64."""
        a = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        upper = torch.rand(n, generator=generator, dtype=torch.float64) < 0.5
        both = self._arcs(a)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return torch.where(upper[:, None], both[0], both[1]) + self.sigma * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats of rows, (B,): the mean over the arcs, by the rule of midpoints."""
        a = math.pi * (torch.arange(ARC, dtype=torch.float64) + 0.5) / ARC
        arcs, constant = (
            self._arcs(a).flatten(0, 1),
            math.log(2 * ARC) + math.log(2 * math.pi * self.sigma**2),
        )
        parts = [
            (-0.5 * torch.cdist(part, arcs).square() / self.sigma**2).logsumexp(1)
            for part in x.split(1024)
        ]
        return torch.cat(parts) - constant


LAWS: dict[str, Law | Ring | Moons] = {
    "ridges": Ridge(0.1, 4),
    "rings": Ring(0.1, 4),
    "atoms": Atom(0.3),
    "moons": Moons(),
}
Loss = Callable[[INDM], Callable]  # a loss for a model


@dataclass(frozen=True)
class Stage:
    """A share of the processor seconds in which flow and score are trained at their rates; 0 leaves
    a part as it is.
    """

    share: float
    loss: Loss
    rates: tuple[float, float]
    rows: int = ROWS


paired = exact(pairs=True, levels=True)
LOSSES: dict[str, tuple[Loss, int]] = {  # and the rows of a batch
    "plain": (lambda model: plain_loss, ROWS),
    "mle_loss": (exact(), ROWS),
    "mle_loss, levels": (exact(levels=True), ROWS),
    "mle_loss, pairs": (exact(pairs=True), ROWS // 2),
    "mle_loss, pairs and levels": (paired, ROWS // 2),
}
VARIANTS: dict[str, tuple[str, tuple[Stage, ...]]] = {
    "linear, plain loss": ("identity", (Stage(1.0, lambda model: plain_loss, (0.0, 2e-3)),)),
    "linear": ("identity", (Stage(1.0, paired, (0.0, 2e-3), ROWS // 2),)),
    "flow alone": ("coupling", (Stage(1.0, lambda model: flow_loss, (2e-2, 0.0)),)),
    "flow alone, rates of flow first": (
        "coupling",
        (
            Stage(0.5, lambda model: flow_loss, (2e-2, 0.0)),
            Stage(0.5, lambda model: flow_loss, (2e-3, 0.0)),
        ),
    ),
    "INDM, plain loss, rates of the manual": (
        "coupling",
        (Stage(1.0, lambda model: plain_loss, (4e-3, 4e-3)),),
    ),
    "INDM, plain loss": ("coupling", (Stage(1.0, lambda model: plain_loss, (2e-2, 2e-3)),)),
    "INDM": ("coupling", (Stage(1.0, exact(), (2e-2, 2e-3)),)),
    "INDM, pairs and levels": ("coupling", (Stage(1.0, paired, (2e-2, 2e-3), ROWS // 2),)),
    "INDM, flow first": (
        "coupling",
        (Stage(0.5, lambda model: flow_loss, (2e-2, 0.0)), Stage(0.5, exact(), (2e-3, 2e-3))),
    ),
}


def trained(law: Law | Ring | Moons, variant: str, seed: int) -> tuple[INDM, int]:
    """The averaged model and its steps."""
    torch.manual_seed(seed)
    x, generator = Rows.of(law, seed).train, torch.Generator().manual_seed(seed)
    flow, stages = VARIANTS[variant]
    d, steps = law.columns, 0
    network = MLP((d,), width=128) if any(stage.rates[1] for stage in stages) else Zero()
    model = INDM(flow_of(flow, d), ScoreModel(network, VPSDE()), shape=(d,))
    for stage in stages:
        shares = progress_until(
            deadline=time.process_time() + stage.share * SECONDS, clock=time.process_time
        )
        descent = descended(model, stage.rates, shares, stage.loss(model), x, stage.rows, generator)
        steps += descent.step
        model.load_state_dict(descent.ema.model.state_dict())
    return descent.ema.model, steps


def deviations(seed: int) -> dict[str, dict[str, float]]:
    """Deviations of the gradients of flow and score on ridges for each loss, in the middle of a
    training by ``mle_loss``, see :func:`gradient_deviations`.
    """
    torch.manual_seed(seed)
    x, generator = Rows.of(LAWS["ridges"], seed).train, torch.Generator().manual_seed(seed)
    model = INDM(flow_of("coupling", 8), ScoreModel(MLP((8,), width=128), VPSDE()), shape=(8,))
    shares = progress_until(deadline=time.process_time() + SECONDS, clock=time.process_time)
    descended(
        model,
        (2e-2, 2e-3),
        takewhile(lambda share: share < 0.5, shares),
        mle_loss,
        x,
        ROWS,
        generator,
    )
    parts = {"flow": model.flow, "score": model.score}
    return {
        name: gradient_deviations(
            model, parts, partial(gradients, model, loss(model), x, rows, generator), DRAWS
        )
        for name, (loss, rows) in LOSSES.items()
    }


def jobs() -> Iterator[tuple[str, str, int]]:
    """The trainings that have no row yet, a law of one seed after another."""
    for seed in SEEDS:
        for law in LAWS:
            for variant in VARIANTS:
                if not TABLE.at(law=law, variant=variant, seed=seed).rows():
                    yield law, variant, seed


def run(job: tuple[str, str, int]) -> None:
    """Train one model and write its row: its gap to the true density, by the bound and by the flow
    alone.
    """
    torch.set_num_threads(1)
    law, variant, seed = job
    model, steps = trained(LAWS[law], variant, seed)
    measured = gaps(model, Rows.of(LAWS[law], seed))
    gap, error = measured["nelbo"]
    row = {
        "gap": gap,
        "error": error,
        "flow_gap": measured["flow"][0],
        "steps": steps,
        "seconds": SECONDS,
    }
    TABLE.at(law=law, variant=variant, seed=seed).add(row | made_by(seed))


def main() -> None:
    for job in jobs():
        run(job)
    for seed in SEEDS:
        row = DEVIATIONS.at(seed=seed)
        row.kept(lambda seed=seed: {"deviations": deviations(seed)} | made_by(seed))


def deviation_table(table: Records) -> str:
    """Deviations of gradients relative to the plain loss: mean and error over seeds."""
    found = [row["deviations"] for row in table.rows()]
    rows = []
    for part in ("flow", "score"):
        ratios = [[row[name][part] / row["plain"][part] for row in found] for name in LOSSES]
        rows.append((part, *(with_error(*over_seeds(values), ".2f") for values in ratios)))
    return in_table("gradient of", *LOSSES, rows=rows)


def markdown(table: Records) -> str:
    """Gaps in nats by law: mean and error over seeds."""
    rows = []
    for variant in VARIANTS:
        found = [[row["gap"] for row in table.at(law=law, variant=variant).rows()] for law in LAWS]
        rows.append(
            (variant, *(with_error(*over_seeds(gaps), ".3f") if gaps else "" for gaps in found))
        )
    return in_table("model", *LAWS, rows=rows)
