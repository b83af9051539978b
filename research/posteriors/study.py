"""Approximate posteriors p(θ|x) from simulated pairs: indm.DensityEstimator, and NPE, FMPE and NPSE
of sbi.

Each training has its seconds of the processor on one thread, but FMPE and NPSE, which end by
themselves.
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import norm
from sklearn.preprocessing import StandardScaler

from indm import DensityEstimator
from research.records import Records

Array = np.ndarray
MOST_TRIES = 20  # draws of an estimator for each one that is kept
QUIET: dict[str, Any] = {  # options of sbi's trainers
    "show_progress_bars": False, "tracker": mock.MagicMock(), "logging_level": logging.ERROR,
}  # fmt: skip


@dataclass
class Fitted:
    """An approximate posterior: ``draw(x, n, seed)`` and ``log_prob(theta, x)``, x one observation
    or one for each.
    """

    draw: Callable[[Array, int, int], Array]
    log_prob: Callable[[Array, Array], Array]
    setting: dict[str, Any]


def indm(theta: Array, x: Array, seed: int, seconds: float, **options: Any) -> Fitted:
    with mock.patch.object(time, "perf_counter", time.process_time):
        found = DensityEstimator(max_seconds=seconds, random_state=seed, **options).fit(theta, c=x)
    setting = {
        "steps": found.n_steps_,
        "components": [m.score.backbone.components for m in found.models_],
    }
    return Fitted(lambda x, n, seed: found.sample(n, seed, c=x), found.score_samples, setting)


def as_floats(*parts: Array) -> list[torch.Tensor]:
    """Arrays as tensors of sbi's precision."""
    return [torch.from_numpy(part.astype(np.float32)) for part in parts]


def npe(theta: Array, x: Array, seed: int, seconds: float, flow: str = "maf") -> Fitted:
    """Neural posterior estimation as sbi has it by default; it ends when time does, and keeps its
    best epoch.
    """
    from sbi.inference import NPE

    deadline = time.process_time() + seconds

    class Timed(NPE):
        def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
            return super()._converged(
                epoch, stop_after_epochs if time.process_time() < deadline else 0
            )

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
    """FMPE or NPSE of sbi with their defaults, until they stop by themselves; their log p is not
    computed.
    """
    from sbi import inference

    torch.manual_seed(seed)
    trainer = getattr(inference, kind)(**QUIET)
    posterior = trainer.build_posterior(trainer.append_simulations(*as_floats(theta, x)).train())

    def draw(x: Array, n: int, seed: int) -> Array:
        torch.manual_seed(seed)
        return (
            posterior.sample((n,), torch.from_numpy(x[None]).float(), show_progress_bars=False)
            .double()
            .numpy()
        )

    unknown = np.full(len(theta), math.nan)
    return Fitted(
        draw, lambda theta, x: unknown[: len(theta)], {"epochs": trainer.summary["epochs_trained"]}
    )


BATCH, RATE, PATIENCE = 256, 1e-3, 20  # epochs without a better validation end it


def spline_flow(theta: Array, x: Array, seed: int, seconds: float) -> tuple[Any, float]:
    """A neural spline flow of θ given x by maximum likelihood, and its mean log p of a tenth, which
    ends the fit.
    """
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
    """A spline flow for half of the seconds, and behind it the diffusion of its latents for the
    rest; or the flow.
    """
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
        return own.inverse_transform(out) if back else out, slope.double().numpy() - np.log(
            own.scale_
        ).sum()

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


def within(
    inside: Callable[[Array], Array], fitted: Fitted, x: Array, n: int
) -> tuple[Array, float]:
    """``n`` draws within the prior, and the share of all that are; below a share of 5 %, draws
    outside fill them up.
    """
    kept, count, tried = [], 0, 0
    while count < n and tried < MOST_TRIES * n:
        # tenths of n to draw
        tenths = min(10, math.ceil(11 * (1 - count / n) * max(tried, n) / max(count, 1)))
        theta = fitted.draw(x, math.ceil(n * tenths / 10), tried)
        kept.append(theta[inside(theta)])
        count, tried = count + len(kept[-1]), tried + len(theta)
    return np.concatenate([*kept, theta])[:n], count / tried


def record(cell: Records, make: Callable[[], dict[str, Any]]) -> None:
    """Make the record where there is none."""
    if not cell.rows():
        print(cell.kept(make), flush=True)
