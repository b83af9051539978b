"""Methods that the studies of tables share: indm.DensityEstimator, flows of zuko, estimators of
scikit-learn.

Each is fitted to rows to train, is chosen on rows to validate, and gives log p of test rows in nats
of a row of the raw table. Discrete columns get uniform noise, and a row's value is the log of its
mean density over the same 4 points of the noise for every method. The flows choose their rate by
validation, each with an equal share of the seconds, and keep their best validated state.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import zuko
from scipy.stats import qmc
from sklearn.mixture import GaussianMixture

from indm import DensityEstimator
from indm.evaluation.statistics import mean_and_error
from indm.tables.solve import SOLVER_ERROR
from research.lab.seeds import over_seeds
from research.markdown import with_error
from research.records import made_by
from research.tables import command

DRAWS = 4  # points of the noise
Array = np.ndarray
LogDensity = Callable[[Array], Array]


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
        return np.concatenate(
            [self(X + self.noise(X)) for _ in range(repeats if self.discrete else 1)]
        )

    def log_volume(self, X: Array) -> Array:
        """log|det ∂z/∂x| at rows."""
        return np.full(len(X), -np.log(self.std).sum())

    def log_prob(self, X: Array, density: LogDensity) -> Array:
        """log p of raw rows from the log-density of z."""
        return over_noise(
            X, self.discrete, lambda rows: density(self(rows)) + self.log_volume(rows)
        )


# ── Methods: (rows to train, to validate, their space, seed, seconds) → log p of rows, the setting

Fitted = tuple[LogDensity, dict[str, Any]]


class Diverged(Exception):
    """A method found no density."""


def indm(train: Array, valid: Array, space: Space, seed: int, seconds: float) -> Fitted:
    """The estimator, whose ODE has a stated error, nats, and at some rows no solution."""
    return of_estimator(estimator(train, valid, space, seed, seconds), space)


def estimator(
    train: Array, valid: Array, space: Space, seed: int, seconds: float
) -> DensityEstimator:
    """The estimator fitted to rows to train and to validate, of which it makes parts of its own."""
    X = np.concatenate([train, valid])
    found = DensityEstimator(discrete=space.discrete, max_seconds=seconds, random_state=seed).fit(X)
    if found.ended_by_ == "interrupt":  # the fit survives an interrupt
        raise KeyboardInterrupt
    return found


def of_estimator(found: DensityEstimator, space: Space) -> Fitted:
    """The log-density of a fitted estimator, and what it chose."""
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

    ``rates`` have equal shares of the seconds; after ``patience`` of one without a better
    validation the next is tried.
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
            raise Diverged(
                f"no finite validation in {seconds:g} s: it needs more --seconds, or it diverges"
            )

        @torch.no_grad()
        def density(z: Array) -> Array:
            return log_prob(chosen, torch.from_numpy(z).float()).double().numpy()

        return lambda X: space.log_prob(X, density), setting

    return fit


def of_zuko(
    kind: str, options: dict[str, Any] | None = None, **training: Any
) -> Callable[..., Fitted]:
    """A flow of zuko, by default of three transforms with two hidden layers of 64; ``training`` is
    of :func:`flow`.
    """
    options = {"transforms": 3, "hidden_features": (64, 64)} | (options or {})

    def make(z: torch.Tensor) -> Flow:
        return getattr(zuko.flows, kind)(z.shape[1], **options)

    return flow(make, lambda model, z: model().log_prob(z), **training)


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

    Up a ladder it stops where the next rung is worse, or would end after the seconds if it took
    twice as long.
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


# nats of a row: a difference that is not shown; values below are not log-densities
DIVERGED, NOT_FINITE = 1e6, -1e10


def measured(
    fit: Callable[..., Fitted],
    train: Array,
    valid: Array,
    test: Array,
    space: Space,
    seed: int,
    seconds: float,
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


def over_splits(nats: Array) -> tuple[float, float]:
    """Mean of (seeds, rows) and √(a² + b²): a over seeds, each with its own split and training, b
    over test rows.
    """
    mean, seeds = over_seeds(nats.mean(1).tolist())
    _, rows = mean_and_error(torch.from_numpy(nats.ravel()))
    return mean, rows if math.isnan(seeds) else math.hypot(seeds, rows)


def beside(nats: dict[str, Array], base: str) -> list[str]:
    """Mean log p of ``base``, and what rows of the others have beyond it, ± over both: (seeds,
    rows) of each.
    """
    others = [over_splits(nats[name] - nats[base]) for name in nats if name != base]
    shown = (
        with_error(*other, "+.2f") if abs(other[0]) <= DIVERGED else "diverged" for other in others
    )
    return [with_error(*over_splits(nats[base]), ".2f"), *shown]
