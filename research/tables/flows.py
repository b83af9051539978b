"""Test log-likelihoods of small tables: indm.DensityEstimator beside flows of zuko and sbi, a mixture and a KDE.

    python -m research.tables flows iris wine # trains what has no record yet, then shows the table of all records
    python -m research.tables flows all

A fifth of the rows is the test, by the seed, and a tenth of the others validates methods that do not split by
themselves. All numbers are nats of a row of the raw table. Discrete columns get uniform noise, and a row's value is the
log of its mean density over the same 4 points of the noise for every method. Each training has ``--seconds`` of the
processor on one thread. Mixture and KDE are chosen by validation over a grid, without a limit of time; the flows choose
their rate by it, each half of the time, and keep their best validated state. The flows of sbi have the default
architecture of its NPE and a constant condition. Every training is a row of ``tables.csv``. Without sbi, which is not a
dependency, its trainings are left out.
"""

import copy
import importlib.metadata
import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import zuko
from scipy.stats import qmc
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from indm import DensityEstimator
from indm.evaluation.statistics import mean_and_error
from indm.tables.solve import SOLVER_ERROR
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import Records, made_by
from research.tables import command

DRAWS = 4  # points of the noise
Array = np.ndarray
LogDensity = Callable[[Array], Array]


def mixture(n: int, seed: int) -> Array:
    """Five Gaussians in eight dimensions, always the same, with full covariances."""
    fixed, numbers = np.random.default_rng(0), np.random.default_rng(1000 + seed)
    means = 2.0 * fixed.standard_normal((5, 8))
    bases = np.linalg.qr(fixed.standard_normal((5, 8, 8)))[0] * np.exp(fixed.uniform(-1.2, 0.3, (5, 1, 8)))
    which = numbers.integers(5, size=n)
    return means[which] + np.einsum("nij,nj->ni", bases[which], numbers.standard_normal((n, 8)))


TABLES: dict[str, tuple[Callable[[int], Array], tuple[int, ...]]] = {  # rows by the seed, discrete columns
    "moons": (lambda seed: datasets.make_moons(2000, noise=0.1, random_state=seed)[0], ()),
    "circles": (lambda seed: datasets.make_circles(2000, noise=0.05, factor=0.5, random_state=seed)[0], ()),
    "swiss-roll": (lambda seed: datasets.make_swiss_roll(2000, noise=0.5, random_state=seed)[0], ()),
    "blobs": (lambda seed: datasets.make_blobs(1000, n_features=5, centers=6, random_state=seed)[0], ()),
    "mixture-8d": (lambda seed: mixture(2000, seed), ()),
    "iris": (lambda seed: np.round(datasets.load_iris().data * 10), (0, 1, 2, 3)),
    "wine": (lambda seed: datasets.load_wine().data, ()),
    "diabetes": (lambda seed: datasets.load_diabetes(scaled=False).data, (0, 1)),  # age and sex
    "breast-cancer": (lambda seed: datasets.load_breast_cancer().data, ()),
    "digits": (lambda seed: datasets.load_digits().data, tuple(range(64))),
}


def split(name: str, seed: int) -> tuple[Array, Array, list[int]]:
    """The rows to fit and to test, and the discrete columns."""
    make, discrete = TABLES[name]
    return *parted(make(seed), seed), list(discrete)


