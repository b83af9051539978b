"""Why does the network behind a good flow find nothing, and what mends it? silenced.md has the
design.

    python -m research.verdict silenced HOME            # the trainings that have no row yet
    python -m research.verdict silenced figure          # the curves of gain by share of the seconds

``HOME`` has the tables of :mod:`research.data.real_tables` and keeps the flows. Killed and started
again, it goes on.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from indm import INDM, mle_loss
from indm.conditions import given
from indm.files import atomic
from indm.flows import Compose, CouplingFlow, ExactFlow, Flow, Identity, MaskedFlow
from indm.nets import MLP, Backbone
from indm.nets.base import declared
from indm.objective import in_pairs
from indm.score import GivenScore, ScoreModel, noise_parts
from indm.sde import VPSDE
from indm.tables import fit, race
from indm.tables.columns import to_line
from indm.tables.layers import SmoothMLP
from indm.tables.mixture import best_mixture
from indm.tensors import event_sum
from indm.training import (
    CELLS,
    Descent,
    NoiseLevels,
    learning_rate_factor,
    progress_until,
    size_and_spread,
)
from indm.workbench.figures.plots import COLOURS, save_figure, styled
from research.data import real_tables
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row, made_by
from research.verdict import field
from research.verdict.joint import LAWS

TABLE, PLACES = (
    Records(RECORDS / "verdict-silenced.csv"),
    Records(RECORDS / "verdict-silenced-places.csv"),
)
RATES = (4e-3, 1e-3, 2.5e-4)
ROWS, MORE_ROWS = 32, 128  # a step
WARMUP, FALL, DECAY, BETAS, CLIP = 100, 0.5, 0.999, (0.9, 0.99), 1.0
CHECKS = 16  # validations of a run
VALID, TEST = 1_024, 4_096  # pairs of noises of a validation; of the final number
DEAD = 1e-3  # spread of f below which a network is dead, see Bound
LEVELS = 8  # equal parts of the clock
FLOW_ROWS, FLOW_STEPS = 256, 2_500  # rows of a step of a flow; steps of the race's flow, at most
MIXTURE_SECONDS, COMPONENTS = 240.0, 12  # wall seconds of the mixture, and its Gaussians, at most
EVIDENCE_DRAWS = 20_000  # draws of the flow for log Z of a field
PATIENCE = 0.25  # share of the seconds after which a rate that is not heard is left
LEAST_GAIN = 0.01  # nats, above which a network speaks
WINNER, RUNNER_UP, SEEDS = "rate 0.001", "restart", (0, 1, 2)
FIGURE = RECORDS.parent / "figures" / "verdict-silenced.png"
CURVES = {
    "rate 0.004": "-",
    "rate 0.001": "-",
    "rate 0.00025": "-",
    "window": "--",
    "restart": "--",
}
SDE = VPSDE()


Part = tuple[Tensor, Tensor]  # rows x, and their conditions c (n, k); k is 0 where there are none


@dataclass(frozen=True)
class Rows:
    """Rows that train, validate and test, and log p of the latter where it is known."""

    train: Part
    valid: Part
    test: Part
    log_prob: Tensor | None = None


@dataclass(frozen=True)
class Place:
    """Where a network stands behind a flow.

    Args:
        rows: makes the rows, from the folder of the tables.
        flow: makes the flow, from training rows x.
        network: makes the network.
        linear: makes what whitens rows x.
        flow_rates: of the flow in equal parts of its seconds; none where :mod:`indm.tables.fit`
            trains it.
        flow_seconds, seconds: processor seconds of the flow and of the network.
    """

    rows: Callable[[Path], Rows]
    flow: Callable[[Tensor], Flow]
    network: Callable[[], nn.Module]
    linear: Callable[[Tensor], Flow]
    flow_rates: tuple[float, ...]
    flow_seconds: float
    seconds: float


class Linear(ExactFlow):
    """z = (x − mean) @ matrix that whitens rows, (n, d)."""

    def __init__(self, x: Tensor):
        super().__init__()
        covariance = x.double().T.cov() + 1e-6 * torch.eye(x.shape[1], dtype=torch.float64)
        variance, basis = torch.linalg.eigh(covariance)
        self.register_buffer("matrix", (basis / variance.sqrt() @ basis.T).float())
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("log_det", -0.5 * variance.log().sum().float())

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return (x - self.mean) @ self.matrix, self.log_det.expand(len(x))

    def inverse_step(self, z: Tensor) -> Tensor:
        return z @ torch.linalg.inv(self.matrix) + self.mean


class Scaled(Backbone):
    """s(level) · network, s learned from small: log s is a piecewise linear function of the level."""

    SMALL, KNOTS, LOW, HIGH = 0.03, 8, -8.0, 6.0

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.takes_condition = network, declared(network).takes_condition
        self.log_scale = nn.Parameter(torch.full((self.KNOTS,), math.log(self.SMALL)))

    def forward(self, z: Tensor, level: Tensor, *c: Tensor) -> Tensor:
        place = (self.KNOTS - 1) * ((level - self.LOW) / (self.HIGH - self.LOW)).clamp(0, 1)
        hats = (1 - (place[:, None] - torch.arange(self.KNOTS)).abs()).clamp_min(0)
        scale = (hats @ self.log_scale).exp()
        return scale.reshape(-1, *(1 for _ in z.shape[1:])) * self.network(z, level, *c)


# ── Places ────────────────────────────────────────────────────────────────────────────────────────


def without_c(x: Tensor) -> Part:
    return x, torch.zeros(len(x), 0)


def field_rows(coupling: float, home: Path) -> Rows:
    """Fields as they are drawn; test and validation have chains of their own. log p is up to log Z."""
    law = field.Field(coupling)
    path = home / f"field-{coupling}.npz"
    if not path.exists():
        fields = law.draws(12, 0)
        atomic.whole(path, atomic.arrays_into({"fields": fields.numpy()}))
    with np.load(path) as file:
        fields = torch.from_numpy(file["fields"])
    parts = [part.flatten(0, 1) for part in fields.split([1_600, 200, 200])]
    return Rows(*(without_c(part.float()) for part in parts), (-law.action(parts[2])).float())


def law_rows(name: str, home: Path) -> Rows:
    """Standardised rows of a law of known density."""
    generator, law = torch.Generator().manual_seed(0), LAWS[name]
    parts = [law.draw(n, generator) for n in (24_000, 2_400, 4_096)]
    std, mean = torch.std_mean(parts[0], 0)
    log_prob = law.log_prob(parts[2]) + std.log().sum()
    return Rows(*(without_c(((part - mean) / std).float()) for part in parts), log_prob.float())


def slcp_pairs(n: int, numbers: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """θ (n, 5), uniform in [−3, 3], and x (n, 8), four points of N((θ₁, θ₂), S): deviations θ₃² and
    θ₄², correlation tanh θ₅ (Lueckmann et al. 2021, "Benchmarking simulation-based inference":
    simple likelihood, complex posterior).
    """
    theta = numbers.uniform(-3, 3, (n, 5))
    noise, correlation = numbers.standard_normal((2, n, 4)), np.tanh(theta[:, 4:])
    second = correlation * noise[0] + np.sqrt(1 - correlation**2) * noise[1]
    points = np.stack([noise[0], second], 2) * theta[:, None, 2:4] ** 2 + theta[:, None, :2]
    return theta, points.reshape(n, 8)


def slcp_rows(home: Path) -> Rows:
    """θ as numbers of the whole line, whose prior is N(0, I), at standardised x."""
    numbers = np.random.default_rng(0)
    theta, x = slcp_pairs(56_400, numbers)
    z = to_line(theta, np.array([[-3.0] * 5, [3.0] * 5]))
    c = np.arcsinh(x / np.median(np.abs(x), 0))
    c = (c - c.mean(0)) / c.std(0)
    both = [torch.from_numpy(part).float().split([50_000, 2_400, 4_000]) for part in (z, c)]
    return Rows(*zip(*both, strict=True))


def table_rows(name: str, home: Path) -> Rows:
    """Standardised rows of a real table: a tenth validates, a tenth tests."""
    X = real_tables.load(home, name)
    X = X[np.random.default_rng(0).permutation(len(X))]
    tenth = len(X) // 10
    x = torch.from_numpy((X - X[2 * tenth :].mean(0)) / X[2 * tenth :].std(0)).float()
    valid, test, train = x.split([tenth, tenth, len(x) - 2 * tenth])
    return Rows(without_c(train), without_c(valid), without_c(test))


def vectors(d: int) -> Callable[[], nn.Module]:
    return partial(MLP, (d,), width=128)


def field_place(coupling: float) -> Place:
    whitening = lambda x: field.Spectrum().whiten(x)  # noqa: E731
    rates = (1e-2, 1e-3)
    return Place(
        partial(field_rows, coupling),
        field.curve_and_spectrum,
        field.Torus,
        whitening,
        rates,
        20.0,
        40.0,
    )


def law_place(name: str) -> Place:
    flow = lambda x: CouplingFlow((8,), width=64, bins=16)  # noqa: E731
    return Place(partial(law_rows, name), flow, vectors(8), Linear, (2e-2, 2e-3), 20.0, 25.0)


def table_place(name: str, d: int) -> Place:
    flow = lambda x: MaskedFlow((d,))  # noqa: E731
    network = partial(SmoothMLP, (d,), width=64, depth=2, fourier=2, dropout=0.1)
    return Place(partial(table_rows, name), flow, network, Linear, (), 30.0, 30.0)


FIELDS, TABLES = ("field 4.5", "field 6.008"), ("protein", "magic", "kin8nm")
SITES: dict[str, Place] = {
    "field 4.5": field_place(4.5),
    "field 6.008": field_place(6.008),
    "ridges": law_place("ridges"),
    "atoms": law_place("atoms"),
    "SLCP": Place(
        slcp_rows,
        lambda x: MaskedFlow((5,), condition=(8,)),
        partial(MLP, (5,), width=128, condition=(8,)),
        Linear,
        (4e-3, 4e-4),
        30.0,
        25.0,
    ),
    "protein": table_place("protein", 10),
    "magic": table_place("magic", 10),
    "kin8nm": table_place("kin8nm", 9),
}

# ── Flows ─────────────────────────────────────────────────────────────────────────────────────────


class Joined(nn.Module):
    """A flow and a score, each of which may see conditions c (n, k); k is 0 where there are none."""

    def __init__(self, flow: Flow, score: ScoreModel):
        super().__init__()
        self.flow, self.score = flow, score

    def at(self, x: Tensor, c: Tensor) -> INDM:
        """The model of rows x."""
        if c.shape[1]:
            return INDM(given(self.flow, c), GivenScore(self.score, c), shape=x.shape[1:])
        return INDM(self.flow, self.score, shape=x.shape[1:])


Loss = Callable[[Tensor, Tensor], Tensor]  # of rows x at c


def descent_of(model: nn.Module, rates: Sequence[tuple[nn.Module, float]]) -> Descent:
    """The parts of a model in training at their rates."""
    groups = [
        {"name": str(i), "params": list(part.parameters()), "lr": rate}
        for i, (part, rate) in enumerate(rates)
    ]
    return Descent(model, torch.optim.Adam(groups, betas=BETAS, fused=True), DECAY, CLIP)


def step(descent: Descent, loss: Loss, part: Part, rows: int, share: float) -> None:
    """A step on random rows; the rate is constant for half of the run, then falls to 0."""

    def gradients() -> dict[str, Tensor]:
        i = torch.randint(len(part[0]), (rows,))
        loss(part[0][i], part[1][i]).backward()
        return {}

    descent.advance(gradients, learning_rate_factor(descent.step, share, WARMUP, FALL))


def bound_loss(model: Joined) -> Loss:
    """The bound of a model, with noises n and −n, at levels that gradients choose."""
    levels = NoiseLevels(SDE)
    return lambda x, c: mle_loss(model.at(x, c), x, pairs=True, noise_levels=levels)[0]


@torch.no_grad()
def mapped(flow: Flow, part: Part) -> tuple[Tensor, Tensor]:
    """Latents of rows, and −log p of them by the flow with N(0, I) behind it, nats."""
    found = []
    for x, c in zip(*(rows.split(2_048) for rows in part), strict=True):
        z, log_det = (given(flow, c) if c.shape[1] else flow)(x)
        found.append((z, -SDE.prior_log_prob(z) - log_det))
    z, nats = (torch.cat(each) for each in zip(*found, strict=True))
    return z, nats


def trained_flow(place: Place, rows: Rows) -> Flow:
    """The flow of a place after its own training by its own likelihood."""
    flow, (x, c) = place.flow(rows.train[0]), rows.train
    if not place.flow_rates:
        training = fit.FlowTraining(flow, rows.valid[0])
        batch = lambda i: (x[i], c[i])  # noqa: E731
        for _ in race.train(training, batch, len(x), fit.FLOW_BATCH, FLOW_STEPS, math.inf):
            pass
        return training.best

    def loss(x, c):
        at_c = given(flow, c) if c.shape[1] else flow
        return fit.flow_nats(at_c, x).mean() / x[0].numel()

    for rate in place.flow_rates:
        descent, start = descent_of(flow, [(flow, rate)]), time.process_time()
        deadline = start + place.flow_seconds / len(place.flow_rates)
        for share in progress_until(deadline=deadline, clock=time.process_time):
            step(descent, loss, rows.train, FLOW_ROWS, share)
        flow.load_state_dict(descent.ema.model.state_dict())
    return flow


def kept_flow(name: str, home: Path) -> tuple[Flow, Rows]:
    """The trained flow, which is made once, and the rows."""
    place, path = SITES[name], home / f"flow-{name}.pt"
    rows = place.rows(home)
    torch.manual_seed(0)
    if path.exists():
        flow = place.flow(rows.train[0])
        flow.load_state_dict(torch.load(path, weights_only=True))
    else:
        flow = trained_flow(place, rows)
        atomic.whole(path, lambda beside: torch.save(flow.state_dict(), beside))
    return flow.eval().requires_grad_(False), rows


# ── Networks behind flows ─────────────────────────────────────────────────────────────────────────


class Bound:
    """What a network changes of the bound at latents z and conditions c, by the same times and
    noises each time.

    Args:
        pairs: how many pairs of noises, about; several for each row where there are fewer rows.
    """

    def __init__(self, z: Tensor, c: Tensor, pairs: int):
        self.rows = min(len(z), pairs)
        repeats = max(1, pairs // self.rows)
        self.z, self.c = (part[: self.rows].repeat_interleave(repeats, 0) for part in (z, c))
        generator = torch.Generator().manual_seed(0)
        levels = NoiseLevels(SDE)
        self.t, self.weight, self.cell = fit.shuffled_times(
            levels, len(self.z), generator, uniform=True
        )
        self.noise = torch.randn(self.z.shape, generator=generator)

    @torch.no_grad()
    def gains(self, score: ScoreModel) -> tuple[Tensor, float, float]:
        """−change of the bound of each row, nats, the size of f and its spread.

        Of the root mean squares at LEVELS noise levels these are the largest. The size is ‖f‖; the
        spread is half of ‖f(z + n) − f(z − n)‖, which is 0 where f is a constant.
        """
        noise, z, t, c = in_pairs(self.noise, self.z, self.t, self.c)
        found = []
        for i in torch.arange(len(z)).split(2_048):
            model = GivenScore(score, c[i]) if c.shape[1] else score
            known, added = noise_parts(model, SDE.kernel(t[i]).perturb(z[i], noise[i]), t[i])
            change = event_sum(added * (0.5 * added - (noise[i] - known)), added)
            found.append((change, added))
        change, added = (torch.cat(each).unflatten(0, (2, -1)) for each in zip(*found, strict=True))
        squares = (
            event_sum(added.mean(0).square(), self.z),
            event_sum(0.25 * (added[0] - added[1]).square(), self.z),
        )
        level = self.cell * LEVELS // CELLS
        mean, spread = (
            torch.stack([square[level == i].mean() for i in range(LEVELS)]) for square in squares
        )
        gains = -(self.weight * change.mean(0)).reshape(self.rows, -1).mean(1)
        return gains, (mean + spread).max().sqrt().item(), spread.max().sqrt().item()


def mean_and_error(values: Tensor) -> list[float]:
    """Mean and standard error."""
    return [values.mean().item(), (values.std() / math.sqrt(len(values))).item()]


class Watch:
    """Processor seconds, without those spent inside ``with``."""

    paused = 0.0

    def __call__(self) -> float:
        return time.process_time() - self.paused

    def __enter__(self) -> None:
        self.stopped = time.process_time()

    def __exit__(self, *_: Any) -> None:
        self.paused += time.process_time() - self.stopped


class Attempt:
    """A network in training behind a frozen flow, from zero, at a rate."""

    def __init__(self, network: nn.Module, latents: Part, rate: float, rows: int):
        self.model, self.latents, self.rate, self.rows = (
            Joined(Identity(), ScoreModel(network, SDE)),
            latents,
            rate,
            rows,
        )
        self.descent, self.loss = (
            descent_of(self.model, [(self.model, rate)]),
            bound_loss(self.model),
        )

    def step(self, share: float) -> None:
        step(self.descent, self.loss, self.latents, self.rows, share)

    def checked(self, bound: Bound) -> "Check":
        averaged, *_ = bound.gains(self.descent.ema.model.score)
        self.model.eval()
        raw, size, spread = bound.gains(self.model.score)
        self.model.train()
        return Check(*mean_and_error(averaged), raw.mean().item(), size, spread)


class Check(NamedTuple):
    """A validation: the gain of the average, its error, and of the weights themselves the gain,
    size and spread.
    """

    gain: float
    error: float
    raw: float
    size: float
    spread: float

    @property
    def is_heard(self) -> bool:
        return self.gain > 2 * self.error


def restarted(begun: Callable[[float], Attempt], rate: float, z: Tensor, seconds: float) -> Attempt:
    """The last of the attempts of so many processor seconds, without those of the looks.

    Where the network is dead at rows z at one of :data:`CHECKS` looks, another attempt begins at a
    third of the rate, as in the package.
    """
    watch, last, attempt = Watch(), 0.0, begun(rate)
    for share in progress_until(deadline=watch() + seconds, clock=watch):
        attempt.step(share)
        if share - last < 1 / CHECKS:
            continue
        last = share
        with watch:
            _, spread = size_and_spread(attempt.model.score, z)
        if spread < DEAD and attempt.descent.step > WARMUP and share < 1 - FALL:
            attempt = begun(attempt.rate / 3)
    return attempt


@dataclass(frozen=True)
class Method:
    """How a network is trained.

    Args:
        rates: the first, and those to which it goes on with a new network.
        rows: of a step.
        leaves: when a network is left for the next rate: "dead", or "unheard", which is dead or not
            heard within PATIENCE of the seconds.
        scaled: f = s(level) · network.
    """

    rates: tuple[float, ...]
    rows: int = ROWS
    leaves: str = ""
    scaled: bool = False

    def is_over(self, check: Check, steps: int, waited: float) -> bool:
        """Whether a network is left after so many steps and this share of the seconds."""
        is_dead = check.spread < DEAD and steps > WARMUP
        if self.leaves == "unheard":
            return is_dead or (waited >= PATIENCE and not check.is_heard)
        return is_dead and self.leaves == "dead"


FIRST = "diffusion first"
SEARCH = {f"rate {rate:g}": Method((rate,)) for rate in RATES}
SEARCH_MORE = {f"rate {rate:g}, 128 rows": Method((rate,), MORE_ROWS) for rate in RATES}
REMEDIES = {
    "window": Method(RATES, leaves="unheard"),
    "restart": Method(tuple(4e-3 / 3**i for i in range(5)), leaves="dead"),
    "scaled": Method((4e-3,), scaled=True),
    "128 rows": Method((4e-3,), MORE_ROWS),
}
AFTERWARDS = {  # the winner's restart in batches like those of the estimators, from two rates
    f"restart from {rate:g}, 128 rows": Method(
        tuple(rate / 3**i for i in range(5)), MORE_ROWS, "dead"
    )
    for rate in RATES[:2]
}
BOTH = "restart from 0.001, 128 rows"  # as the estimators of tables train
METHODS = SEARCH | SEARCH_MORE | REMEDIES | AFTERWARDS
# places at which all remedies are tried
SPEAKING = ("field 4.5", "field 6.008", "protein")  # where the winner finds something
REMEDIED = ("field 4.5", "ridges", "magic", "field 6.008", "protein")


def trained(place: Place, method: Method, seed: int, flow: Flow, rows: Rows) -> Row:
    """The row of a training behind the frozen flow."""
    torch.manual_seed(seed)
    train, valid, test = (
        (mapped(flow, part)[0], part[1]) for part in (rows.train, rows.valid, rows.test)
    )
    bound, left = Bound(*valid, VALID), list(method.rates)

    def made() -> Attempt:
        network = place.network()
        return Attempt(
            Scaled(network) if method.scaled else network, train, left.pop(0), method.rows
        )

    attempt, watch, checks = made(), Watch(), []
    best, highest, last, began = None, 0.0, 0.0, 0.0
    for share in progress_until(deadline=watch() + place.seconds, clock=watch):
        attempt.step(share)
        if share - last < 1 / CHECKS:
            continue
        last = share
        with watch:
            check = attempt.checked(bound)
        checks.append([share, *check, attempt.rate])
        if check.gain > highest:
            highest, best = check.gain, copy.deepcopy(attempt.descent.ema.model.score)
        if left and method.is_over(check, attempt.descent.step, share - began):
            attempt, began = made(), share
    final = Bound(*test, TEST)
    gain, size, spread = final.gains(attempt.descent.ema.model.score)
    kept = torch.zeros(len(gain)) if best is None else final.gains(best)[0]
    return row_of(gain, kept, (size, spread), checks, attempt.descent.step)


def row_of(gain: Tensor, kept: Tensor, sizes: tuple[float, float], checks: list, steps: int) -> Row:
    """Gains at test rows of the end and of the best validated state, size and spread of the end,
    and the course: share of the seconds, a :class:`Check` and the rate.
    """
    shown = [[float(f"{value:.4g}") for value in check] for check in checks]
    found = {
        "gain": mean_and_error(gain),
        "kept": mean_and_error(kept),
        "steps": steps,
        "course": shown,
    }
    return found | dict(zip(("size", "spread"), sizes, strict=True))


def diffusion_first(name: str, seed: int, flow: Flow, rows: Rows) -> Row:
    """The network behind a whitening for half of the seconds that flow and network have together;
    then a flow from the identity in front of it, and everything is trained. The gain is over the
    flow of the place.
    """
    place = SITES[name]
    torch.manual_seed(seed)
    (x, _), seconds = rows.train, 0.5 * (place.flow_seconds + place.seconds)
    whitening, front = (
        place.linear(x),
        field.curve_and_spectrum(x).flows[0] if name in FIELDS else place.flow(x),
    )
    model, checks, steps = (
        Joined(Compose([front, whitening]), ScoreModel(place.network(), SDE)),
        [],
        0,
    )
    for stage, rates in enumerate(([(model.score, 4e-3)], [(model.score, 1e-3), (front, 2e-3)])):
        descent, loss, watch, last = descent_of(model, rates), bound_loss(model), Watch(), 0.0
        for share in progress_until(deadline=watch() + seconds, clock=watch):
            step(descent, loss, rows.train, ROWS, share)
            if share - last >= 2 / CHECKS:
                last = share
                with watch:
                    gain, *sizes = gain_over(flow, descent.ema.model.eval(), rows.valid, VALID)
                checks.append(
                    [
                        (stage + share) / 2,
                        *mean_and_error(gain),
                        gain.mean().item(),
                        *sizes,
                        rates[0][1],
                    ]
                )
        model.load_state_dict(descent.ema.model.state_dict())
        steps += descent.step
    gain, *sizes = gain_over(flow, model.eval(), rows.test, TEST)
    return row_of(gain, gain, tuple(sizes), checks, steps)


@torch.no_grad()
def gain_over(flow: Flow, model: Joined, part: Part, pairs: int) -> tuple[Tensor, float, float]:
    """Nats of each row by the model's bound above the flow's log p, and size and spread of f."""
    z, nats = mapped(model.flow, part)
    gains, size, spread = Bound(z, part[1], pairs).gains(model.score)
    return gains + (mapped(flow, part)[1] - nats)[: len(gains)], size, spread


# ── The study ─────────────────────────────────────────────────────────────────────────────────────


def described(name: str, home: Path) -> Row:
    """What is to be found behind the flow of a place: the gain of a mixture on its latents, and the
    flow's gap to the true density where that is known.
    """
    flow, rows = kept_flow(name, home)
    parts = [(*mapped(flow, part), part[1]) for part in (rows.train, rows.valid, rows.test)]
    train, valid, test = ((z.flatten(1).double().numpy(), c.double().numpy()) for z, _, c in parts)
    nats, few = parts[2][1], tuple(part[:20_000] for part in train)
    mixture = best_mixture(few, valid, COMPONENTS, 0, time.perf_counter() + MIXTURE_SECONDS)
    gain = torch.from_numpy(mixture.log_prob(*test)) - SDE.prior_log_prob(parts[2][0]).double()
    found: Row = {
        "nats": mean_and_error(nats),
        "mixture": mean_and_error(gain),
        "components": len(mixture.weight),
    }
    if name in FIELDS:
        law = field.Field(float(name.split()[1]))
        log_z, error, share = field.log_evidence(law, flow, EVIDENCE_DRAWS, 1)
        gap, of_rows = mean_and_error(nats + rows.log_prob - log_z)
        found |= {"gap": [gap, math.hypot(of_rows, error)], "share": share, "log_z": [log_z, error]}
        with np.load(home / f"field-{law.coupling}.npz") as file:
            found["memory"] = field.memory(torch.from_numpy(file["fields"]), law)
    elif rows.log_prob is not None:
        found["gap"] = mean_and_error(nats + rows.log_prob)
    return found


def jobs() -> Iterator[tuple[str, str, int]]:
    """Place, method and seed of all trainings, in the order in which they are made."""
    main = ("field 4.5", "ridges", "magic")
    yield from ((place, method, 0) for place in main for method in SEARCH)
    yield from (
        (place, method, 0) for method in ("window", "restart", "scaled", FIRST) for place in main
    )
    yield from (("field 6.008", method, 0) for method in (*SEARCH, "restart", "window", "128 rows"))
    yield from (("protein", method, 0) for method in ("restart", *SEARCH, "window"))
    yield from ((place, RUNNER_UP, seed) for seed in (1, 2) for place in FIELDS)
    tried = (*SEARCH, RUNNER_UP)
    yield from ((place, method, 0) for place in ("SLCP", "atoms", "kin8nm") for method in tried)
    yield from (("field 4.5", method, 0) for method in SEARCH_MORE)
    yield from (("field 6.008", method, 0) for method in (FIRST, "scaled"))
    yield from ((place, "128 rows", 0) for place in ("ridges", "magic", "protein"))
    yield ("protein", FIRST, 0)
    yield from ((place, WINNER, seed) for place in SITES for seed in SEEDS[1:])
    yield ("protein", "scaled", 0)
    yield from ((place, method, 0) for method in AFTERWARDS for place in SPEAKING)
    yield from ((place, BOTH, seed) for seed in SEEDS[1:] for place in SPEAKING)


def run(job: tuple[str, str, int], home: Path) -> None:
    """Make one row, unless it is there."""
    name, method, seed = job
    cell = TABLE.at(place=name, method=method, seed=seed)
    if cell.rows():
        return
    flow, rows = kept_flow(name, home)
    PLACES.at(place=name).kept(lambda: described(name, home) | made_by(0))
    start = time.process_time()
    if method == FIRST:
        row = diffusion_first(name, seed, flow, rows)
    else:
        row = trained(SITES[name], METHODS[method], seed, flow, rows)
    cell.add(row | {"cpu_seconds": round(time.process_time() - start, 1)} | made_by(seed))


# ── What came out ─────────────────────────────────────────────────────────────────────────────────


def kept_gain(row: Row) -> tuple[float, float]:
    """The kept gain and its error: 0 where no validation was above twice its error; after diffusion
    first that of the end.
    """
    best = max(row["course"], key=lambda check: check[1])
    is_heard = best[1] > 2 * best[2] or row["method"] == FIRST
    return tuple(row["kept"]) if is_heard else (0.0, 0.0)  # type: ignore[return-value]


def word(row: Row) -> str:
    """ "speaks", "dead" or "sleeps": how a network ended."""
    gain, error = kept_gain(row)
    if gain > max(LEAST_GAIN, 2 * error):
        return "speaks"
    return "dead" if row["spread"] < DEAD else "sleeps"


def found_at(table: Records, place: str, method: str) -> Row | None:
    """The row of seed 0; the remedy of 128 rows may be that of part 1."""
    names = (method, "rate 0.004, 128 rows") if method == "128 rows" else (method,)
    rows = [row for name in names for row in table.at(place=place, method=name, seed=0).rows()]
    return rows[0] if rows else None


def cell(row: Row | None) -> str:
    """The kept gain and the word."""
    return "" if row is None else f"{with_error(*kept_gain(row), '.3f')}, {word(row)}"


def places_table(places: Records) -> str:
    """What is to be found at each place: the flow's gap, and the gain of the mixture."""
    rows = []
    for name in SITES:
        for found in places.at(place=name).rows():
            gap = with_error(*found["gap"], ".3f") if "gap" in found else "not known"
            rows.append((name, gap, with_error(*found["mixture"], ".3f"), found["components"]))
    return in_table("place", "gap of the flow", "gain of the mixture", "its Gaussians", rows=rows)


