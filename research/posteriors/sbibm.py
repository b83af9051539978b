"""The ten tasks of the benchmark sbibm (Lueckmann et al. 2021): indm.DensityEstimator beside NPE of sbi; see sbibm.md.

    python -m research.posteriors sbibm --home HOME    # goes on where it stopped

Tasks, observations, reference draws and the C2ST come from the package. SIR and Lotka–Volterra are solved by SciPy
in place of Julia. ``--home`` keeps the simulations and the table ``sbibm.csv``, which has a row for each task, seed and
method.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import itertools
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from filelock import FileLock
from scipy.integrate import odeint

from indm import PosteriorEstimator
from indm.evaluation.statistics import over_seeds
from indm.files import atomic
from research.markdown import in_table, with_error
from research.posteriors import study
from research.records import Records, made_by
from research.tables import command

Array = np.ndarray
METHODS = {
    "indm": study.indm,
    "npe": functools.partial(study.npe, flow="nsf"),
    "fmpe": functools.partial(study.vector_field, kind="FMPE"),
    "npse": functools.partial(study.vector_field, kind="NPSE"),
}
BOTH = ("indm", "npe")  # methods of the table
FRESH = 1_000  # pairs, not fitted, for the mean log p
CHECKED = 300  # pairs among these, for a picture of the calibration
TOLERANCE, MOST_STEPS = 1e-8, 100_000  # tolerance of the ODEs; steps between two of their save points
PUBLISHED = {  # C2ST at 10,000 simulations of NPE and of the best sequential method, over observations 1–10 and 1–3
    "two_moons": ((0.606, 0.586), (0.554, 0.537)),
    "slcp": ((0.901, 0.894), (0.713, 0.703)),
    "slcp_distractors": ((0.970, 0.974), (0.931, 0.921)),
    "gaussian_linear": ((0.552, 0.543), (0.536, 0.534)),
    "gaussian_linear_uniform": ((0.553, 0.566), (0.527, 0.539)),
    "gaussian_mixture": ((0.615, 0.630), (0.551, 0.545)),
    "bernoulli_glm": ((0.678, 0.698), (0.553, 0.547)),
    "bernoulli_glm_raw": ((0.765, 0.774), (0.658, 0.626)),
    "sir": ((0.680, 0.841), (0.561, 0.537)),
    "lotka_volterra": ((0.997, 0.997), (0.738, 0.718)),
}


def sir(u: Array, t: float, contact: float, recovery: float) -> tuple[float, ...]:
    """The rates of susceptible, infected and recovered of a million people."""
    susceptible, infected, _ = u
    new = contact * susceptible * infected / 1e6
    return -new, new - recovery * infected, recovery * infected


def lotka_volterra(u: Array, t: float, birth: float, eaten: float, death: float, fed: float) -> tuple[float, ...]:
    """The rates of prey and predators."""
    prey, predators = u
    return birth * prey - eaten * prey * predators, fed * prey * predators - death * predators


RATES = {"sir": sir, "lotka_volterra": lotka_volterra}


class Solver:
    """The ODE of a task at its save points, called as the task calls the one of diffeqtorch, which needs Julia."""

    jl = SimpleNamespace(eval=lambda code: None)

    def __init__(self, rates: Any, every: float):
        self.rates, self.every = rates, every

    def __call__(self, start: torch.Tensor, span: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, Array]:
        """The states (numbers, times) from ``start``, and the times."""
        first, last = span.tolist()
        times = np.linspace(first, last, round((last - first) / self.every) + 1)
        options = {"rtol": TOLERANCE, "atol": TOLERANCE, "mxstep": MOST_STEPS}
        states = odeint(self.rates, start.tolist(), times, args=tuple(theta.tolist()), **options)
        return torch.from_numpy(states.T.copy()), times


def task_of(name: str) -> Any:
    """The task of sbibm."""
    import sbibm

    sys.modules.setdefault("diffeqtorch", SimpleNamespace(DiffEq=Solver))  # type: ignore[arg-type]
    task = sbibm.get_task(name)
    if name in RATES:
        type(task).de = Solver(RATES[name], task.saveat)
    return task


def pairs(task: Any, n: int, seed: int, home: Path) -> tuple[Array, Array]:
    """``n`` draws of (θ, x), simulated once."""
    path = home / "simulations" / f"{task.name}-{n}-{seed}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            torch.manual_seed(seed)
            with mock.patch.object(torch, "load", functools.partial(torch.load, weights_only=False)):  # the package's
                theta = task.get_prior()(num_samples=n)
                x = task.get_simulator()(theta)
            atomic.whole(path, atomic.arrays_into({"theta": theta.double().numpy(), "x": x.double().numpy()}))
        with np.load(path) as found:
            return found["theta"], found["x"]


def inside(task: Any, theta: Array) -> Array:
    """Whether rows are in the support of the prior."""
    return task.get_prior_dist().support.check(torch.from_numpy(theta)).numpy()


def bounds(task: Any) -> dict[int, tuple[float | None, float | None]]:
    """The intervals of θ that the prior allows, of those with any bounds."""
    law = getattr(task.get_prior_dist(), "base_dist", None)
    if isinstance(law, torch.distributions.Uniform):
        return dict(enumerate(zip(law.low.tolist(), law.high.tolist(), strict=True)))
    if isinstance(law, torch.distributions.LogNormal):
        return {i: (0.0, None) for i in range(law.loc.numel())}
    return {}


def judged(task: Any, fitted: study.Fitted, observation: int, draws: int) -> dict[str, float]:
    """The C2ST at an observation, the share of draws outside the prior, and the CPU seconds of both parts."""
    from sbibm.metrics.c2st import c2st

    start = time.process_time()
    x = task.get_observation(observation)[0].double().numpy()
    drawn, share = study.within(functools.partial(inside, task), fitted, x, draws)
    middle = time.process_time()
    value = c2st(task.get_reference_posterior_samples(observation)[:draws], torch.from_numpy(drawn).float())
    seconds = {"draw_cpu_seconds": middle - start, "c2st_cpu_seconds": time.process_time() - middle}
    return {"c2st": value.item(), "outside": 1 - share} | seconds


def trained(name: str, seed: int, method: str, o: argparse.Namespace) -> dict[str, Any]:
    """The record of one training."""
    task = task_of(name)
    theta, x = pairs(task, o.simulations + FRESH, seed, o.home)
    ours = method == "indm"
    limit, options = (o.seconds, {"bounds": bounds(task)}) if ours else (math.inf, {})  # NPE stops by itself
    start = time.process_time()
    fitted = METHODS[method](theta[:-FRESH], x[:-FRESH], seed, limit, **options)
    spent = time.process_time() - start
    log_prob = fitted.log_prob(theta[-FRESH:], x[-FRESH:])
    each = [judged(task, fitted, observation, o.draws) for observation in o.observations]
    return {
        "setting": fitted.setting, "fit_cpu_seconds": round(spent, 1), "ended_itself": spent < limit,
        **{key: [round(one[key], 4) for one in each] for key in each[0]},
        "log_p": None if np.isnan(log_prob).any() else round(float(log_prob.mean()), 4),
        "sbi": importlib.metadata.version("sbi"), "sbibm": importlib.metadata.version("sbibm"),
    } | made_by(seed)  # fmt: skip


def summary(rows: Sequence[dict[str, Any]], key: str, digits: int) -> str:
    """The mean over seeds of means over observations ± the standard error over seeds."""
    if not rows:
        return "–"
    return with_error(*over_seeds([float(np.mean(row[key])) for row in rows]), f".{digits}f")


def markdown(table: Records) -> str:
    """All tasks with both methods and what was published."""
    measured = {"C2ST": ("c2st", 3), "outside": ("outside", 2), "CPU s": ("fit_cpu_seconds", 0), "log p": ("log_p", 2)}
    first, *others = [[f"{what} {method}" for method in BOTH] for what in measured]
    lines = []
    for name, published in PUBLISHED.items():
        found = [table.at(task=name, method=method).rows() for method in BOTH]
        cells = [summary(rows, *what) for what in measured.values() for rows in found]
        known = [f"{ten:.3f} ({three:.3f})" for ten, three in published]
        ended = f"{sum(row['ended_itself'] for row in found[0])} of {len(found[0])}" if found[0] else "–"
        lines.append([name, *cells[:2], *known, *cells[2:], ended])
    columns = [*first, "published NPE", "published sequential", *itertools.chain(*others), "indm ended by itself"]
    return in_table("task", *columns, rows=lines)


def calibrated(name: str, o: argparse.Namespace) -> str:
    """Draw the calibration of a posterior of a task whose prior is a box, on pairs that were not fitted."""
    task = task_of(name)
    theta, x = pairs(task, o.simulations + FRESH, 0, o.home)
    box = tuple(zip(*bounds(task).values(), strict=True))
    posterior = PosteriorEstimator(box, max_seconds=o.seconds, random_state=0).fit(theta[:-FRESH], x[:-FRESH])
    found = posterior.calibration(theta[-CHECKED:], x[-CHECKED:], 100)
    found.plot(o.calibrate / f"calibration-{name}.png")
    return f"{name}\n{found}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "research.posteriors sbibm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True, help="folder of the simulations and the table")
    parser.add_argument("--tasks", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=BOTH)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--observations", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--draws", type=int, default=10_000, help="of the reference and of the estimate")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of indm's fit, at most")
    parser.add_argument(
        "--calibrate", type=Path, help="draw pictures of the calibration on tasks into this folder instead"
    )
    o = command.parsed(parser, arguments)
    for package in ("sbibm", "sbi"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed: research/posteriors/sbibm.md says how")
    warnings.simplefilter("ignore")
    if o.calibrate:
        for name in o.tasks:
            print(calibrated(name, o))
        return
    table = Records(o.home / "sbibm.csv").at(simulations=o.simulations, draws=o.draws, observations=o.observations)
    for seed, name, method in itertools.product(o.seeds, o.tasks, o.methods):
        study.record(table.at(task=name, seed=seed, method=method), lambda c=(name, seed, method): trained(*c, o))
    print(markdown(table))
