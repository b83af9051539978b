"""Posteriors p(θ|x) from simulated pairs: indm.DensityEstimator beside NPE of sbi, at the same processor time.

    python -m research.posteriors          # trains what has no record yet, then shows the table of all records
    python -m research.posteriors slcp --methods indm --pairs 1000
    python -m research.posteriors sbibm --help      # another study: the ten tasks of sbibm, see sbibm.md

The simulators are in ``simulators.py``. Each training has ``--seconds`` of the processor on one thread, its
own pairs and its own weights. It is judged at five observations, the same for all, by draws and, where the posterior
has a density, by it: the C2ST is the accuracy with which an MLP tells 1,000 draws from 1,000 of the true posterior (5
folds; 1/2 is best), and the divergence is E log p(θ|x)/q(θ|x) over true draws, in nats. Both methods are restricted to
the support of the prior: draws outside are rejected. "true" is the C2ST of two sets of true draws, for SLCP from
Markov chains that start apart. Every training is a row of ``posteriors.csv``. Without sbi, which is not a dependency,
its trainings are left out.
"""

import copy
import functools
import importlib.metadata
import importlib.util
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import norm
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from indm import DensityEstimator
from indm.evaluation.statistics import mean_and_error
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.posteriors.simulators import SIMULATORS
from research.records import Records, made_by
from research.tables import command

Array = np.ndarray
OBSERVATIONS, DRAWS = 5, 1_000  # and draws of each of two laws that are told apart
MOST_TRIES = 20  # draws of an estimator for each one that is kept
QUIET: dict[str, Any] = {  # options of sbi's trainers
    "show_progress_bars": False, "tracker": mock.MagicMock(), "logging_level": logging.ERROR,
}  # fmt: skip
CLASSIFIER = {"early_stopping": True, "n_iter_no_change": 30, "learning_rate_init": 1e-2, "max_iter": 400}


@dataclass
class Fitted:
    """An approximate posterior: ``draw(x, n, seed)`` and ``log_prob(theta, x)``, x one observation or one for each."""

    draw: Callable[[Array, int, int], Array]
    log_prob: Callable[[Array, Array], Array]
    setting: dict[str, Any]


def indm(theta: Array, x: Array, seed: int, seconds: float, **options: Any) -> Fitted:
    with mock.patch.object(time, "perf_counter", time.process_time):
        found = DensityEstimator(max_seconds=seconds, random_state=seed, **options).fit(theta, c=x)
    setting = {"steps": found.n_steps_, "components": [m.score.backbone.components for m in found.models_]}
    return Fitted(lambda x, n, seed: found.sample(n, seed, c=x), found.score_samples, setting)


def as_floats(*parts: Array) -> list[torch.Tensor]:
    """Arrays as tensors of sbi's precision."""
    return [torch.from_numpy(part.astype(np.float32)) for part in parts]


def npe(theta: Array, x: Array, seed: int, seconds: float, flow: str = "maf") -> Fitted:
    """Neural posterior estimation as sbi has it by default; it ends when time does, and keeps its best epoch."""
    from sbi.inference import NPE

    deadline = time.process_time() + seconds

    class Timed(NPE):
        def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
            return super()._converged(epoch, stop_after_epochs if time.process_time() < deadline else 0)

    torch.manual_seed(seed)
    trainer = Timed(density_estimator=flow, **QUIET)
    net = trainer.append_simulations(*as_floats(theta, x)).train()

    @torch.no_grad()
    def draw(x: Array, n: int, seed: int) -> Array:
        torch.manual_seed(seed)
        return net.sample((n,), condition=torch.from_numpy(x[None]).float())[:, 0].double().numpy()

    @torch.no_grad()
    def log_prob(theta: Array, x: Array) -> Array:
        inputs, at = as_floats(theta, np.broadcast_to(x, (len(theta), x.shape[-1])))
        return net.log_prob(inputs[None], condition=at)[0].double().numpy()

    return Fitted(draw, log_prob, {"epochs": trainer.summary["epochs_trained"]})


def vector_field(theta: Array, x: Array, seed: int, seconds: float, kind: str) -> Fitted:
    """FMPE or NPSE of sbi with their defaults, until they stop by themselves; their log p is not computed."""
    from sbi import inference

    torch.manual_seed(seed)
    trainer = getattr(inference, kind)(**QUIET)
    posterior = trainer.build_posterior(trainer.append_simulations(*as_floats(theta, x)).train())

    def draw(x: Array, n: int, seed: int) -> Array:
        torch.manual_seed(seed)
        return posterior.sample((n,), torch.from_numpy(x[None]).float(), show_progress_bars=False).double().numpy()

    unknown = np.full(len(theta), math.nan)
    return Fitted(draw, lambda theta, x: unknown[: len(theta)], {"epochs": trainer.summary["epochs_trained"]})


