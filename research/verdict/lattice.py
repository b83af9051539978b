"""The lattice field at equal seconds: diffusions, flows, a mixture and INDMs; see lattice.md.

    python -m research.verdict lattice HOME     # the trainings and the weights that have no row yet

``HOME`` keeps the draws of the fields and the models. Killed and started again, it goes on.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import indm
from indm import INDM
from indm.evaluation.weights import Interval
from indm.files import atomic
from indm.flows import Compose, CouplingFlow, Flow
from indm.nets import Zero
from indm.score import ScoreModel
from indm.tables import fit
from indm.training import progress_until
from research.lab.seeds import over_seeds
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, Row, made_by
from research.verdict import field
from research.verdict.silenced import (
    FLOW_ROWS,
    PLACES,
    ROWS,
    SDE,
    Attempt,
    Bound,
    Joined,
    Loss,
    Rows,
    bound_loss,
    descent_of,
    field_rows,
    mapped,
    mean_and_error,
    restarted,
    step,
)

TABLE, SEARCHED = (
    Records(RECORDS / "verdict-lattice.csv"),
    Records(RECORDS / "verdict-lattice-search.csv"),
)
SHARES = Records(RECORDS / "verdict-lattice-shares.csv")
COUPLINGS, SEEDS = (4.5, 6.008), (0, 1, 2)
SECONDS, FLOW_SECONDS, TRIAL_SECONDS = (
    60.0,
    20.0,
    20.0,
)  # of a method; of the flow before what is behind it; of a trial
FLOW_RATES, NETWORK_RATE, LATE_RATES = (1e-2, 1e-3), 1e-3, (1e-3, 2e-3)
FRESH, PAIRS = 768, 32 * 768  # draws for the divergence, and pairs of noises at all of them
COMPONENTS, ROUNDS = 64, 60  # Gaussians of the mixture, at most, and rounds of its fit
DRAWS, TARGETS = 300, 256  # of a method, and of the field, for the weights
LOOKED_AT = 256  # rows at which a network is dead or not
STEPS, SHARE_ROWS = 8, 32  # of the ODE, and rows at a time
LINEAR, WHITENED, ALONE, AFFINE, SPLINE = (
    "linear",
    "linear, whitened",
    "flow alone",
    "coupling flow",
    "spline flow",
)
MIXTURE, INDM_BEHIND, FIRST = "mixture behind the flow", "INDM, flow first", "INDM, diffusion first"
TRIALS = {
    LINEAR: (4e-3, 1e-3),
    WHITENED: (4e-3, 1e-3),
    AFFINE: (1e-2, 3e-3, 1e-3),
    SPLINE: (1e-2, 3e-3, 1e-3),
}
METHODS = (ALONE, MIXTURE, INDM_BEHIND, WHITENED, FIRST, AFFINE, SPLINE, LINEAR)
MAIN = (WHITENED, ALONE, MIXTURE, INDM_BEHIND, FIRST)  # of each seed; the others have seed 0 first


# ── Densities ─────────────────────────────────────────────────────────────────────────────────────


def hartley(z: Tensor) -> Tensor:
    """Re + Im of the orthonormal transform of fields, its own inverse.

    Those of a stationary Gaussian are independent.
    """
    turned = torch.fft.fft2(z, norm="ortho")
    return turned.real + turned.imag


def even(spectrum: Tensor) -> Tensor:
    """The mean of a spectrum (…, L, L) at k and −k."""
    return 0.5 * (spectrum + spectrum.flip((-1, -2)).roll((1, 1), (-1, -2)))


class Spectra:
    """A mixture of stationary Gaussians: of a constant mean, and a variance of each frequency."""

    def __init__(self, z: Tensor, components: int, generator: torch.Generator):
        """Fit it to fields z (n, 1, L, L) by expectation maximisation."""
        h = hartley(z[:, 0].double())
        self.weight = torch.full((components,), 1 / components, dtype=torch.float64)
        order = h[:, 0, 0].argsort()
        rank = torch.empty(len(h))
        rank[order] = torch.arange(len(h)) / len(h)
        noise = 0.2 * torch.rand(len(h), generator=generator)
        cells = ((0.8 * rank + noise) * components).long().clamp_max(components - 1)
        share = nn.functional.one_hot(cells, components).double()
        for _ in range(ROUNDS):
            self._maximise(h, share)
            share = self._log_joint(h).softmax(1)

    def _maximise(self, h: Tensor, share: Tensor) -> None:
        mass = share.sum(0).clamp_min(1e-6)
        self.weight = mass / mass.sum()
        self.mean = torch.zeros(len(mass), *h.shape[1:], dtype=h.dtype)
        self.mean[:, 0, 0] = share.T @ h[:, 0, 0] / mass
        square = (
            torch.einsum("nk,nij->kij", share, h.square()) / mass[:, None, None]
            - self.mean.square()
        )
        self.variance = even(square).clamp_min(1e-4)

    def _log_joint(self, h: Tensor) -> Tensor:
        """log weight + log density of each component at Hartley coefficients (n, L, L), (n, K)."""
        precision = 1 / self.variance.flatten(1)
        flat, mean = h.flatten(1), self.mean.flatten(1)
        square = (
            flat.square() @ precision.T
            - 2 * flat @ (mean * precision).T
            + (mean.square() * precision).sum(1)
        )
        log_det = (2 * math.pi / precision).log().sum(1)
        return self.weight.log() - 0.5 * (square + log_det)

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats of fields (n, 1, L, L), (n,)."""
        return self._log_joint(hartley(z[:, 0].double())).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Fields (n, 1, L, L)."""
        k = torch.multinomial(self.weight, n, replacement=True, generator=generator)
        normal = torch.randn(n, *self.mean.shape[1:], generator=generator, dtype=torch.float64)
        return hartley(self.mean[k] + self.variance[k].sqrt() * normal)[:, None].float()


@dataclass(frozen=True)
class Fitted:
    """A fitted density: a flow, and behind it N(0, I), a mixture or a network's diffusion."""

    flow: Flow
    score: ScoreModel | None = None
    mixture: Spectra | None = None

    @property
    def model(self) -> INDM:
        """As an INDM."""
        return INDM(
            self.flow, self.score or ScoreModel(Zero(), SDE), shape=(1, field.SITES, field.SITES)
        )

    @torch.no_grad()
    def log_prob(self, x: Tensor, pairs: int) -> Tensor:
        """log q of rows, (n,); of a diffusion its bound, by so many pairs of noises in all."""
        z, nats = mapped(self.flow, (x, torch.zeros(len(x), 0)))
        if self.mixture is not None:
            return -nats - SDE.prior_log_prob(z) + self.mixture.log_prob(z)
        if self.score is None:
            return -nats
        return -nats + Bound(z, torch.zeros(len(z), 0), pairs).gains(self.score)[0]