def rates_table(table: Records) -> str:
    """Kept gains by place and rate, in nats."""
    rows = []
    for name in SITES:
        for methods, of_rows in ((SEARCH, ROWS), (SEARCH_MORE, MORE_ROWS)):
            cells = [cell(found_at(table, name, method)) for method in methods]
            if any(cells):
                rows.append((name, of_rows, *cells))
    return in_table("place", "rows a step", *(f"{rate:g}" for rate in RATES), rows=rows)


def remedies_table(table: Records) -> str:
    """Kept gains by remedy and place, in nats, and their sum where all are there."""
    rows = []
    for method in (*SEARCH, FIRST, *REMEDIES):
        found = [found_at(table, name, method) for name in REMEDIED]
        total = sum(kept_gain(row)[0] for row in found if row)
        rows.append((method, *map(cell, found), f"{total:.3f}" if all(found) else ""))
    return in_table("method", *REMEDIED, "sum", rows=rows)


def seeds_table(table: Records) -> str:
    """Kept gains of the winner and of the second: mean over seeds, its error, and the seeds."""
    rows = []
    for name in SITES:
        cells: list[object] = []
        for method in (WINNER, RUNNER_UP):
            found = [kept_gain(row)[0] for row in table.at(place=name, method=method).rows()]
            cells += [with_error(*over_seeds(found), ".3f"), len(found)] if found else ["", ""]
        rows.append((name, *cells))
    return in_table("place", WINNER, "seeds", RUNNER_UP, "seeds", rows=rows)