METHODS = {"indm": indm, "npe": npe}
BATCH, RATE, PATIENCE = 256, 1e-3, 20  # epochs without a better validation end it


def spline_flow(theta: Array, x: Array, seed: int, seconds: float) -> tuple[Any, float]:
    """A neural spline flow of θ given x by maximum likelihood, and its mean log p of a tenth, which ends the fit."""
    import zuko

    torch.manual_seed(seed)
    flow = zuko.flows.NSF(theta.shape[1], x.shape[1], transforms=5, hidden_features=(64, 64))
    optimizer, deadline = torch.optim.Adam(flow.parameters(), RATE), time.process_time() + seconds
    theta, x = as_floats(theta, x)
    held, rest = torch.randperm(len(x)).split([len(x) // 10, len(x) - len(x) // 10])
    best, since, state = -math.inf, 0, flow.state_dict()
    while since < PATIENCE and time.process_time() < deadline:
        for rows in rest[torch.randperm(len(rest))].split(BATCH):
            optimizer.zero_grad()
            (-flow(x[rows]).log_prob(theta[rows]).mean()).backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimizer.step()
        with torch.no_grad():
            value = flow(x[held]).log_prob(theta[held]).mean().item()
        since += 1
        if value > best:
            best, since, state = value, 0, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(state)
    return flow, best


def flow_first(theta: Array, x: Array, seed: int, seconds: float, corrected: bool = True) -> Fitted:
    """A spline flow for half of the seconds, and behind it the diffusion of its latents for the rest; or the flow."""
    began, units, own = time.process_time(), StandardScaler().fit(x), StandardScaler().fit(theta)
    share = seconds / 2 if corrected else seconds
    flow, value = spline_flow(own.transform(theta), units.transform(x), seed, share)

    @torch.no_grad()
    def mapped(theta: Array, x: Array, back: bool = False) -> tuple[Array, Array]:
        at = np.broadcast_to(units.transform(np.atleast_2d(x)), (len(theta), x.shape[-1]))
        inputs, at = as_floats(theta if back else own.transform(theta), at)
        transform = flow(at).transform
        out, slope = (transform.inv if back else transform).call_and_ladj(inputs)
        out = out.double().numpy()
        return own.inverse_transform(out) if back else out, slope.double().numpy() - np.log(own.scale_).sum()

    latents, spent = mapped(theta, x)[0], time.process_time() - began
    if corrected:
        inner = indm(latents, x, seed, seconds - spent)
    else:
        inner = Fitted(
            lambda x, n, seed: np.random.default_rng(seed).standard_normal((n, theta.shape[1])),
            lambda h, x: norm.logpdf(h).sum(1), {},
        )  # fmt: skip

    setting = {"flow": round(value, 4), "flow_seconds": round(spent, 1)} | inner.setting

    def log_prob(theta: Array, x: Array) -> Array:
        h, slope = mapped(theta, x)
        return inner.log_prob(h, x) + slope

    return Fitted(lambda x, n, seed: mapped(inner.draw(x, n, seed), x, True)[0], log_prob, setting)


def c2st(first: Array, second: Array, seed: int = 0) -> float:
    """The accuracy with which an MLP tells two sets of rows apart, in 5 folds; columns in units of the first set."""
    rows = (np.concatenate([first, second]) - first.mean(0)) / first.std(0)
    labels, hidden = np.repeat([0, 1], [len(first), len(second)]), 10 * first.shape[1]
    classifier = MLPClassifier((hidden, hidden), random_state=seed, **CLASSIFIER)
    return cross_val_score(classifier, rows, labels, cv=KFold(5, shuffle=True, random_state=seed)).mean()


def within(inside: Callable[[Array], Array], fitted: Fitted, x: Array, n: int) -> tuple[Array, float]:
    """``n`` draws within the prior, and the share of all that are; below a share of 5 %, draws outside fill them up."""
    kept, count, tried = [], 0, 0
    while count < n and tried < MOST_TRIES * n:
        tenths = min(10, math.ceil(11 * (1 - count / n) * max(tried, n) / max(count, 1)))  # tenths of n to draw
        theta = fitted.draw(x, math.ceil(n * tenths / 10), tried)
        kept.append(theta[inside(theta)])
        count, tried = count + len(kept[-1]), tried + len(theta)
    return np.concatenate([*kept, theta])[:n], count / tried


@functools.cache
def observed(name: str) -> tuple[Array, Array]:
    """Observations, and true draws (observations, draws, d) at each."""
    x = SIMULATORS[name].pairs(OBSERVATIONS, np.random.default_rng(1_000))[1]
    return x, np.stack([SIMULATORS[name].posterior(row, DRAWS, np.random.default_rng(0)) for row in x])


def true(name: str) -> dict[str, Any]:
    """The record of true draws against others."""
    options = {"spread": 0.1} if name == "slcp" else {}
    again = [SIMULATORS[name].posterior(row, DRAWS, np.random.default_rng(1), **options) for row in observed(name)[0]]
    return {"c2st": [round(c2st(*two), 4) for two in zip(observed(name)[1], again, strict=True)]}


def trained(name: str, pairs: int, method: str, seed: int, seconds: float) -> dict[str, Any]:
    """The record of one training."""
    simulator, numbers = SIMULATORS[name], np.random.default_rng(seed)
    theta, x = simulator.pairs(pairs, numbers)
    start = time.process_time()
    fitted = METHODS[method](theta, x, seed, seconds)
    spent = time.process_time() - start
    each: dict[str, list[float]] = {"c2st": [], "divergence": [], "inside": []}
    for at, truth in zip(*observed(name), strict=True):
        drawn, share = within(simulator.inside, fitted, at, DRAWS)
        each["c2st"].append(c2st(truth, drawn))
        each["inside"].append(share)
        if hasattr(simulator, "log_posterior"):
            log_q = fitted.log_prob(truth, np.repeat(at[None], len(truth), 0)) - math.log(share)
            each["divergence"].append((simulator.log_posterior(truth, at) - log_q).mean())
    log_prob = fitted.log_prob(*simulator.pairs(1_000, numbers))
    sbi = {"sbi": importlib.metadata.version("sbi")} if method == "npe" else {}
    return {
        "setting": fitted.setting, "seconds": seconds,
        "fit_cpu_seconds": round(spent, 1), "judged_cpu_seconds": round(time.process_time() - start - spent, 1),
        **{key: [round(float(value), 4) for value in values] for key, values in each.items()},
        "log_prob_of_fresh_pairs": mean_and_error(torch.from_numpy(log_prob)),
    } | sbi | made_by(seed)  # fmt: skip


def markdown(table: Records) -> str:
    """Means over observations and seeds ± the standard error over seeds, in Markdown."""
    columns = ["C2ST of true", *(f"{what} {m}" for what in ("C2ST", "divergence", "seconds") for m in METHODS)]
    lines = []
    for name in SIMULATORS:
        of_it = table.at(simulator=name)
        for pairs in sorted({row["pairs"] for row in of_it.rows()} - {0}, reverse=True):
            runs = of_it.at(pairs=pairs).of_common_seeds("method", METHODS)
            if len(runs["indm"]) > 1:
                cells = [f"{np.mean(of_it.at(pairs=0).rows()[0]['c2st']):.3f}"]
                for key, form in ("c2st", ".3f"), ("divergence", ".2f"), ("fit_cpu_seconds", ".0f"):
                    for rows in runs.values():
                        mean, error = over_seeds([float(np.mean(row[key] or [np.nan])) for row in rows])
                        cells.append("–" if math.isnan(mean) else with_error(mean, error, form))
                lines.append((name, pairs, len(runs["indm"]), *cells))
    return in_table("simulator", "pairs", "seeds", *columns, rows=lines)


def record(cell: Records, make: Callable[[], dict[str, Any]]) -> None:
    """Make the record where there is none."""
    if not cell.rows():
        print(cell.kept(make), flush=True)


def main() -> None:
    parser = command.parser("posteriors", __doc__, 60.0, pairs=[10_000])
    parser.add_argument("simulators", nargs="*", default=list(SIMULATORS), help=f"of {', '.join(SIMULATORS)}")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each method")
    o = command.parsed(parser, None)
    if "npe" in o.methods and importlib.util.find_spec("sbi") is None:
        print("npe is left out because sbi is not installed: pip install sbi")
        o.methods.remove("npe")
    warnings.simplefilter("ignore")
    table = Records(o.records / "posteriors.csv")
    for name in o.simulators:
        record(table.at(simulator=name, pairs=0, method="true", seed=0), lambda name=name: true(name))
    for seed, pairs, name, method in itertools.product(range(o.seeds), o.pairs, o.simulators, o.methods):
        cell = table.at(simulator=name, pairs=pairs, method=method, seed=seed)
        record(cell, lambda case=(name, pairs, method, seed): trained(*case, o.seconds))
    print(markdown(table))