Parts = Sequence[tuple[nn.Module, float]]

# ── Trainings ─────────────────────────────────────────────────────────────────────────────────────


def turned(loss: Loss, has_signs: bool) -> Loss:
    """A loss at fields after symmetries of the law: one random shift on the torus, and one random sign."""

    def at_turned(x: Tensor, c: Tensor) -> Tensor:
        shifts = torch.randint(field.SITES, (2,)).tolist()
        sign = 2 * int(torch.randint(2, ())) - 1 if has_signs else 1
        return loss(sign * x.roll(shifts, (-2, -1)), c)

    return at_turned


def run_down(
    model: nn.Module, parts: Parts, loss: Loss, rows: Rows, seconds: float, of_step: int
) -> int:
    """Train parts at their rates for so many processor seconds; take the average.

    Returns:
        the steps.
    """
    descent = descent_of(model, parts)
    at_turned = turned(loss, has_signs=True)
    for share in progress_until(deadline=time.process_time() + seconds, clock=time.process_time):
        step(descent, at_turned, rows.train, of_step, share)
    model.load_state_dict(descent.ema.model.state_dict())
    return descent.step


def flow_fitted(flow: Flow, rates: Sequence[float], rows: Rows, seconds: float) -> int:
    """Train a flow by its own likelihood, at each rate for an equal part of the seconds."""
    loss = lambda x, c: fit.flow_nats(flow, x).mean() / x[0].numel()  # noqa: E731
    steps = [
        run_down(flow, [(flow, rate)], loss, rows, seconds / len(rates), FLOW_ROWS)
        for rate in rates
    ]
    return sum(steps)