def restarts_table(table: Records) -> str:
    """Kept gains in 128 rows a step, with and without restarts, in nats."""
    methods = {f"rate {rate:g}, 128 rows": f"{rate:g}" for rate in RATES[:2]}
    methods |= {name: name.removesuffix(", 128 rows") for name in AFTERWARDS}
    rows = []
    for method, title in methods.items():
        names = ("128 rows", method) if method == "rate 0.004, 128 rows" else (method,)
        found = [next(filter(None, (found_at(table, place, name) for name in names)), None)
                 for place in SPEAKING]  # fmt: skip
        rows.append((title, *map(cell, found)))
    return in_table("rate", *SPEAKING, rows=rows)


def panel(axes: Axes, table: Records, place: str) -> None:
    """Validated gains of the average by share of the seconds."""
    for (name, style), colour in zip(CURVES.items(), COLOURS, strict=False):
        row = found_at(table, place, name)
        if row is not None:
            share, gain = zip(*((check[0], check[1]) for check in row["course"]), strict=True)
            axes.plot([0, *share], [0, *gain], style, color=colour, label=name, lw=1.5)
    axes.axhline(0, color="black", lw=0.6)
    axes.set(title=place, xlabel="share of the seconds")


@styled
def draw(table: Records) -> None:
    """The curves of gain by share of the seconds."""
    figure = Figure(figsize=(11, 5.6))
    for axes, place in zip(figure.subplots(2, 4).flat, SITES, strict=True):
        panel(axes, table, place)
    for axes in (figure.axes[0], figure.axes[4]):
        axes.set_ylabel("validated gain, nats")
    save_figure(figure, FIGURE)


def main(home: Path) -> None:
    torch.set_num_threads(1)
    for job in jobs():
        run(job, home)
        print(*job, flush=True)