def parted(X: Array, seed: int) -> tuple[Array, Array]:
    """The rows to fit and to test: a fifth is the test."""
    order = np.random.default_rng(seed).permutation(len(X))
    return X[order[len(X) // 5 :]], X[order[: len(X) // 5]]


def over_noise(X: Array, discrete: list[int], log_density: LogDensity) -> Array:
    """log of the mean density of rows over the points of the noise."""
    points = qmc.Sobol(len(discrete), rng=0).random(DRAWS) if discrete else np.zeros((1, 0))
    each = []
    for point in points:
        noise = np.zeros_like(X)
        noise[:, discrete] = point
        each.append(log_density(X + noise))
    return np.logaddexp.reduce(each) - math.log(len(points))


class Space:
    """z = (x + u − mean)/std, u in [0, 1) in discrete columns and else 0."""

    def __init__(self, X: Array, discrete: list[int], seed: int):
        self.discrete, self.numbers = discrete, np.random.default_rng(seed)
        noisy = X + self.noise(X)
        self.mean, self.std = noisy.mean(0), np.maximum(noisy.std(0), 1e-6)

    def noise(self, X: Array) -> Array:
        noise = np.zeros_like(X)
        noise[:, self.discrete] = self.numbers.random((len(X), len(self.discrete)))
        return noise

    def __call__(self, X: Array) -> Array:
        return (X - self.mean) / self.std

    def drawn(self, X: Array, repeats: int = 1) -> Array:
        return np.concatenate([self(X + self.noise(X)) for _ in range(repeats if self.discrete else 1)])

    def log_volume(self, X: Array) -> Array:
        """log|det ∂z/∂x| at rows."""
        return np.full(len(X), -np.log(self.std).sum())

    def log_prob(self, X: Array, density: LogDensity) -> Array:
        """log p of raw rows from the log-density of z."""
        return over_noise(X, self.discrete, lambda rows: density(self(rows)) + self.log_volume(rows))


# ── Methods: (rows to train, to validate, their space, seed, seconds) → log p of rows, the setting ───────────────────

Fitted = tuple[LogDensity, dict[str, Any]]


class Diverged(Exception):
    """A method found no density."""


def indm(train: Array, valid: Array, space: Space, seed: int, seconds: float) -> Fitted:
    """The estimator, whose ODE has a stated error, nats, and at some rows no solution."""
    X = np.concatenate([train, valid])
    found = DensityEstimator(discrete=space.discrete, max_seconds=seconds, random_state=seed).fit(X)
    if found.ended_by_ == "interrupt":  # the fit survives an interrupt
        raise KeyboardInterrupt
    setting = {
        "steps": found.n_steps_,
        "models": len(found.models_),
        "ended": found.ended_,
        "starts": found.starts_,
        "gains": found.gains_,
    }

    def log_density(rows: Array) -> Array:
        value, errors = found._log_density(rows, np.zeros((len(rows), 0)), SOLVER_ERROR)
        is_solved = errors.isfinite()
        setting["unsolved"] = setting.get("unsolved", 0) + int((~is_solved).any(0).sum())
        setting["ode_error"] = round(errors[is_solved].mean().nan_to_num().item(), 4)
        return value

    return lambda rows: over_noise(rows, space.discrete, log_density), setting


Flow = torch.nn.Module


def flow(
    make: Callable[[torch.Tensor], Flow],
    log_prob: Callable[[Flow, torch.Tensor], torch.Tensor],
    rates: Sequence[float] = (1e-3, 3e-3),
    batch: int = 128,
    patience: float = 1 / 3,
) -> Callable[..., Fitted]:
    """A flow that ``make`` makes for standardised rows, and its log-density at rows.

    ``rates`` have equal shares of the seconds; after ``patience`` of one without a better validation the next is tried.
    """

    def fit(train: Array, valid: Array, space: Space, seed: int, seconds: float) -> Fitted:
        best: tuple[float, Flow | None, dict[str, Any]] = (-math.inf, None, {})
        held = torch.from_numpy(space.drawn(valid, 4)).float()
        for lr in rates:
            torch.manual_seed(seed)
            model = make(torch.from_numpy(space(train)).float())
            optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4)
            start, spent, step, checked, best_at = time.process_time(), 0.0, 0, 0, 0.0
            while spent < 1 and spent - best_at < patience:
                rows = train[torch.randint(len(train), (min(batch, len(train)),)).numpy()]
                optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * max(0.0, 1 - spent))
                optimizer.zero_grad()
                (-log_prob(model, torch.from_numpy(space.drawn(rows)).float()).mean()).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                step, spent = step + 1, (time.process_time() - start) / (seconds / len(rates))
                if spent >= min(1, (checked + 1) / 30):
                    checked = math.floor(spent * 30)
                    with torch.no_grad():
                        value = log_prob(model, held).mean().item()
                    if value > best[0]:
                        setting = {"lr": lr, "step": step, "valid": value}
                        best, best_at = (value, copy.deepcopy(model), setting), spent
        _, chosen, setting = best
        if chosen is None:
            raise Diverged(f"no finite validation in {seconds:g} s: it needs more --seconds, or it diverges")

        @torch.no_grad()
        def density(z: Array) -> Array:
            return log_prob(chosen, torch.from_numpy(z).float()).double().numpy()

        return lambda X: space.log_prob(X, density), setting

    return fit


