"""The ten tasks of the benchmark sbibm (Lueckmann et al. 2021): indm.DensityEstimator beside sbi;
see sbibm.md.

    python -m research.posteriors sbibm --home HOME    # goes on where it stopped

Tasks, observations, reference draws and the C2ST come from the package. SIR and Lotka–Volterra are
solved by SciPy in place of Julia, and their counts are seen as logarithms. Parameters in a box are
given to all methods as numbers of the whole line. ``--home`` keeps the simulations and the table
``sbibm.csv``, which has a row for each task, seed and method.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from filelock import FileLock
from scipy.integrate import odeint

from indm import PosteriorEstimator
from indm.files import atomic
from indm.tables.columns import from_line, log_slope, to_line
from indm.tables.prior import Prior
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.posteriors import study
from research.records import Records, made_by
from research.tables import command

Array = np.ndarray
Fit = Callable[..., study.Fitted]  # takes θ, x, a seed and seconds
OWN = "indm"
RIVALS: dict[str, Fit] = {
    "npe": study.npe,
    "npe nsf": functools.partial(study.npe, flow="nsf"),
    "fmpe": functools.partial(study.vector_field, kind="FMPE"),
    "npse": functools.partial(study.vector_field, kind="NPSE"),
}
# a rival that sees parameters as they are; its draws outside the prior are rejected
FREE = ", no box"
CONTROLS = {name + FREE: RIVALS[name] for name in ("npe nsf", "fmpe", "npse")}
METHODS = (OWN, *RIVALS, *CONTROLS)
PARENTS: dict[str, Fit] = {  # beside the linear diffusion that OWN is; within the same seconds
    "flow": functools.partial(study.flow_first, corrected=False),
    "flow first": study.flow_first,
}
SEEDS = (
    {OWN: (0, 1, 2)} | dict.fromkeys(RIVALS, (0, 1)) | dict.fromkeys((*CONTROLS, *PARENTS), (0,))
)
# how many; of the others 3, as their C2ST takes minutes
OBSERVATIONS = {"two_moons": 10, "gaussian_mixture": 10}
FRESH = 1_000  # pairs, not fitted, for the mean log p
CHECKED = 300  # pairs among these, for a picture of the calibration
BOTH = {"c2st": "C2ST", "log_p": "log q"}
SIDES = ("linear diffusion", "flow", "flow first")
# numbers of the tables, and their digits
SHOWN = {"c2st": 3, "log_p": 2, "fit_cpu_seconds": 0, "outside": 2}
# tolerance of the ODEs; steps between two of their save points
TOLERANCE, MOST_STEPS = 1e-8, 100_000
# C2ST at 10,000 simulations of NPE and of the best sequential method, over observations 1–10 and
# 1–3
PUBLISHED = {
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


def lotka_volterra(
    u: Array, t: float, birth: float, eaten: float, death: float, fed: float
) -> tuple[float, ...]:
    """The rates of prey and predators."""
    prey, predators = u
    return birth * prey - eaten * prey * predators, fed * prey * predators - death * predators


RATES = {"sir": sir, "lotka_volterra": lotka_volterra}


class Solver:
    """The ODE of a task at its save points, called as the task calls the one of diffeqtorch, which
    needs Julia.
    """

    jl = SimpleNamespace(eval=lambda code: None)

    def __init__(self, rates: Any, every: float):
        self.rates, self.every = rates, every

    def __call__(
        self, start: torch.Tensor, span: torch.Tensor, theta: torch.Tensor
    ) -> tuple[torch.Tensor, Array]:
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
            # the package's
            with mock.patch.object(
                torch, "load", functools.partial(torch.load, weights_only=False)
            ):
                theta = task.get_prior()(num_samples=n)
                x = task.get_simulator()(theta)
            atomic.whole(
                path, atomic.arrays_into({"theta": theta.double().numpy(), "x": x.double().numpy()})
            )
        with np.load(path) as found:
            return found["theta"], found["x"]


def inside(task: Any, theta: Array) -> Array:
    """Whether rows are in the support of the prior."""
    return task.get_prior_dist().support.check(torch.from_numpy(theta)).numpy()


def prior(task: Any) -> Prior:
    """The prior of a task, with its box."""
    return Prior(task.get_prior_dist(), task.dim_parameters)


def seen(name: str, x: Array) -> Array:
    """Data as methods see them: counts, which have heavy tails, as logarithms."""
    return np.log1p(x) if name in RATES else x


def boxed(fit: Fit, interval: Array) -> Fit:
    """A method whose θ are mapped from their intervals (2, d) to the line, by normal quantiles or
    logarithms.
    """

    def fitted(theta: Array, x: Array, seed: int, seconds: float) -> study.Fitted:
        inner = fit(to_line(theta, interval), x, seed, seconds)
        return study.Fitted(
            lambda x, n, seed: from_line(inner.draw(x, n, seed), interval),
            lambda theta, x: (
                inner.log_prob(to_line(theta, interval), x) + log_slope(theta, interval).sum(1)
            ),
            inner.setting,
        )

    return fitted


def fit_of(method: str, task: Any) -> Fit:
    """A method for a task, which knows the intervals of its prior."""
    if method == OWN:
        return functools.partial(study.indm, bounds=prior(task).bounds)
    return (
        CONTROLS[method]
        if method in CONTROLS
        else boxed((RIVALS | PARENTS)[method], prior(task).interval)
    )


def judged(task: Any, fitted: study.Fitted, observation: int, draws: int) -> dict[str, float]:
    """The C2ST at an observation, the share of draws outside the prior, and the CPU seconds of both
    parts.
    """
    from sbibm.metrics.c2st import c2st

    start = time.process_time()
    x = seen(task.name, task.get_observation(observation)[0].double().numpy())
    drawn, share = study.within(functools.partial(inside, task), fitted, x, draws)
    middle = time.process_time()
    value = c2st(
        task.get_reference_posterior_samples(observation)[:draws], torch.from_numpy(drawn).float()
    )
    seconds = {"draw_cpu_seconds": middle - start, "c2st_cpu_seconds": time.process_time() - middle}
    return {"c2st": value.item(), "outside": 1 - share} | seconds


def trained(name: str, seed: int, method: str, o: argparse.Namespace) -> dict[str, Any]:
    """The record of one training."""
    task = task_of(name)
    theta, x = pairs(task, o.simulations + FRESH, seed, o.home)
    # the others stop by themselves
    x, limit = seen(name, x), o.seconds if method in (OWN, *PARENTS) else math.inf
    start = time.process_time()
    fitted = fit_of(method, task)(theta[:-FRESH], x[:-FRESH], seed, limit)
    spent = time.process_time() - start
    log_prob = fitted.log_prob(theta[-FRESH:], x[-FRESH:])
    each = [judged(task, fitted, observation, o.draws) for observation in observations(name)]
    return {
        "setting": fitted.setting, "fit_cpu_seconds": round(spent, 1), "ended_itself": spent < limit,
        **{key: [round(one[key], 4) for one in each] for key in each[0]},
        "log_p": None if np.isnan(log_prob).any() else round(float(log_prob.mean()), 4),
        "sbi": importlib.metadata.version("sbi"), "sbibm": importlib.metadata.version("sbibm"),
    } | made_by(seed)  # fmt: skip


def observations(name: str) -> list[int]:
    """The observations at which a task is judged."""
    return list(range(1, 1 + OBSERVATIONS.get(name, 3)))


def summary(rows: Sequence[dict[str, Any]], key: str, digits: int) -> str:
    """The mean over seeds of means over observations ± the standard error over seeds."""
    if not rows:
        return "–"
    return with_error(*over_seeds([float(np.mean(row[key])) for row in rows]), f".{digits}f")


def markdown(table: Records, key: str) -> str:
    """A number of the tasks that were run: means over seeds and observations of the methods, and
    what was published.
    """
    lines = []
    for name, published in PUBLISHED.items():
        found = [table.at(task=name, method=method).rows() for method in METHODS]
        if any(found):
            known = [f"{ten if name in OBSERVATIONS else three:.3f}" for ten, three in published]
            cells = [
                summary([row for row in rows if row[key] is not None], key, SHOWN[key])
                for rows in found
            ]
            seeds = f"{len(found[0])}, {min(map(len, found[1 : 1 + len(RIVALS)]))}"
            lines.append([name, seeds, *cells, *(known if key == "c2st" else ())])
    columns = ("published NPE", "published sequential") if key == "c2st" else ()
    return in_table("task", "seeds", *METHODS, *columns, rows=lines)


def parents_table(table: Records) -> str:
    """C2ST and log q of the linear diffusion, a flow and both, by task and seconds: seed 0, means
    over observations.
    """
    lines = []
    for name, seconds in itertools.product(
        PUBLISHED, sorted({row["seconds"] for row in table.rows()})
    ):
        found = [
            table.at(task=name, seconds=seconds, method=method, seed=0).rows()
            for method in (OWN, *PARENTS)
        ]
        if any(found[1:]):
            lines.append(
                [
                    name,
                    f"{seconds:g}",
                    *(summary(rows, key, SHOWN[key]) for key in BOTH for rows in found),
                ]
            )
    return in_table(
        "task", "seconds", *(f"{key} {m}" for key in BOTH.values() for m in SIDES), rows=lines
    )


def calibrated(name: str, o: argparse.Namespace) -> str:
    """Draw the calibration of a posterior of a task whose prior is a box, on pairs that were not
    fitted.
    """
    task = task_of(name)
    theta, x = pairs(task, o.simulations + FRESH, 0, o.home)
    posterior = PosteriorEstimator(
        tuple(prior(task).interval), max_seconds=o.seconds, random_state=0
    ).fit(theta[:-FRESH], x[:-FRESH])
    found = posterior.calibration(theta[-CHECKED:], x[-CHECKED:], 100)
    found.plot(o.calibrate / f"calibration-{name}.png")
    return f"{name}\n{found}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "research.posteriors sbibm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--home", type=Path, required=True, help="folder of the simulations and the table"
    )
    parser.add_argument("--tasks", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *PARENTS), default=METHODS)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument(
        "--draws", type=int, default=10_000, help="of the reference and of the estimate"
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="CPU seconds of indm's fit, at most"
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        help="draw pictures of the calibration on tasks into this folder instead",
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
    table = Records(o.home / "sbibm.csv").at(
        simulations=o.simulations, draws=o.draws, seconds=o.seconds
    )
    for name, method in itertools.product(o.tasks, o.methods):
        for seed in SEEDS[method]:
            cell = table.at(task=name, seed=seed, method=method)
            study.record(cell, functools.partial(trained, name, seed, method, o))
    for key in SHOWN:
        print(f"\n{key}\n{markdown(table, key)}")
