"""Where does a flow pay on tables? One property of a law of known density is turned; dial.md has
the design.

    python -m research.verdict.dial ridge      # the trainings of this dial that have no row yet
    python -m research.verdict.dial figure     # the curves of all dials

A dial costs about an hour of one core. Killed and started again, it goes on.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Annotated, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor
from torch.nn import functional as F
from tyro.conf import Positional, arg

from indm import INDM, flow_loss, mle_loss, nelbo
from indm.evaluation.statistics import mean_and_error
from indm.flows import CouplingFlow, ElementwiseFlow, Flow, Identity
from indm.gaussian import GaussianReference
from indm.nets import MLP, Zero
from indm.objective import flow_nll
from indm.score import ScoreModel
from indm.sde import VPSDE
from indm.training import Descent, learning_rate_factor, progress_until
from indm.workbench.cli.common import DONE, Common
from indm.workbench.figures.plots import METHODS, save_figure, styled
from research.command import main
from research.lab.costs import seconds_in_turns
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.verdict.losses import plain_loss

TRAIN, TEST = 24_000, 4096  # rows
BATCH = 256  # network evaluations of a step, rows of a step of the flow alone
# steps of the rise of a rate, share of the run of its fall
WARMUP, FALL, DECAY, CLIP = 100, 0.5, 0.999, 1.0
STEPS = 1000  # steps of linear diffusion: their cost is the budget of every training
TUNED, SEEDS = 0, (1, 2, 3)
FIRST = 0.75  # share of the budget in which a flow that comes first is trained
TIMES = 16  # times of the bound, for each test row
DRAWS = 9  # seed of the bound's noise, one for all models
FIGURE = RECORDS.parent / "figures" / "verdict-dial.png"


@dataclass(frozen=True)
class Ridge:
    """Independent pairs (a, sin 2a + σ n), a and n ~ N(0, 1)."""

    sigma: float
    pairs: int

    @property
    def columns(self) -> int:
        return 2 * self.pairs

    @property
    def setting(self) -> float:
        """The value of the dial."""
        return self.sigma

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows (n, 2 · pairs), float64."""
        a, noise = torch.randn(2, n, self.pairs, generator=generator, dtype=torch.float64)
        return torch.stack([a, (2 * a).sin() + self.sigma * noise], 2).flatten(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats of rows, (B,)."""
        a, b = x.unflatten(1, (-1, 2)).unbind(2)
        noise = (b - (2 * a).sin()) / self.sigma
        return -(0.5 * (a**2 + noise**2) + math.log(2 * math.pi * self.sigma)).sum(1)


@dataclass(frozen=True)
class Atom:
    """Entries in (0, 1) that are black with probability ``share``, uniform in the lowest of 256
    levels.

    The others are w + (1 − w) sigmoid(u), w = 1/256, where u ~ N(0, Σ), Σ_ij = 0.7^|i − j|.
    """

    share: float
    columns: int = 8
    width: ClassVar[float] = 1 / 256

    @property
    def setting(self) -> float:
        """The value of the dial."""
        return self.share

    @property
    def covariance(self) -> Tensor:
        """Σ."""
        place = torch.arange(self.columns, dtype=torch.float64)
        return 0.7 ** (place[:, None] - place).abs()

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows (n, columns), float64."""
        u = torch.randn(n, self.columns, generator=generator, dtype=torch.float64)
        smooth = (
            self.width + (1 - self.width) * (u @ torch.linalg.cholesky(self.covariance).T).sigmoid()
        )
        black, level = torch.rand(2, n, self.columns, generator=generator, dtype=torch.float64)
        return torch.where(black < self.share, self.width * level, smooth)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats of rows, (B,)."""
        smooth = x >= self.width
        u = torch.where(smooth, (x - self.width) / (1 - self.width), 0.5).logit()
        slope = math.log(1 - self.width) + F.logsigmoid(u) + F.logsigmoid(-u)
        atom = math.log(self.share / self.width) if self.share else -math.inf
        of_entries = torch.where(smooth, math.log(1 - self.share) - slope, atom).sum(1)
        kept = smooth.double()
        # 1 where black
        covariance = self.covariance * kept[:, :, None] * kept[:, None] + torch.diag_embed(1 - kept)
        factor = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(factor, u[:, :, None], upper=False)[:, :, 0]
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return (
            of_entries
            - log_det
            - 0.5 * (white**2).sum(1)
            - 0.5 * math.log(2 * math.pi) * kept.sum(1)
        )


Law = Ridge | Atom
DIALS: dict[str, list[Law]] = {
    "ridge": [Ridge(sigma, 4) for sigma in (0.3, 0.1, 0.03)],
    "atom": [Atom(share) for share in (0.0, 0.3, 0.6)],
    "ridge-2": [Ridge(sigma, 1) for sigma in (0.3, 0.1, 0.03)],
}
TITLES = {
    "ridge": "bent ridges in 8 columns",
    "atom": "a repeated value in 8 columns",
    "ridge-2": "one bent ridge in 2 columns",
}
TUNED_ON = Ridge(0.1, 4)


@dataclass(frozen=True)
class Rows:
    """Standardised rows: ``train`` and ``test`` (B, d), and log p of the latter in these units,
    (TEST,).
    """

    train: Tensor
    test: Tensor
    log_prob: Tensor

    @classmethod
    def of(cls, law: Law, seed: int) -> "Rows":
        generator = torch.Generator().manual_seed(seed)
        train, test = law.draw(TRAIN, generator), law.draw(TEST, generator)
        std, mean = torch.std_mean(train, 0)
        parts = [((x - mean) / std).float() for x in (train, test)]
        return cls(parts[0], parts[1], (law.log_prob(test) + std.log().sum()).float())


PAIRED = partial(mle_loss, pairs=True)


@dataclass(frozen=True)
class Variant:
    """A model and its training.

    Args:
        flow: name of the flow.
        loss: of flow and score together.
        first: share of the budget in which the flow alone is trained; then only the score is.
        rates: learning rates of flow and score that are tried on seed TUNED.
    """

    flow: str
    loss: Callable
    rates: Sequence[tuple[float, float]]
    first: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of a batch of ``loss``."""
        return BATCH // 2 if self.loss is PAIRED else BATCH


VARIANTS = {
    "linear": Variant("identity", PAIRED, [(0.0, 2e-3)]),
    "spline": Variant("spline", PAIRED, [(1e-2, 2e-3)]),
    "flow alone": Variant("coupling", flow_loss, [(1e-2, 0.0), (2e-2, 0.0)], first=1.0),
    "flow first": Variant("coupling", PAIRED, [(2e-2, 2e-4)], first=FIRST),
    "INDM": Variant("coupling", PAIRED, [(2e-2, 2e-4), (2e-2, 2e-3)]),
    "INDM, noisy gradient": Variant("coupling", plain_loss, [(3e-3, 2e-3)]),
    "linear, noisy gradient": Variant("identity", plain_loss, [(0.0, 2e-3)]),
}


def flow_of(name: str, d: int) -> Flow:
    """A flow of rows (B, d) that starts at the identity."""
    if name == "coupling":
        return CouplingFlow((d,), width=64, bins=16)
    return ElementwiseFlow((d,), shared="none", bins=16) if name == "spline" else Identity()


def model_of(variant: Variant, d: int) -> INDM:
    """A model that starts as N(0, I)."""
    network = Zero() if variant.first == 1 else MLP((d,), width=128)
    return INDM(flow_of(variant.flow, d), ScoreModel(network, VPSDE()), shape=(d,))


def gradients(
    model: INDM, loss: Callable, x: Tensor, rows: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The gradients of ``loss`` at ``rows`` random rows of ``x``; its terms."""
    value, terms = loss(
        model, x[torch.randint(len(x), (rows,), generator=generator)], generator=generator
    )
    value.backward()
    return terms


def descent_of(model: INDM, rates: tuple[float, float]) -> Descent:
    """Flow and score in training at their rates; 0 leaves a part as it is."""
    parts = zip(("flow", "score"), (model.flow, model.score), rates, strict=True)
    groups = [
        {"name": name, "params": list(part.parameters()), "lr": rate}
        for name, part, rate in parts
        if rate
    ]
    return Descent(model, torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True), DECAY, CLIP)


def descended(
    model: INDM, rates: tuple[float, float], shares: Iterable[float], *arguments
) -> Descent:
    """``model`` after a step at each of ``shares`` of the run; :func:`gradients` takes the other
    arguments.
    """
    descent = descent_of(model, rates)
    for progress in shares:
        factor = learning_rate_factor(descent.step, progress, WARMUP, FALL)
        descent.advance(partial(gradients, model, *arguments), factor)
    return descent


def trained(
    variant: Variant, rates: tuple[float, float], x: Tensor, costs: dict[str, float], seed: int
) -> INDM:
    """A model of rows ``x`` (B, d) whose training costs as much as STEPS steps of linear diffusion."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, budget = model_of(variant, x.shape[1]), STEPS * costs["linear"]
    if not variant.first:
        (cost,) = (costs[name] for name, known in VARIANTS.items() if known == variant)
        steps = round(budget / cost)
        return descended(
            model, rates, progress_until(steps), variant.loss, x, variant.rows, generator
        ).ema.model
    steps = round(variant.first * budget / costs["flow alone"])
    model = descended(
        model, (rates[0], 0.0), progress_until(steps), flow_loss, x, BATCH, generator
    ).ema.model
    if variant.first == 1:
        return model
    with torch.no_grad():
        latents, _ = model.encode(x)
    behind = INDM(Identity(), copy.deepcopy(model.score).requires_grad_(), shape=model.shape)
    steps = round((1 - variant.first) * STEPS)
    arguments = variant.loss, latents, variant.rows, generator
    behind = descended(behind, (0.0, rates[1]), progress_until(steps), *arguments).ema.model
    return INDM(model.flow, behind.score, shape=model.shape).eval()


def measured_costs(d: int) -> dict[str, float]:
    """Processor seconds of a step by variant: medians over rounds in turns."""
    x, generator = torch.randn(TRAIN, d), torch.Generator().manual_seed(0)
    steps = {}
    for name, variant in VARIANTS.items():
        if variant.first in (0, 1):
            rows = BATCH if variant.first else variant.rows
            model = model_of(variant, d)
            descent = descent_of(model, variant.rates[0])
            steps[name] = partial(
                descent.advance, partial(gradients, model, variant.loss, x, rows, generator), 0.01
            )
    return {name: median(values) for name, values in seconds_in_turns(steps).items()}


@torch.no_grad()
def gaps(model: INDM, rows: Rows) -> dict[str, list[float]]:
    """Mean over test rows, with its error, of log p − log p of the model, in nats: the bound's, and
    the flow's own.
    """
    reference = GaussianReference.fit(model.encode(rows.train)[0])
    generator = torch.Generator().manual_seed(DRAWS)
    bound = nelbo(model, rows.test, times=TIMES, reference=reference, generator=generator).total
    values = {"nelbo": bound, "flow": flow_nll(model, rows.test)}
    return {name: list(mean_and_error(value + rows.log_prob)) for name, value in values.items()}


def made(
    law: Law, variant: Variant, rates: tuple[float, float], costs: dict[str, float], seed: int
) -> dict:
    """The row of a training."""
    rows, start = Rows.of(law, seed), time.process_time()
    model = trained(variant, rates, rows.train, costs, seed)
    seconds = time.process_time() - start
    measured = gaps(model, rows)
    gap = measured["flow" if variant.first == 1 else "nelbo"]
    return {
        "gap": gap[0],
        "error": gap[1],
        "flow_gap": measured["flow"][0],
        "cpu_seconds": seconds,
    } | made_by(seed)


def run(dial: str, table: Records, costs: Records, seeds: Sequence[int] = SEEDS) -> None:
    """The trainings that have no row yet: those that choose rates first, then one seed after
    another.
    """

    def gap(dial: str, law: Law, name: str, rates: tuple[float, float], seed: int) -> float:
        cost = costs.at(columns=law.columns).kept(lambda: measured_costs(law.columns) | made_by(0))
        cell = table.at(dial=dial, setting=law.setting, variant=name, seed=seed, rates=list(rates))
        return cell.kept(lambda: made(law, VARIANTS[name], rates, cost, seed))["gap"]

    def best(name: str) -> tuple[float, float]:
        first, *others = VARIANTS[name].rates
        return (
            min((first, *others), key=lambda rates: gap("ridge", TUNED_ON, name, rates, TUNED))
            if others
            else first
        )

    chosen = {name: best(name) for name in VARIANTS}
    for seed in seeds:
        for law in DIALS[dial]:
            for name, rates in chosen.items():
                if VARIANTS[name].loss is not plain_loss or law == TUNED_ON:
                    gap(dial, law, name, rates, seed)


def counted(table: Records, dial: str) -> dict[float, dict[str, list[float]]]:
    """Gaps of the counted seeds by setting, then by variant."""
    cells: dict[float, dict[str, list[float]]] = {law.setting: {} for law in DIALS[dial]}
    for row in table.at(dial=dial).rows():
        if row["seed"] in SEEDS:
            cells[row["setting"]].setdefault(row["variant"], []).append(row["gap"])
    return cells


def with_spread(values: Sequence[float]) -> str:
    """Mean over seeds and its standard error."""
    return with_error(*over_seeds(values), ".3f") if values else ""


def markdown(table: Records, dial: str) -> str:
    """Gaps of a dial in nats, mean and error over seeds."""
    cells = counted(table, dial)
    names = [name for name in VARIANTS if any(name in by for by in cells.values())]
    rows = [
        [
            setting,
            *(with_spread(by.get(name, [])) for name in names),
            max(map(len, by.values()), default=0),
        ]
        for setting, by in cells.items()
    ]
    return in_table("σ" if dial.startswith("ridge") else "share", *names, "seeds", rows=rows)


def tuning(table: Records) -> str:
    """Gaps of seed TUNED in nats, by learning rates."""
    found = sorted(
        table.at(seed=TUNED).rows(),
        key=lambda row: ([*VARIANTS].index(row["variant"]), row["rates"]),
    )
    rows = [
        (row["variant"], *map("{:g}".format, row["rates"]), f"{row['gap']:.3f}") for row in found
    ]
    return in_table("variant", "rate of the flow", "of the score", "gap, nats", rows=rows)


def cost_table(costs: Records) -> str:
    """Milliseconds of a step and steps of a training, by variant."""
    rows = []
    for name in (name for name, variant in VARIANTS.items() if variant.first in (0, 1)):
        cells = [(row[name], STEPS * row["linear"] / row[name]) for row in costs.rows()]
        rows.append(
            [
                name,
                *(
                    part
                    for cost, steps in cells
                    for part in (f"{1000 * cost:.1f}", f"{steps:,.0f}")
                ),
            ]
        )
    titles = [
        f"{row['columns']} columns, {what}"
        for row in costs.rows()
        for what in ("ms a step", "steps")
    ]
    return in_table("variant", *titles, rows=rows)


def trials() -> str:
    """Trainings before the design, which chose it: gaps in nats, with the flow's own likelihood
    too.
    """
    rows = [
        (row["what"], row["loss"], *(f"{row[name]:g}" for name in ("flow_rate", "score_rate", "steps", "seconds")),
         *(f"{row[name]:.3f}" if name in row else "" for name in ("gap", "own")))
        for row in Records(RECORDS / "verdict-dial-trials.csv").rows()
    ]  # fmt: skip
    titles = (
        "model",
        "loss",
        "rate of the flow",
        "of the score",
        "steps",
        "CPU s",
        "gap",
        "of the flow alone",
    )
    return in_table(*titles, rows=rows)


# each variant's method, addition to its name, marks
LOOKS: dict[str, tuple[str, str, dict[str, str]]] = {
    "linear": ("linear diffusion", "", {"fmt": "o-"}),
    "spline": ("INDM (spline)", "", {"fmt": "o-"}),
    "flow alone": ("flow alone", "", {"fmt": "o-"}),
    "flow first": ("INDM (coupling)", ", flow first", {"fmt": "s--", "mfc": "white"}),
    "INDM": ("INDM (coupling)", "", {"fmt": "o-"}),
    "INDM, noisy gradient": ("INDM (coupling)", ", noisy gradient", {"fmt": "x"}),
    "linear, noisy gradient": ("linear diffusion", ", noisy gradient", {"fmt": "x"}),
}


@styled
def figure(table: Records) -> None:
    """Draw one panel for each dial and one curve for each variant: means over seeds with two
    standard errors.
    """
    dials = [dial for dial in DIALS if any(counted(table, dial).values())]
    drawing = Figure(figsize=(4 * len(dials), 4))
    panels = drawing.subplots(1, len(dials), squeeze=False)[0]
    for axes, dial in zip(panels, dials, strict=True):
        cells = counted(table, dial)
        for name, (method, addition, marks) in LOOKS.items():
            settings = [setting for setting, by in cells.items() if name in by]
            means, errors = (
                np.array([over_seeds(cells[setting][name]) for setting in settings])
                .reshape(-1, 2)
                .T
            )
            axes.errorbar(
                settings, means, 2 * errors, color=METHODS[method], label=method + addition, **marks
            )
        axes.set(title=TITLES[dial], yscale="log")
        if dial == "atom":
            axes.set_xlabel("atom: share of this value")
        else:
            axes.set(xlabel="σ: width of the ridge", xscale="log")
        axes.set_xticks([*cells], [f"{setting:g}" for setting in cells])
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("gap: log-likelihood lost against the true density, nats")
    save_figure(drawing, FIGURE)


@dataclass
class Dial(Common):
    """Train the models of one dial, or draw the curves of all."""

    module: ClassVar[str] = "research.verdict.dial"

    name: Annotated[Positional[str], arg(metavar="ridge|atom|ridge-2|figure")]
    """Name of the dial, or figure."""
    seeds: tuple[int, ...] = SEEDS
    """Seeds to train."""

    def run(self) -> int:
        table = Records(RECORDS / "verdict-dial.csv")
        if self.name == "figure":
            figure(table)
            return DONE
        if self.name not in DIALS:
            raise ValueError(
                f"NAME must be one of {', '.join([*DIALS, 'figure'])}, got {self.name!r}"
            )
        torch.set_num_threads(1)
        run(self.name, table, Records(RECORDS / "verdict-dial-costs.csv"), self.seeds)
        print(markdown(table, self.name))
        return DONE


if __name__ == "__main__":
    sys.exit(main(Dial))
