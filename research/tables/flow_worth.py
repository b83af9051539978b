"""Is a flow worth its cost on tables? DensityEstimator with no map, powers, a spline a column, or a coupling flow.

    python -m research.tables flow_worth bent wine      # fits what has no record yet, then shows the table of all
    python -m research.tables flow_worth all

The estimator's columns are standardised and decorrelated in every variant. ``none`` has no more, ``powers`` is the
default: a power of a column where validation says so. ``spline`` and ``coupling`` have the powers and then a learned
flow that starts at the identity and is trained with the network, of two learning rates the better by validation. Every
fit has ``--seconds`` of the processor on one thread.
"""

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from indm import INDM, DensityEstimator
from indm.evaluation.statistics import mean_and_error
from indm.flows import CouplingFlow, ElementwiseFlow, Flow
from indm.tables import estimator
from indm.tables.columns import Columns
from indm.tables.fit import Training, paired_error
from indm.tables.mixture import Mixture
from research.any_question import rows_of
from research.markdown import in_table
from research.records import Records, made_by
from research.tables import command
from research.tables.flows import SEEDS, beside

NAMES = ("bent", "swiss-roll", "mixture-8d", "wine", "breast-cancer")
BOUND = 5.0  # end of the splines, in deviations of a latent
MOST_COMPONENTS = 8  # few components, so that time ends no search and variants of a table start from the same mixture
RATES = {"none": (0.0,), "powers": (0.0,), "spline": (4e-3, 1e-3), "coupling": (4e-3, 1e-3)}  # rates tried, by variant
JOBS = [(variant, rate) for variant, rates in RATES.items() for rate in rates]
fitted, log_prob = Columns.fitted, estimator.latent_log_prob
Array = np.ndarray


def flow_of(variant: str, d: int) -> Flow:
    """A flow of rows of latents (B, d), which starts at the identity."""
    if variant == "spline":
        return ElementwiseFlow((d,), shared="none", bound=BOUND)
    return CouplingFlow((d,), depth=4, width=64, bound=BOUND)


class BehindFlow(Training):
    """A training in which the flow of the model learns with the network: the loss has −log|det|."""

    flow_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        flow = list(self.model.flow.parameters())
        of_flow = {id(part) for part in flow}
        (group,) = self.optimizer.param_groups
        group["params"] = [part for part in group["params"] if id(part) not in of_flow]
        self.optimizer.add_param_group({"name": "flow", "params": flow, "lr": self.flow_rate})
        self.rates.append(self.flow_rate)

    def _errors(self) -> Tensor:
        t, weight, noise = self.fixed
        with torch.no_grad():
            z, log_det = self.ema.model.flow(self.held)
            return weight * paired_error(self.ema.model, self.c_held, z, t, noise)[0] - log_det

    def _gradients(self, z: Tensor, c: Tensor) -> dict[str, Tensor]:
        latents, log_det = self.model.flow(z)
        (self._denoising(latents, c) - log_det.mean() / z.shape[1]).backward()
        return {}


class FlowEstimator(DensityEstimator):
    """A DensityEstimator with a flow of the latents; it is used within :func:`behind`."""

    variant = "coupling"

    def _build(self, mixture: Mixture) -> INDM:
        linear = super()._build(mixture)
        return INDM(flow_of(self.variant, linear.shape[0]), linear.score, shape=linear.shape)


def through_flow(model: INDM, x: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """log p of rows x (B, d), from the log p of their latents, and an estimate of its error (B,)."""
    z, log_det = model.flow(x)
    value, error = log_prob(model, z, tol)
    return value + log_det, error


@contextmanager
def behind(variant: str, rate: float) -> Iterator[DensityEstimator]:
    """The estimator of a variant."""

    def without_powers(X: Array, c: Array, skewed: Array, *rest: Any) -> Columns:
        return fitted(X, c, skewed[:0], *rest)

    with ExitStack() as stack:
        if variant == "none":
            stack.enter_context(mock.patch.object(Columns, "fitted", without_powers))
        if not rate:
            yield DensityEstimator()
            return
        training = type("Training", (BehindFlow,), {"flow_rate": rate})
        stack.enter_context(mock.patch.object(estimator, "Training", training))
        stack.enter_context(mock.patch.object(estimator, "latent_log_prob", through_flow))
        found = FlowEstimator()
        found.variant = variant
        yield found


def trained(name: str, variant: str, rate: float, seed: int, seconds: float) -> dict[str, Any]:
    """The record of one fit."""
    X, test = rows_of(name, seed)
    started = time.process_time()
    with command.cpu_clock(), behind(variant, rate) as model:
        model.set_params(max_seconds=seconds, random_state=seed, n_models=1, max_components=MOST_COMPONENTS).fit(X)
        fit_seconds = time.process_time() - started
        nats = model.score_samples(test)
    return {
        "rows": list(X.shape), "validation_gain": model.gains_[0], "steps": model.n_steps_[0], "test_nats": nats,
        "test": mean_and_error(torch.from_numpy(nats)), "fit_cpu_seconds": round(fit_seconds, 1),
        "score_cpu_seconds": round(time.process_time() - started - fit_seconds, 1),
    } | made_by(seed)  # fmt: skip


def summary(made: Records) -> str:
    """Mean test log p of ``powers``, and what each row of the others has beyond it, ± over seeds and rows."""
    lines = []
    for name in NAMES:
        found = {(row["variant"], row["rate"], row["seed"]): row for row in made.at(table=name).rows()}
        seeds = [seed for seed in SEEDS if all((*job, seed) in found for job in JOBS)]
        if not seeds:
            continue
        nats = {variant: np.array([chosen(found, variant, seed)["test_nats"] for seed in seeds]) for variant in RATES}
        rows, columns = found["powers", 0.0, seeds[0]]["rows"]
        lines.append((name, f"{rows} × {columns}", len(seeds), *beside(nats, "powers")))
    return in_table("table", "rows × columns", "seeds", "powers", "none", "spline", "coupling", rows=lines)


def chosen(found: dict[tuple[str, float, int], dict[str, Any]], variant: str, seed: int) -> dict[str, Any]:
    """The record of the rate whose validation is best."""
    return max((found[variant, rate, seed] for rate in RATES[variant]), key=lambda row: row["validation_gain"][0])


def main(arguments: list[str]) -> None:
    parser = command.parser("tables flow_worth", __doc__, 30.0, seeds=SEEDS)
    parser.add_argument("tables", nargs="*", help=f"all, or {', '.join(NAMES)}")
    o = command.parsed(parser, arguments)
    made = Records(o.records / "flow_worth.csv").at(seconds=o.seconds)
    names = NAMES if o.tables == ["all"] else o.tables
    for seed, name, (variant, rate) in itertools.product(o.seeds, names, JOBS):
        cell = made.at(table=name, variant=variant, rate=rate, seed=seed)
        record = cell.kept(lambda job=(name, variant, rate, seed): trained(*job, o.seconds))
        print(name, variant, rate, seed, record["validation_gain"], record["test"], flush=True)
    print(summary(made))