def network_fitted(
    flow: Flow, rate: float, rows: Rows, seconds: float
) -> tuple[ScoreModel, int, float]:
    """Train a network behind a flow that stays as it is, on latents of the rows and their negatives.

    Returns:
        the averaged score, the steps of the last network, and its rate.
    """
    x = torch.cat([rows.train[0], -rows.train[0]])
    latents = mapped(flow, (x, torch.zeros(len(x), 0)))[0], torch.zeros(len(x), 0)

    def begun(rate: float) -> Attempt:
        attempt = Attempt(field.Torus(), latents, rate, ROWS)
        attempt.loss = turned(attempt.loss, has_signs=False)
        return attempt

    attempt = restarted(begun, rate, latents[0][:: len(x) // LOOKED_AT], seconds)
    return attempt.descent.ema.model.score, attempt.descent.step, attempt.rate


def affine_or_spline(method: str, x: Tensor) -> Flow:
    """The whitening, then a coupling flow of two scales."""
    kind = "affine" if method == AFFINE else "spline"
    coupling = CouplingFlow(
        (1, field.SITES, field.SITES), scales=2, transform=kind, bound=5.0, start="rotation"
    )
    return Compose([field.Spectrum().whiten(x), coupling])


def scaled(x: Tensor) -> Flow:
    """Division by the deviation of all sites."""
    flow = field.Spectrum()
    nn.init.constant_(flow.log_scale, -x.std().log().item())
    return flow


class Found(NamedTuple):
    """A density, the steps of its training, and the rate of its network at the end."""

    density: Fitted
    steps: int
    rate: float | None = None


def fitted(method: str, rate: float, rows: Rows, seconds: float) -> Found:
    """What a method finds in its seconds."""
    x = rows.train[0]
    if method in (LINEAR, WHITENED):
        flow = scaled(x) if method == LINEAR else field.Spectrum().whiten(x)
        score, steps, last = network_fitted(flow, rate, rows, seconds)
        return Found(Fitted(flow, score), steps, last)
    if method in (AFFINE, SPLINE, ALONE):
        flow = field.curve_and_spectrum(x) if method == ALONE else affine_or_spline(method, x)
        rates = FLOW_RATES if method == ALONE else (rate,)
        return Found(Fitted(flow), flow_fitted(flow, rates, rows, seconds))
    if method == FIRST:
        return diffusion_first(rows, seconds)
    flow = field.curve_and_spectrum(x)
    steps = flow_fitted(flow, FLOW_RATES, rows, FLOW_SECONDS)
    if method == MIXTURE:
        return Found(Fitted(flow, mixture=best_spectra(flow, rows)), steps)
    score, more, last = network_fitted(flow, NETWORK_RATE, rows, seconds - FLOW_SECONDS)
    return Found(Fitted(flow, score), steps + more, last)


def diffusion_first(rows: Rows, seconds: float) -> Found:
    """The network behind a whitening; for the second half all, with a curve in front."""
    x = rows.train[0]
    flow = field.curve_and_spectrum(x)
    model = Joined(flow, ScoreModel(field.Torus(), SDE))
    steps = run_down(model, [(model.score, 4e-3)], bound_loss(model), rows, seconds / 2, ROWS)
    late = [(model.score, LATE_RATES[0]), (flow, LATE_RATES[1])]
    steps += run_down(model, late, bound_loss(model), rows, seconds / 2, ROWS)
    return Found(Fitted(flow, model.score), steps)


@torch.no_grad()
def best_spectra(flow: Flow, rows: Rows) -> Spectra:
    """The mixture of latents, in both signs, whose number of Gaussians validates best."""
    train, valid = (torch.cat([mapped(flow, (sign * x, c))[0] for sign in (1, -1)])
                    for x, c in (rows.train, rows.valid))  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    counts = [2**i for i in range(int(math.log2(COMPONENTS)) + 1)]
    return max(
        (Spectra(train, k, generator) for k in counts),
        key=lambda one: one.log_prob(valid).mean().item(),
    )


# ── The study ─────────────────────────────────────────────────────────────────────────────────────


def fresh(coupling: float, home: Path) -> Tensor:
    """Draws of the field by chains of their own, (n, 1, L, L)."""
    path = home / f"fresh-{coupling}.npz"
    if not path.exists():
        fields = field.Field(coupling).draws(1, 1)[:FRESH, 0]
        atomic.whole(path, atomic.arrays_into({"fields": fields.numpy()}))
    with np.load(path) as file:
        return torch.from_numpy(file["fields"])


def rate_of(coupling: float, method: str, rows: Rows) -> float:
    """The rate with the best validated log q in short trials; NaN where there are none."""
    found = {}
    for rate in TRIALS.get(method, ()):

        def trial(rate: float = rate) -> Row:
            torch.manual_seed(100)
            density, steps, _ = fitted(method, rate, rows, TRIAL_SECONDS)
            value = mean_and_error(density.log_prob(rows.valid[0], len(rows.valid[0])))
            return {"log_q": value, "steps": steps} | made_by(100)

        found[rate] = SEARCHED.at(coupling=coupling, method=method, rate=rate).kept(trial)["log_q"][
            0
        ]
    finite = {
        rate: value for rate, value in found.items() if value is not None and math.isfinite(value)
    }
    return max(finite, key=lambda rate: finite[rate]) if finite else math.nan


def model_path(coupling: float, method: str, seed: int, home: Path) -> Path:
    return home / f"lattice-{coupling}-{method}-{seed}.pt"


def run(job: tuple[float, str, int], home: Path) -> None:
    """Train a method and write its row, unless it is there."""
    coupling, method, seed = job
    cell = TABLE.at(coupling=coupling, method=method, seed=seed)
    if cell.rows():
        return
    rows, x = field_rows(coupling, home), fresh(coupling, home)
    rate = rate_of(coupling, method, rows)
    torch.manual_seed(seed)
    start = time.process_time()
    density, steps, last = fitted(method, rate, rows, SECONDS)
    seconds = time.process_time() - start
    atomic.whole(model_path(*job, home), lambda beside: torch.save(density, beside))
    excess = -field.Field(coupling).action(x) - density.log_prob(x.float(), PAIRS)
    row: Row = {
        "kl": mean_and_error(excess),
        "rate": None if math.isnan(rate) else rate,
        "steps": steps,
        "last_rate": last,
    }
    if density.mixture is not None:
        row["components"] = len(density.mixture.weight)
    cell.add(
        row | {"cpu_seconds": round(seconds, 1), "excess_nats": excess.numpy()} | made_by(seed)
    )


def log_q_of(density: Fitted, x: Tensor, generator: torch.Generator) -> Tensor:
    """log q, (n,); of a diffusion by the ODE."""
    if density.score is None:
        return density.log_prob(x, len(x)).double()
    parts = []
    with torch.no_grad():
        for part in x.split(SHARE_ROWS):
            parts.append(density.model.log_prob(part, exact=True, steps=STEPS, generator=generator))
    return torch.cat(parts).double()


def drawn(density: Fitted, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws with their log q."""
    if density.score is not None:
        options: dict[str, Any] = {"exact": True, "steps": STEPS, "batch_size": SHARE_ROWS}
        x, log_q = indm.sample_with_log_prob(density.model, n, generator=generator, **options)
        return x, log_q.double()
    if density.mixture is not None:
        z = density.mixture.sample(n, generator)
    else:
        z = torch.randn(n, 1, field.SITES, field.SITES, generator=generator)
    with torch.no_grad():
        x = density.flow.inverse(z)
    return x, log_q_of(density, x, generator)


def weigh(coupling: float, method: str, home: Path) -> None:
    """The shares of a method's draws, seed 0, unless their row is there."""
    cell = SHARES.at(coupling=coupling, method=method, seed=0)
    path = model_path(coupling, method, 0, home)
    if cell.rows() or not path.exists():
        return
    density: Fitted = torch.load(path, weights_only=False)
    generator, start = torch.Generator().manual_seed(0), time.process_time()
    target = fresh(coupling, home)[:TARGETS].float()
    x, log_q = drawn(density, DRAWS, generator)
    at_target = log_q_of(density, target, generator)
    law = field.Field(coupling)
    found = indm.reweight(
        lambda rows: -law.action(rows.double()),
        draws=x,
        log_q=log_q,
        target_draws=target,
        target_log_q=at_target,
        progress=False,
    )
    forward = found.forward
    assert forward is not None
    excess = -law.action(target.double()) - at_target
    row: Row = {
        "share": shown(found.ess),
        "forward": shown(forward.ess),
        "log_z": shown(found.log_z),
    }
    row |= {
        "k": found.k,
        "effective": found.effective,
        "deviation": forward.deviation,
    }
    row |= {"kl": mean_and_error(excess), "excess_nats": excess.numpy()}
    cell.add(
        row | {"draws": DRAWS, "cpu_seconds": round(time.process_time() - start, 1)} | made_by(0)
    )


def shown(of: Interval) -> list[float | None]:
    """Value, low and high; None where they are not known."""
    return [value if math.isfinite(value) else None for value in (of.value, of.low, of.high)]


def jobs() -> Iterator[tuple[float, str, int]]:
    """Coupling, method and seed of the trainings, in the order in which they are made."""
    others = [method for method in METHODS if method not in MAIN]
    for methods, seed in ((MAIN, 0), (MAIN, 1), (others, 0), (MAIN, 2), (others, 1), (others, 2)):
        yield from ((coupling, method, seed) for method in methods for coupling in COUPLINGS)


# ── What came out ─────────────────────────────────────────────────────────────────────────────────


def log_z_of(coupling: float) -> tuple[float, float]:
    """log Z and its error, from draws of the flow of silenced.md."""
    (row,) = PLACES.at(place=f"field {coupling:g}").rows()
    return tuple(row["log_z"])


def excess_of(table: Records, coupling: float, method: str) -> dict[int, np.ndarray]:
    """log p̃ − log q at the draws of the field, by seed."""
    rows = table.at(coupling=coupling, method=method).rows()
    return {row["seed"]: np.array(row["excess_nats"], float) for row in rows}


def differences(table: Records, coupling: float, method: str) -> list[tuple[float, float]]:
    """Nats by which the KL of a method is above that of the INDM with the flow first.

    One for each seed that both have, with its error over draws.
    """
    ours, theirs = (excess_of(table, coupling, name) for name in (INDM_BEHIND, method))
    found = []
    for seed in sorted(ours.keys() & theirs.keys()):
        off = theirs[seed] - ours[seed]
        found.append((off.mean(), off.std(ddof=1) / math.sqrt(len(off))))
    return found


def kl_table(table: Records) -> str:
    """KL of each method in nats, and by how much it is above the INDM with the flow first."""
    rows = []
    for method in METHODS:
        cells: list[object] = []
        for coupling in COUPLINGS:
            found = excess_of(table, coupling, method)
            means = [values.mean() - log_z_of(coupling)[0] for values in found.values()]
            off = [value for value, _ in differences(table, coupling, method)]
            draws = max((error for _, error in differences(table, coupling, method)), default=0)
            if means:
                over, error = over_seeds(off, 0.0)
                above = with_error(over, max(error, draws), ".3f") if method != INDM_BEHIND else ""
                cells += [f"{np.mean(means):.3f}", above, len(means)]
            else:
                cells += ["", "", ""]
        rows.append((method, *cells))
    columns = [f"{name} at λ = {coupling:g}" for coupling in COUPLINGS
               for name in ("KL", "above the INDM, flow first,", "seeds")]  # fmt: skip
    return in_table("method", *columns, rows=rows)


def interval(cell: Sequence[float | None]) -> str:
    """A share with its interval; the upper end alone where only that is known."""
    value, low, high = cell
    if value is None:
        return "refused"
    if not low:
        return f"at most {high:.2f}"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def share_table(table: Records) -> str:
    """The share of the draws of each method that counts, by its draws and by draws of the field."""
    rows = []
    for method in METHODS:
        cells: list[str] = []
        for coupling in COUPLINGS:
            for row in table.at(coupling=coupling, method=method).rows()[:1] or [None]:
                if row is None:
                    cells += ["", "", ""]
                    continue
                off = row["kl"][0] - log_z_of(coupling)[0]
                kl = with_error(off, row["kl"][1], ".3f")
                cells += [interval(row["share"]), interval(row["forward"]), kl]
        if any(cells):
            rows.append((method, *cells))
    columns = [f"λ = {coupling:g}: {name}" for coupling in COUPLINGS
               for name in ("share", "forward share", "KL by the ODE")]  # fmt: skip
    return in_table("method", *columns, rows=rows)


def main(home: Path) -> None:
    torch.set_num_threads(1)
    for job in jobs():
        run(job, home)
        print(*job, flush=True)
        if job == (COUPLINGS[-1], MAIN[-1], 0):
            weigh_all(home)
    weigh_all(home)


def weigh_all(home: Path) -> None:
    """The weights that have no row yet, of models that are trained."""
    for method in METHODS:
        for coupling in COUPLINGS:
            weigh(coupling, method, home)