def of_zuko(kind: str, options: dict[str, Any] | None = None, **training: Any) -> Callable[..., Fitted]:
    """A flow of zuko, by default of three transforms with two hidden layers of 64; ``training`` is of :func:`flow`."""
    options = {"transforms": 3, "hidden_features": (64, 64)} | (options or {})

    def make(z: torch.Tensor) -> Flow:
        return getattr(zuko.flows, kind)(z.shape[1], **options)

    return flow(make, lambda model, z: model().log_prob(z), **training)


def of_sbi(kind: str) -> Callable[..., Fitted]:
    """Given a constant."""

    def make(z: torch.Tensor) -> Flow:
        from sbi.neural_nets import net_builders

        return getattr(net_builders, f"build_{kind}")(z, torch.zeros(len(z), 1), z_score_y="none")

    return flow(make, lambda model, z: model.log_prob(z[None], condition=torch.zeros(len(z), 1))[0])


def held_out(model: Any, fitted: Array, held: Array) -> float:
    """The mean log-density of rows that were not fitted."""
    return model.score_samples(held).mean()


def chosen_from(
    grid: list[dict[str, Any]],
    make: Callable[..., Any],
    value: Callable[[Any, Array, Array], float] = held_out,
    is_ladder: bool = False,
) -> Callable[..., Fitted]:
    """The estimator of scikit-learn with the largest ``value``, by default by validation.

    Up a ladder it stops where the next rung is worse, or would end after the seconds if it took twice as long.
    """

    def fit(train: Array, valid: Array, space: Space, seed: int, seconds: float) -> Fitted:
        best: tuple[float, Any, dict[str, Any]] = (-math.inf, None, {})
        noisy, held = space.drawn(train), space.drawn(valid, 4)
        started = time.process_time()
        for setting in grid:
            if 2 * setting.get("n_components", 1) > len(train):
                continue
            began = time.process_time()
            model = make(setting, seed).fit(noisy)
            found = value(model, noisy, held)
            if is_ladder and found <= best[0]:
                break
            if found > best[0]:
                best = (found, model, setting)
            now = time.process_time()
            if is_ladder and now + 2 * (now - began) > started + seconds:
                break
        return lambda X: space.log_prob(X, best[1].score_samples), best[2]

    return fit


def gaussian_mixture(setting: dict[str, Any], seed: int) -> GaussianMixture:
    return GaussianMixture(random_state=seed, **setting)


MIXTURES = [
    {"covariance_type": kind, "n_components": k, "reg_covar": floor}
    for kind in ("full", "diag")
    for k in (1, 2, 3, 5, 8, 12, 20, 30, 50)
    for floor in (1e-3, 1e-2, 1e-1)
]
METHODS: dict[str, Callable[..., Fitted]] = {
    "indm": indm,
    "nsf": of_zuko("NSF"),
    "maf": of_zuko("MAF"),
    "sbi-nsf": of_sbi("nsf"),
    "sbi-maf": of_sbi("maf"),
    "mixture": chosen_from(MIXTURES, gaussian_mixture),
    "kde": chosen_from(
        [{"bandwidth": float(h)} for h in np.geomspace(0.03, 2, 20)], lambda setting, seed: KernelDensity(**setting)
    ),
}


DIVERGED, NOT_FINITE = 1e6, -1e10  # nats of a row: a difference that is not shown; values below are not log-densities
SEEDS = (3, 4)  # seeds of the table; the test rows of 0 to 2 were seen while the defaults were chosen


