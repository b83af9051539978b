"""Is an INDM below both of its parents on signals of known entropy and two regimes? signals.md has
the design.

python -m research.verdict.signals     # the search and the trainings; killed and started again, it
goes on
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from indm import INDM, flow_loss, nelbo
from indm.evaluation.statistics import mean_and_error
from indm.flows import Compose, CouplingFlow, ElementwiseFlow, ExactFlow, Flow, Identity
from indm.gaussian import GaussianReference
from indm.nets import Zero
from indm.objective import flow_nll
from indm.score import ScoreModel
from indm.sde import VPSDE
from indm.training import Descent, course, learning_rate_factor
from research.lab.seeds import over_seeds, paired
from research.lab.statistics import cells_of, judged_as_planned
from research.markdown import in_table, with_error
from research.networks.circle import Convolutions
from research.records import RECORDS, Records, Row, made_by
from research.verdict.pays import exact

SEARCH, TABLE = (
    Records(RECORDS / "verdict-signals-search.csv"),
    Records(RECORDS / "verdict-signals.csv"),
)
# points of a signal; bend of its curve; deviation of asinh(BEND · N(0, 1))
POINTS, BEND, SPREAD = 64, 3.0, 1.5652
# seeds by distance
SEEDS: dict[float, tuple[int, ...]] = {0.0: (1, 2, 3, 4, 5), 0.5: (1, 2, 3), 1.0: (1, 2, 3, 4, 5)}
# CPU seconds of a training, and in the search; distance in the search
SECONDS, TUNED, TUNED_ON = 60.0, 20.0, 0.5
ROWS, FLOW_ROWS, WARMUP, FALL, DECAY, BETAS = 64, 256, 100, 0.5, 0.999, (0.9, 0.99)
# rows of a fit without gradients, of the search, of a gap
FITTED, VALID, TEST = 50_000, 2_048, 4_096
# times of a bound for each row; the seed of its times and noise, one for all models
TIMES, DRAWS = 32, 9
# components; nats that count; nats of a failure
COMPONENTS, MARGIN, DIVERGED = (1, 2, 3, 4, 6, 8, 12, 16), 0.25, 1e6
# dimensions of each frequency
MODES = torch.cat([torch.ones(1), torch.full((POINTS // 2 - 1,), 2.0), torch.ones(1)])


@dataclass(frozen=True)
class Regimes:
    """x = asinh(3u)/1.5652 of each entry of u, a Gaussian signal that is stationary on a circle of
    64 points.

    Its spectrum falls as 1/f^(2 − distance) or 1/f^(2 + distance), each in half of the signals; its
    variance is 1.
    """

    distance: float

    @property
    def spectra(self) -> Tensor:
        """Variances of the orthonormal Fourier coefficients, (2, 33); f = 0 has the variance of f =
        1.
        """
        f = torch.arange(POINTS // 2 + 1, dtype=torch.float64).clamp_min(1)
        powers = torch.stack([f ** -(2 - self.distance), f ** -(2 + self.distance)])
        return powers * POINTS / (MODES * powers).sum(1, keepdim=True)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Signals (n, 64), float64."""
        white = torch.randn(n, POINTS, generator=generator, dtype=torch.float64)
        regime = torch.randint(2, (n,), generator=generator)
        return (BEND * filtered(white, self.spectra.sqrt()[regime])).asinh() / SPREAD

    def latent_log_prob(self, u: Tensor) -> Tensor:
        """Nats of u (B, 64), (B,)."""
        terms = power(u)[:, None] / self.spectra + (2 * math.pi * self.spectra).log()
        return (-0.5 * (MODES * terms).sum(2)).logsumexp(1) - math.log(2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats of signals x (B, 64), (B,)."""
        slope = BEND / (SPREAD * (1 + (BEND * latent(x)).square()).sqrt())
        return self.latent_log_prob(latent(x)) - slope.log().sum(1)


def latent(x: Tensor) -> Tensor:
    """u of signals x."""
    return (SPREAD * x).sinh() / BEND


def filtered(x: Tensor, scale: Tensor) -> Tensor:
    """x with its Fourier coefficients times ``scale``, (33,) or (B, 33)."""
    return torch.fft.irfft(torch.fft.rfft(x) * scale, POINTS)


def power(x: Tensor) -> Tensor:
    """Squares of the orthonormal Fourier coefficients, (B, 33)."""
    return torch.fft.rfft(x, norm="ortho").abs().square()


def seeded(seed: int, purpose: int = 0) -> torch.Generator:
    """A stream of a seed: 0 trains or fits, 1 tests, 2 chooses, 3 fits the control variate of the
    bound.
    """
    return torch.Generator().manual_seed(1_000 * purpose + seed)


class Circulant(ExactFlow):
    """z = ifft(fft(x) · exp(s)), s real and the same for f and −f: a scale of each frequency."""

    def __init__(self, log_scale: Tensor) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(log_scale)

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """z (B, 64) and log|det|, (B,)."""
        return filtered(x, self.log_scale.exp()), (MODES * self.log_scale).sum().expand(len(x))

    def inverse_step(self, z: Tensor) -> Tensor:
        """x."""
        return filtered(z, (-self.log_scale).exp())


def whitening(law: Regimes) -> Flow:
    """Principal components of rows to unit variance, then rotated back: of stationary signals they
    are frequencies.
    """
    return Circulant(
        -0.5 * power(law.draw(FITTED, seeded(0))).mean(0).log().float()
    ).requires_grad_(False)


@dataclass(frozen=True)
class Setting:
    """Rates of the network and of the flow, and whether noises come in pairs."""

    lr: float = 4e-3
    flow_lr: float = 1e-2
    pairs: bool = False


@dataclass(frozen=True)
class Method:
    """The flow in front of the network, for a law, and how both are trained and searched."""

    flow: Callable[[Regimes], Flow]
    after: str = ""  # the method whose setting it starts from
    # tried one after the other; the best on validation rows stays
    axes: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    alone: bool = False  # the flow by its own likelihood, without a network
    # the method without a network that trains the flow for the first half of the seconds
    first: str = ""


def with_curve(flow: Callable[[], Flow]) -> Callable[[Regimes], Flow]:
    """A spline that all entries share, then ``flow``."""
    return lambda law: Compose([ElementwiseFlow((POINTS,), bins=16), flow()])


circulant = with_curve(lambda: Circulant(torch.zeros(len(MODES))))
coupling = with_curve(
    partial(CouplingFlow, (POINTS,), width=64, transform="affine", max_log_scale=3.0)
)
RATES, FLOW_RATES, PAIRS = (
    ("lr", (2e-3, 4e-3, 8e-3)),
    ("flow_lr", (3e-3, 1e-2, 3e-2)),
    ("pairs", (False, True)),
)
METHODS = {
    "linear": Method(lambda law: Identity(), axes=(RATES, PAIRS)),
    "whitened": Method(whitening, axes=(RATES, PAIRS)),
    "circulant alone": Method(circulant, axes=(FLOW_RATES,), alone=True),
    "coupling alone": Method(coupling, axes=(FLOW_RATES,), alone=True),
    "INDM (circulant)": Method(circulant, "whitened", (FLOW_RATES,)),
    "INDM (coupling), joint": Method(coupling, "whitened", (FLOW_RATES,)),
    "INDM (coupling)": Method(
        coupling, "whitened", (("flow_lr", (3e-4, 1e-3, 3e-3)), RATES), first="coupling alone"
    ),
}
MIXTURES = ("mixture of x", "mixture of u")
PARENTS = {
    "INDM (circulant)": ("linear", "whitened", "circulant alone", "coupling alone"),
    "INDM (coupling)": ("linear", "whitened", "coupling alone"),
}
FAMILY = [
    (distance, name, other) for distance in SEEDS for name in PARENTS for other in PARENTS[name]
]


def trained(
    law: Regimes, name: str, setting: Setting, seconds: float, seed: int
) -> tuple[INDM, Row]:
    """The averaged model after so many processor seconds, and its steps, before those with a
    network and with it.
    """
    method, source = METHODS[name], seeded(seed)
    torch.manual_seed(seed)
    model = INDM(
        method.flow(law),
        ScoreModel(Zero() if method.alone else Convolutions(), VPSDE()),
        shape=(POINTS,),
    )
    steps, loss = [0, 0], exact(setting.pairs, levels=True)(model)
    if method.alone or method.first:
        rate, share = (
            (setting.flow_lr, 1.0) if method.alone else (chosen(method.first).flow_lr, 0.5)
        )
        steps[0] = descend(
            model, flow_loss, (0.0, rate), lambda: law.draw(FLOW_ROWS, source), share * seconds
        )
        seconds -= share * seconds
    if not method.alone:
        rates, rows = (setting.lr, setting.flow_lr), ROWS // (1 + setting.pairs)
        steps[1] = descend(model, loss, rates, lambda: law.draw(rows, source), seconds)
    return model.eval(), {"steps": steps}


def descend(
    model: INDM,
    loss: Callable,
    rates: tuple[float, float],
    draw: Callable[[], Tensor],
    seconds: float,
) -> int:
    """Train score and flow at their rates (0: not at all), leave the average in ``model``, and
    return the steps.
    """
    parts = zip(("score", "flow"), (model.score, model.flow), rates, strict=True)
    groups = [
        {"name": name, "params": list(part.parameters()), "lr": rate}
        for name, part, rate in parts
        if rate
    ]
    descent = Descent(model, torch.optim.Adam(groups, betas=BETAS, fused=True), DECAY, clip=1.0)

    def gradients() -> dict[str, Tensor]:
        value, terms = loss(model, draw().float())
        value.backward()
        return terms

    for progress in course(deadline=time.process_time() + seconds, clock=time.process_time):
        descent.advance(gradients, learning_rate_factor(descent.step, progress, WARMUP, FALL))
    model.load_state_dict(descent.ema.model.state_dict())
    return descent.step


@torch.no_grad()
def gaps(model: INDM, law: Regimes, x: Tensor) -> Row:
    """Mean of log p − log p of the model over rows x, nats, with its error: by the bound, of a flow
    alone exactly.
    """
    true, rows = law.log_prob(x), x.float()
    nats = flow = flow_nll(model, rows)
    if not isinstance(model.score.backbone, Zero):
        control = GaussianReference.fit(model.encode(law.draw(2 * TEST, seeded(0, 3)).float())[0])
        nats = nelbo(model, rows, times=TIMES, reference=control, generator=seeded(DRAWS)).total
    found = [
        mean_and_error((part + true).nan_to_num(DIVERGED).clamp_max(DIVERGED))
        for part in (nats, flow)
    ]
    return {
        "gap": found[0][0],
        "error": found[0][1],
        "flow_gap": found[1][0],
        "entropy": -true.mean().item(),
    }


def mixture(law: Regimes, name: str, seed: int, test: Tensor) -> Row:
    """The row of scikit-learn's mixture of Gaussians on x or on u, with as many components as BIC
    takes.
    """
    train, true = law.draw(FITTED, seeded(seed)), law.log_prob(test)
    if name == "mixture of u":
        train, test, true = latent(train), latent(test), law.latent_log_prob(latent(test))
    fits = [GaussianMixture(k, random_state=seed).fit(train.numpy()) for k in COMPONENTS]
    best = min(fits, key=lambda fit: fit.bic(train.numpy()))
    gap, error = mean_and_error(true - torch.from_numpy(best.score_samples(test.numpy())))
    return {"gap": gap, "error": error, "components": best.n_components}


def chosen(name: str) -> Setting:
    """The best setting of a method on validation rows; what has no row yet is trained."""
    setting = chosen(METHODS[name].after) if METHODS[name].after else Setting()
    for key, values in METHODS[name].axes:
        setting = min(
            (replace(setting, **{key: value}) for value in values), key=partial(trial, name)
        )
    return setting


def trial(name: str, setting: Setting) -> float:
    """The gap of validation rows after a short training, seed 0."""
    law = Regimes(TUNED_ON)
    made = partial(run, law, name, setting, TUNED, 0, law.draw(VALID, seeded(0, 2)))
    return SEARCH.at(method=name, **vars(setting)).kept(made)["gap"]


def run(law: Regimes, name: str, setting: Setting, seconds: float, seed: int, test: Tensor) -> Row:
    """The row of a model, which is trained, and measured on rows ``test``."""
    model, row = trained(law, name, setting, seconds, seed)
    return row | gaps(model, law, test) | made_by(seed)


def job(distance: float, name: str, seed: int) -> Row:
    """The row of a method on fresh rows of a seed."""
    law = Regimes(distance)
    test = law.draw(TEST, seeded(seed, 1))
    if name in MIXTURES:
        return mixture(law, name, seed, test) | made_by(seed)
    setting = chosen(name)
    return {"setting": vars(setting)} | run(law, name, setting, SECONDS, seed, test)


def markdown(table: Records) -> str:
    """Gaps in nats of a signal by the distance of the regimes: mean and error over seeds; and the
    entropy.
    """

    def cells(measure: str, **where: str) -> list[str]:
        found = (
            [row[measure] for row in table.at(distance=distance, **where).rows()]
            for distance in SEEDS
        )
        return [with_error(*over_seeds(values), ".2f") if values else "" for values in found]

    rows = [(name, *cells("gap", method=name)) for name in (*METHODS, *MIXTURES)]
    rows.append(("entropy", *cells("entropy", method="linear")))
    return in_table(
        "nats of a signal", *(f"distance {distance:g}" for distance in SEEDS), rows=rows
    )


def family(table: Records) -> str:
    """INDM − its rivals: 95 % intervals over seeds, Holm's p in the planned family, and the word of
    the design.
    """
    made = {}
    for distance, name, other in FAMILY:
        runs = table.at(distance=distance).of_common_seeds("method", (name, other))
        pairs = [
            (a["gap"], b["gap"])
            for a, b in zip(*runs.values(), strict=True)
            if a["machine"] == b["machine"]
        ]
        if len(pairs) > 1:
            made[distance, name, other] = paired([a for a, _ in pairs], [b for _, b in pairs])
    rows = []
    for (distance, *names), row in zip(
        made, judged_as_planned([*made.values()], len(FAMILY)), strict=True
    ):
        rows.append(
            (f"{distance:g}", " − ".join(names), row["seeds"], *cells_of(row, MARGIN, ".2f"))
        )
    return in_table(
        "distance",
        "difference",
        "seeds",
        "nats",
        "95 % interval",
        "Holm's p",
        "is called",
        rows=rows,
    )


def main() -> None:
    torch.set_num_threads(1)
    # the first optimizer imports for seconds, which must not count
    trained(Regimes(0.0), "linear", Setting(), 0.1, 0)
    print({name: chosen(name) for name in METHODS}, flush=True)
    # whole seeds first: their differences are then between runs of one machine
    for seed in SEEDS[1.0]:
        for distance in (distance for distance, seeds in SEEDS.items() if seed in seeds):
            for name in (*METHODS, *MIXTURES):
                TABLE.at(distance=distance, method=name, seed=seed).kept(
                    partial(job, distance, name, seed)
                )


if __name__ == "__main__":
    main()