def trained(name: str, method: str, seed: int, seconds: float) -> dict[str, Any]:
    """The record of one training."""
    X, test, discrete = split(name, seed)
    valid, train = np.split(X, [max(1, len(X) // 10)])
    record = measured(METHODS[method], train, valid, test, Space(train, discrete, seed), seed, seconds)
    sbi = {"sbi": importlib.metadata.version("sbi")} if method.startswith("sbi") else {}
    return {"rows": list(X.shape)} | record | sbi


def measured(
    fit: Callable[..., Fitted], train: Array, valid: Array, test: Array, space: Space, seed: int, seconds: float
) -> dict[str, Any]:
    """The record of a method: its setting, log p of the test rows, and what both took."""
    start = time.process_time()
    with command.cpu_clock():
        log_prob, setting = fit(train, valid, space, seed, seconds)
        fitted = time.process_time()
        each = log_prob(test)
    each = np.where(np.isfinite(each), each, NOT_FINITE)
    return {
        "setting": setting,
        "fit_cpu_seconds": round(fitted - start, 1), "score_cpu_seconds": round(time.process_time() - fitted, 1),
        "test": mean_and_error(torch.from_numpy(each)), "test_nats": [round(value, 3) for value in each.tolist()],
        "zuko": zuko.__version__,
    } | made_by(seed)  # fmt: skip


def markdown(table: Records) -> str:
    """Mean test log p of indm, and mean gains of the others over it, ± over seeds and rows, in Markdown.

    A table's seeds are those that all of its methods have; "–" is a method without records of it.
    """
    lines = []
    for name in TABLES:
        made = table.at(table=name)
        there = {row["method"] for row in made.rows()}
        if "indm" not in there:
            continue
        runs = made.of_common_seeds("method", [method for method in METHODS if method in there])
        if runs["indm"]:
            nats = {method: np.array([row["test_nats"] for row in rows]) for method, rows in runs.items()}
            cells = dict(zip(runs, beside(nats, "indm"), strict=True))
            rows, columns = runs["indm"][0]["rows"]
            shown = (cells.get(method, "–") for method in METHODS)
            lines.append((name, f"{rows} × {columns}", len(runs["indm"]), *shown))
    return in_table("table", "rows × columns", "seeds", *METHODS, rows=lines)


def over_splits(nats: Array) -> tuple[float, float]:
    """Mean of (seeds, rows) and √(a² + b²): a over seeds, each with its own split and training, b over test rows."""
    mean, seeds = over_seeds(nats.mean(1).tolist())
    _, rows = mean_and_error(torch.from_numpy(nats.ravel()))
    return mean, rows if math.isnan(seeds) else math.hypot(seeds, rows)


def beside(nats: dict[str, Array], base: str) -> list[str]:
    """Mean log p of ``base``, and what rows of the others have beyond it, ± over both: (seeds, rows) of each."""
    others = [over_splits(nats[name] - nats[base]) for name in nats if name != base]
    shown = (with_error(*other, "+.2f") if abs(other[0]) <= DIVERGED else "diverged" for other in others)
    return [with_error(*over_splits(nats[base]), ".2f"), *shown]


def main(arguments: list[str] | None = None) -> None:
    parser = command.parser("tables flows", __doc__, 10.0, seeds=SEEDS)
    parser.add_argument("tables", nargs="*", help=f"all, or {', '.join(TABLES)}")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    o = command.parsed(parser, arguments)
    if importlib.util.find_spec("sbi") is None and any(method.startswith("sbi") for method in o.methods):
        print("the flows of sbi are left out because it is not installed: pip install sbi")
        o.methods = [method for method in o.methods if not method.startswith("sbi")]
    made = Records(o.records / "tables.csv").at(seconds=o.seconds)
    for seed, name, method in itertools.product(o.seeds, TABLES if o.tables == ["all"] else o.tables, o.methods):
        cell = made.at(table=name, method=method, seed=seed)
        if not cell.rows():
            try:
                record = cell.kept(lambda job=(name, method, seed): trained(*job, o.seconds))
            except Diverged as error:
                print(name, method, seed, error, flush=True)
                continue
            print(name, method, seed, record["test"], record["setting"], record["fit_cpu_seconds"], flush=True)
    print(markdown(made))
