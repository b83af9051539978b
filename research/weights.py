"""Do weights state their errors? Twelve targets with a known or a long-measured Z, proposals from
good to bad.

    python -m research.weights                      # whatever has no record yet, then the tables
    python -m research.weights --only funnel        # the targets whose name has that in it
    python -m research.weights --only none          # the tables alone

A proposal gives 10⁶ draws. Pilots are slices of them, so that no draw is in two pilots of one size.
For each pilot :func:`indm.reweight` states log Z, a mean and the share, or refuses. Next to it
stand the normal interval and the empirical share of the pilot, which is what is usually published.
Some 15 minutes of one core; killed and started again, it goes on. A cell is a row of
``weights.csv``, and a planted fault one of ``weights-faults.csv``.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

import indm
from indm.evaluation.weights import Interval, Weights
from research.markdown import in_table
from research.records import RECORDS, Records, Row, made_by
from research.verdict.field import SITES, Field, curve_and_spectrum

SIZES = (256, 1000, 4096, 10_000)
PILOTS, FORWARD = 100, 30  # pilots of each size, and those that get draws of the target
POOL, REFERENCE, BATCH = 10**6, 10**7, 50_000
OF_TARGET = 1000  # draws of the target for the forward check
NO_SHARE = 0.5  # k̂ of the pool from which the share falls to 0 with more draws
LEAST = 20  # pilots that speak, of a proposal that is judged


class Law(Protocol):
    """What draws and has a density."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, d)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """(n,)."""


class Mixture:
    """A mixture of Gaussians, or of Student laws where ``freedom`` is given."""

    def __init__(
        self, means: Tensor, roots: Tensor, weights: Tensor | None = None, freedom: float = math.inf
    ):
        """means (K, d), roots of covariances (K, d, d), lower triangular, and weights (K,)."""
        self.means, self.roots = means.double(), roots.double()
        self.weights = torch.full((len(means),), 1 / len(means)) if weights is None else weights
        self.weights, self.freedom = self.weights.double(), freedom
        self.inverses = torch.linalg.inv(self.roots)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, d)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        if math.isfinite(self.freedom):
            seed = int(torch.randint(2**31, (1,), generator=generator))
            chi = torch.from_numpy(np.random.default_rng(seed).chisquare(self.freedom, (n, 1)))
            normal = normal * (self.freedom / chi).sqrt()
        x = torch.empty_like(normal)
        for k in range(len(self.means)):
            rows = which == k
            x[rows] = self.means[k] + normal[rows] @ self.roots[k].T
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """(n,)."""
        parts = []
        for k in range(len(self.means)):
            square = ((x - self.means[k]) @ self.inverses[k].T).square().sum(1)
            log_det = self.inverses[k].diagonal().log().sum()
            parts.append(self.weights[k].log() + log_det + self._radial(square, x.shape[1]))
        return torch.stack(parts).logsumexp(0)

    def _radial(self, square: Tensor, d: int) -> Tensor:
        if math.isinf(self.freedom):
            return -0.5 * (square + d * math.log(2 * math.pi))
        v = self.freedom
        constant = math.lgamma((v + d) / 2) - math.lgamma(v / 2) - 0.5 * d * math.log(v * math.pi)
        return constant - 0.5 * (v + d) * torch.log1p(square / v)


def gaussian(d: int, scale: float = 1.0, mean: float = 0.0, freedom: float = math.inf) -> Mixture:
    return Mixture(torch.full((1, d), mean), scale * torch.eye(d)[None], freedom=freedom)


def matched(x: Tensor, scale: float, freedom: float = math.inf) -> Mixture:
    """One component with mean and covariance of rows, ``scale`` times as wide."""
    root = torch.linalg.cholesky(torch.cov(x.T))
    return Mixture(x.mean(0, keepdim=True), scale * root[None], freedom=freedom)


class Funnel:
    """v ~ N(0, scale²), and two numbers N(0, e^v) given v."""

    def __init__(self, scale: float):
        self.scale = scale

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        v = self.scale * normal[:, :1]
        return torch.cat([v, (v / 2).exp() * normal[:, 1:]], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        v = x[:, 0]
        of_v = -0.5 * (v / self.scale).square() - math.log(self.scale)
        of_rest = -0.5 * x[:, 1:].square().sum(1) * (-v).exp() - v
        return of_v + of_rest - 1.5 * math.log(2 * math.pi)


class Banana:
    """a ~ N(0, 1), and b ~ N(a², scale²) given a."""

    def __init__(self, scale: float, wide: float = 1.0):
        self.scale, self.wide = scale, wide

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        a, b = torch.randn(2, n, generator=generator, dtype=torch.float64)
        a = self.wide * a
        return torch.stack([a, a.square() + self.scale * b], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        a, b = x.T
        square = (a / self.wide).square() + ((b - a.square()) / self.scale).square()
        return -0.5 * square - math.log(2 * math.pi * self.scale * self.wide)


class Cut:
    """N(0, I) in three dimensions, cut to the box from 0 to 1."""

    log_mass = 3 * math.log(0.5 * math.erf(1 / math.sqrt(2)))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, 3, generator=generator, dtype=torch.float64)
        top = math.erf(1 / math.sqrt(2))
        return math.sqrt(2) * torch.erfinv(top * u)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= 0) & (x <= 1)).all(1)
        log_p = -0.5 * (x.square() + math.log(2 * math.pi)).sum(1) - self.log_mass
        return torch.where(inside, log_p, -math.inf)


class Box:
    """The uniform law of the box from 0 to 1."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 3, generator=generator, dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64)


def square_of_first(x: Tensor) -> Tensor:
    return x[:, 0].square()


def above_one(x: Tensor) -> Tensor:
    return (x[:, 0] > 1).double()


@dataclass(frozen=True)
class Target:
    """An unnormalised density with log Z and a mean that are known, or measured by the best
    proposal.

    Attributes:
        says: what it is, in words.
        log_density: log p̃ of (n, d), with Z = 2 for laws that have a density.
        proposals: by name, the best first.
        law: what draws the target; None where only ``reference`` draws of the best proposal say Z.
        f: whose mean is stated.
        log_z: None where it is measured.
        misses: proposals that miss a part of the target.
        reference: draws by which log Z is measured.
    """

    says: str
    log_density: Callable[[Tensor], Tensor]
    proposals: dict[str, Law]
    law: Law | None = None
    f: Callable[[Tensor], Tensor] = square_of_first
    log_z: float | None = None
    misses: tuple[str, ...] = ()
    reference: int = REFERENCE

    @cached_property
    def truth(self) -> dict[str, float]:
        """log Z and the mean of f, each with its standard error."""
        if self.log_z is not None and self.law is not None:
            values = np.concatenate(
                [self.f(self.law.sample(BATCH, g)).numpy() for g in generators(10, 4 * POOL)]
            )
            error = values.std() / math.sqrt(len(values))
            return {
                "log_z": self.log_z,
                "log_z_error": 0.0,
                "mean": values.mean(),
                "mean_error": error,
            }
        log_w, values = pool(self, next(iter(self.proposals.values())), self.reference, 11)
        w = np.exp(log_w - log_w.max())
        mean = (w @ values) / w.sum()
        error = w.std() / w.mean() / math.sqrt(len(w))
        of_mean = math.sqrt(np.square(w * (values - mean)).sum()) / w.sum()
        return {
            "log_z": float(np.log(w.mean()) + log_w.max()), "log_z_error": error,
            "mean": float(mean), "mean_error": of_mean,
        }  # fmt: skip


def generators(seed: int, n: int) -> list[torch.Generator]:
    """One for each batch of n draws."""
    return [torch.Generator().manual_seed(1_000_003 * seed + i) for i in range(-(-n // BATCH))]


def pool(target: Target, proposal, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """log weights and f at n draws of a proposal."""
    log_w, values = [], []
    for generator in generators(seed, n):
        x = proposal.sample(min(n, BATCH), generator)
        log_w.append((target.log_density(x) - proposal.log_prob(x)).numpy())
        values.append(target.f(x).numpy())
    return np.concatenate(log_w)[:n], np.concatenate(values)[:n]


def of_law(says: str, law, proposals: dict, **options) -> Target:
    return Target(
        says, lambda x: law.log_prob(x) + math.log(2), proposals, law, log_z=math.log(2), **options
    )


def two_modes(weight: float, distance: float = 3.0, scale: float = 1.0) -> Mixture:
    means = torch.tensor([[-distance, 0.0], [distance, 0.0]])
    return Mixture(means, scale * torch.eye(2).expand(2, 2, 2), torch.tensor([1 - weight, weight]))


def eight_modes() -> Mixture:
    means = 2 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    return Mixture(means, torch.eye(5).expand(8, 5, 5))


def some(law) -> Tensor:
    return law.sample(50_000, torch.Generator().manual_seed(5))


# The four particles: E = ½ Σ_{i<j} [−4 (r − 4)² + 0.9 (r − 4)⁴] in the plane, positions relative to
# the first one.
def particle_energy(x: Tensor) -> Tensor:
    """(n, 6) → (n,)."""
    places = torch.cat([torch.zeros(len(x), 2, dtype=x.dtype), x], 1).reshape(-1, 4, 2)
    i, j = torch.triu_indices(4, 4, 1)
    off = (places[:, i] - places[:, j]).norm(dim=2) - 4
    return 0.5 * (-4 * off.square() + 0.9 * off.pow(4)).sum(1)


def particle_draws(seed: int) -> Tensor:
    """20,000 draws by Metropolis steps of 2,000 chains."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    energy, kept = particle_energy(x), []
    for step in range(1, 4001):
        width = 0.6 if step % 10 else 3.0  # some long steps
        proposed = x + width * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        new = particle_energy(proposed)
        moves = torch.rand(len(x), generator=generator, dtype=torch.float64).log() < energy - new
        x, energy = torch.where(moves[:, None], proposed, x), torch.where(moves, new, energy)
        if step > 2000 and step % 200 == 0:
            kept.append(x)
    return torch.cat(kept)


def fitted(x: Tensor, components: int, scale: float) -> Mixture:
    """A mixture fitted to rows, whose components are ``scale`` times as wide."""
    found = GaussianMixture(components, random_state=0, max_iter=60, reg_covar=1e-3).fit(x.numpy())
    roots = torch.linalg.cholesky(torch.from_numpy(found.covariances_))
    return Mixture(torch.from_numpy(found.means_), scale * roots, torch.from_numpy(found.weights_))


class Turned:
    """A law of the particles whose direction is uniform: a mixture of log r of the first pair, and
    of the rest.
    """

    def __init__(self, x: Tensor, components: int, scale: float):
        self.inner = fitted(self._turned(x), components, scale)

    def _turned(self, x: Tensor) -> Tensor:
        """(n, 6) → (n, 5): coordinates with the first pair along an axis."""
        first, rest = x[:, :2], x[:, 2:].reshape(-1, 2, 2)
        r = first.norm(dim=1, keepdim=True)
        along = first / r
        across = torch.stack([-along[:, 1], along[:, 0]], 1)
        parts = [(rest * axis[:, None]).sum(2) for axis in (along, across)]
        return torch.cat([r.log(), *parts], 1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        y = self.inner.sample(n, generator)
        angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        along = torch.stack([angle.cos(), angle.sin()], 1)
        across = torch.stack([-along[:, 1], along[:, 0]], 1)
        rest = y[:, 1:3, None] * along[:, None] + y[:, 3:, None] * across[:, None]
        return torch.cat([y[:, :1].exp() * along, rest.flatten(1)], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        y = self._turned(x)
        return self.inner.log_prob(y) - 2 * y[:, 0] - math.log(2 * math.pi)


def particles() -> Target:
    x = particle_draws(0)
    proposals = {
        "turned, 48 Gaussians, wider by 1.15": Turned(x, 48, 1.15),
        "turned, 48 Gaussians": Turned(x, 48, 1.0),
        "turned, 12 Gaussians": Turned(x, 12, 1.0),
        "32 Gaussians": fitted(x, 32, 1.0),
    }
    return Target(
        "four particles in a double well",
        lambda x: -particle_energy(x),
        proposals,
        f=particle_energy,
    )


class Curved:
    """A curve that all sites share and a spectrum, fitted by their likelihood, behind N(0, scale²
    I).
    """

    def __init__(self, fields: Tensor, scale: float, steps: int = 400):
        torch.manual_seed(0)
        x = fields.float().reshape(-1, 1, SITES, SITES)
        self.flow, self.scale = curve_and_spectrum(x), scale
        adam = torch.optim.Adam(self.flow.parameters(), 2e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.01, steps)
        for _ in range(steps):
            loss = -self._log_prob(x[torch.randint(len(x), (256,))], 1.0).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()

    def _log_prob(self, x: Tensor, scale: float) -> Tensor:
        z, log_det = self.flow(x)
        square = (z / scale).square().flatten(1).sum(1)
        return log_det - 0.5 * square - SITES**2 * (0.5 * math.log(2 * math.pi) + math.log(scale))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = self.scale * torch.randn(n, 1, SITES, SITES, generator=generator)
        return self.flow.inverse(z).flatten(1).double()

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        parts = x.float().reshape(-1, 1, SITES, SITES).split(5000)
        return torch.cat([self._log_prob(part, self.scale) for part in parts]).double()


def lattice(coupling: float) -> Target:
    """Proposals are a curve and a spectrum, two Gaussians with the mean and the spectrum of one
    phase, or one.
    """
    law = Field(coupling)
    fields = law.draws(5, 0).flatten(0, 1).flatten(1)
    sign = fields.mean(1, keepdim=True).sign()
    mean = (fields * sign).mean()
    one_phase, both = circulant_root(fields * sign - mean), circulant_root(fields)
    means = mean * torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, SITES**2)
    proposals = {
        "curve and spectrum": Curved(fields, 1.0),
        "two phases": Mixture(means, one_phase.expand(2, -1, -1)),
        "one Gaussian": Mixture(torch.zeros(1, SITES**2), both[None]),
        "one phase": Mixture(means[1:], one_phase[None]),
    }

    def log_density(x: Tensor) -> Tensor:
        return -law.action(x.reshape(-1, 1, SITES, SITES))

    def size_of_mean(x: Tensor) -> Tensor:
        return x.mean(1).abs()

    says = f"lattice field φ⁴, 8×8, m² = −4, λ = {coupling}"
    misses = ("one phase",) if coupling < 5 else ()
    return Target(says, log_density, proposals, f=size_of_mean, misses=misses, reference=2 * POOL)


def circulant_root(fields: Tensor) -> Tensor:
    """The root of a covariance that has the spectrum of fields (n, L²) on a torus."""
    power = torch.fft.fft2(fields.reshape(-1, SITES, SITES), norm="ortho").abs().square().mean(0)
    unit = torch.eye(SITES**2, dtype=torch.float64).reshape(-1, SITES, SITES)
    covariance = torch.fft.ifft2(torch.fft.fft2(unit) * power).real.flatten(1)
    return torch.linalg.cholesky(0.5 * (covariance + covariance.T))


def gaussians(d: int, scales: tuple[float, ...]) -> Target:
    return of_law(
        f"N(0, I) in {d} dimensions", gaussian(d), {f"scale {s}": gaussian(d, s) for s in scales}
    )


def modes() -> Target:
    broad = matched(some(two_modes(0.5)), 1.1)
    proposals = {"wrong shares": two_modes(0.15, 3.0, 1.1), "one Gaussian": broad}
    proposals["one mode"] = Mixture(torch.tensor([[-3.0, 0.0]]), 1.2 * torch.eye(2)[None])
    return of_law("two modes in the plane", two_modes(0.5), proposals, misses=("one mode",))


def eight() -> Target:
    law = eight_modes()
    proposals = {
        "Student, 5": matched(some(law), 1.0, 5.0),
        "one Gaussian": matched(some(law), 1.0),
    }
    proposals["narrow"] = matched(some(law), 0.8)
    return of_law("eight modes in five dimensions", law, proposals)


def student() -> Target:
    proposals = {
        "Student, 2": gaussian(1, 1.2, freedom=2.0),
        "scale 3": gaussian(1, 3.0),
        "scale 1.5": gaussian(1, 1.5),
    }
    return of_law(
        "Student's law with 3 degrees of freedom", gaussian(1, freedom=3.0), proposals, f=above_one
    )


def student_in_space() -> Target:
    proposals = {
        "Student, 4": gaussian(3, 1.1, freedom=4.0),
        "Student, 20": gaussian(3, 1.3, freedom=20.0),
    }
    proposals["Gaussian"] = gaussian(3, 1.3)
    law = gaussian(3, freedom=6.0)
    return of_law("Student's law with 6 degrees, three dimensions", law, proposals, f=above_one)


def funnel() -> Target:
    law = Funnel(1.5)
    proposals = {
        "funnel, wider by 1.2": Funnel(1.8),
        "funnel, narrow": Funnel(1.2),
        "Student, 3": matched(some(law), 0.8, 3.0),
    }
    proposals["one Gaussian"] = matched(some(law), 1.0)
    return of_law("a funnel, three dimensions", law, proposals)


def banana() -> Target:
    law = Banana(0.5)
    proposals = {"banana, wider": Banana(0.6, 1.2), "Student, 5": matched(some(law), 1.0, 5.0)}
    proposals["one Gaussian"] = matched(some(law), 1.2)
    return of_law("a banana, two dimensions", law, proposals)


def box() -> Target:
    proposals = {
        "uniform": Box(),
        "a Gaussian": gaussian(3, 0.6, 0.4),
        "a wide Gaussian": gaussian(3, 1.5, 0.5),
    }
    return of_law("a Gaussian cut to a box", Cut(), proposals)


TARGETS: dict[str, Callable[[], Target]] = {
    "gaussian-2": lambda: gaussians(2, (1.2, 0.9, 0.8, 0.7)),
    "gaussian-10": lambda: gaussians(10, (1.1, 1.3, 0.9)),
    "two-modes": modes,
    "eight-modes": eight,
    "student-1": student,
    "student-3": student_in_space,
    "funnel": funnel,
    "banana": banana,
    "box": box,
    "particles": particles,
    "lattice-4.5": lambda: lattice(4.5),
    "lattice-6.008": lambda: lattice(6.008),
}


def counts(stated: list[Interval], truth: float) -> Row:
    """How many speak, and how many of those cover."""
    speak = [number for number in stated if not number.refused]
    return {
        "speaks": len(speak),
        "covers": sum(bool(number.low <= truth <= number.high) for number in speak),
    }


def measured(target: Target, name: str, n: int, log_w: np.ndarray, values: np.ndarray) -> Row:
    """All pilots of n draws from the pool of one proposal."""
    truth = target.truth
    whole = Weights(np.arange(POOL), log_w)
    share = whole.effective / POOL
    stated: dict[str, list[Interval]] = {
        key: [] for key in ("log_z", "mean", "ess", "normal", "normal_where_it_speaks")
    }
    ratios, habit, habit_where = [], [], []
    for i in range(PILOTS):
        rows = slice(i * n, (i + 1) * n)
        found = Weights(values[rows], log_w[rows])
        stated["log_z"].append(found.log_z)
        stated["mean"].append(found.mean(values[rows]))
        stated["ess"].append(found.ess)
        w = np.exp(log_w[rows] - log_w.max())
        middle = math.log(max(w.mean(), 1e-300)) + log_w.max()
        error = w.std() / max(w.mean(), 1e-300) / math.sqrt(n)
        normal = Interval(middle, middle - 1.96 * error, middle + 1.96 * error)
        stated["normal"].append(normal)
        if not found.log_z.refused:
            stated["normal_where_it_speaks"].append(normal)
        habit.append(found.effective / n / share)
        if not found.ess.refused and not found.ess.at_most:
            ratios.append(found.ess.value / share)
            habit_where.append(habit[-1])
    truths = {"mean": truth["mean"], "ess": share}
    return {
        "k": whole.k if math.isfinite(whole.k) else None,
        "share": share,
        **truth,
        "misses": name in target.misses,
        "pilots": PILOTS,
        **{
            f"of_{key}": counts(numbers, truths.get(key, truth["log_z"]))
            for key, numbers in stated.items()
        },
        "overstates": float(np.median(ratios)) if ratios else None,
        "two_sided": len(ratios),
        "habit": float(np.median(habit)),
        "habit_where_it_speaks": float(np.median(habit_where)) if habit_where else None,
        "forward": forward(target, name, n) if target.law is not None and n == 1000 else None,
        **made_by(0),
    }


def forward(target: Target, name: str, n: int) -> Row:
    """What draws of the target say, of fresh pilots."""
    proposal, found = target.proposals[name], []
    for i in range(FORWARD):
        generator = torch.Generator().manual_seed(77_000 + i)
        x, y = proposal.sample(n, generator), target.law.sample(OF_TARGET, generator)
        given = {"draws": x, "log_q": proposal.log_prob, "target_draws": y, "progress": False}
        found.append(indm.reweight(target.log_density, **given).forward)
    return {
        "pilots": FORWARD,
        "disagrees": sum(one.disagrees for one in found),
        "of_log_z": counts([one.log_z for one in found], target.truth["log_z"]),
    }


FAULTS = {
    "right": "nothing is wrong",
    "factor": "log q lacks the factor exp(0.3)",
    "jacobian": "log q lacks a Jacobian that depends on x",
    "noise": "log q has noise of variance 0.3, which is not stated",
    "stated-noise": "log q has noise of variance 0.3, which is stated",
    "small-noise": "log q has noise of variance 0.08, which is stated",
    "draws": "draws are from a narrower law than q",
    "mode": "q misses one of two modes",
}


def planted(fault: str) -> Row:
    """Verdicts of pilots of 4096 draws, with and without draws of the target, and of an audit of q."""
    q = gaussian(2, 1.2)
    p = gaussian(2)
    if fault == "mode":
        p, q = two_modes(0.5), Mixture(torch.tensor([[-3.0, 0.0]]), 1.2 * torch.eye(2)[None])
    origin = gaussian(2, 1.0) if fault == "draws" else q
    variance = {"noise": 0.3, "stated-noise": 0.3, "small-noise": 0.08}.get(fault, 0.0)

    def log_q(x: Tensor) -> Tensor:
        bias = {"factor": torch.tensor(-0.3), "jacobian": -0.3 * x[:, 0]}.get(
            fault, torch.tensor(0.0)
        )
        return q.log_prob(x) + bias + math.sqrt(variance) * torch.randn(len(x), dtype=torch.float64)

    torch.manual_seed(0)
    stated = 0.0 if fault == "noise" else variance
    blind, seen, audited = [], [], []
    for i in range(FORWARD):
        generator = torch.Generator().manual_seed(i)
        x, y = origin.sample(4096, generator), p.sample(OF_TARGET, generator)
        given = {"draws": x, "log_q": log_q, "probe_variance": stated, "progress": False}
        blind.append(indm.reweight(p.log_prob, **given).log_z)
        seen.append(indm.reweight(p.log_prob, target_draws=y, **given).forward.disagrees)
    for i in range(3):
        generator = torch.Generator().manual_seed(100 + i)
        audited.append(indm.audit(log_q, lambda n, g=generator: origin.sample(n, g), seed=i).wrong)
    return {
        "pilots": FORWARD,
        "of_log_z": counts(blind, 0.0),
        "found_with_target_draws": sum(seen),
        "audits": len(audited),
        "found_by_audit": sum(audited),
        **made_by(0),
    }


def batches_of_16() -> Row:
    """The mean of empirical shares in batches of 16, next to all 4096 draws and the truth, where k
    = 0.36.
    """
    generator = torch.Generator().manual_seed(0)
    q, p = gaussian(2, 0.8), gaussian(2)
    x = q.sample(4096 * FORWARD, generator)
    w = (p.log_prob(x) - q.log_prob(x)).exp().reshape(FORWARD, 256, 16)
    parts = w.sum(2).square() / w.square().sum(2) / 16
    whole = w.sum((1, 2)).square() / w.square().sum((1, 2)) / 4096
    truth = (2 * 0.8**2 - 1) / 0.8**4
    return {
        "in_batches": parts.mean().item(),
        "whole": whole.median().item(),
        "truth": truth,
        **made_by(0),
    }


def percent(of: Row) -> str:
    return f"{100 * of['covers'] / of['speaks']:.0f}" if of["speaks"] else "–"


def by_cell(rows: list[Row]) -> list[list[Row]]:
    """Rows of each proposal by n, in the order of :data:`TARGETS`."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (list(TARGETS).index(row["target"]), row["n"])):
        cells.setdefault((row["target"], row["proposal"]), []).append(row)
    return sorted(
        cells.values(), key=lambda cell: (list(TARGETS).index(cell[0]["target"]), -cell[0]["share"])
    )


def coverage_table(rows: list[Row]) -> str:
    """A row for each proposal, with the four sizes of pilots between slashes."""

    def sizes(cell: list[Row], what: Callable[[Row], str]) -> str:
        return " / ".join(what(row) for row in cell)

    lines = []
    for cell in by_cell(rows):
        first = cell[0]
        k = "–" if first.get("k") is None else f"{first['k']:.2f}"
        lines.append(
            (
                first["target"],
                first["proposal"] + (", misses" if first["misses"] else ""),
                k,
                f"{first['share']:.3f}",
                sizes(cell, lambda row: f"{row['pilots'] - row['of_log_z']['speaks']}"),
                sizes(cell, lambda row: percent(row["of_log_z"])),
                sizes(cell, lambda row: percent(row["of_normal"])),
                sizes(cell, lambda row: percent(row["of_mean"])),
                sizes(cell, lambda row: percent(row["of_ess"])),
            )
        )
    columns = (
        "target",
        "proposal",
        "k̂",
        "share",
        "refused",
        "log Z",
        "normal",
        "mean",
        "share covers",
    )
    return in_table(*columns, rows=lines)


def summary_table(rows: list[Row]) -> str:
    """All proposals that miss nothing, by the size of pilots."""
    lines = []
    for n in SIZES:
        some = [row for row in rows if row["n"] == n and not row["misses"]]

        def total(key: str, some: list[Row] = some) -> Row:
            return {part: sum(row[key][part] for row in some) for part in ("speaks", "covers")}

        pilots = sum(row["pilots"] for row in some)
        lowest = min(
            (
                row["of_log_z"]["covers"] / row["of_log_z"]["speaks"]
                for row in some
                if row["of_log_z"]["speaks"] >= LEAST
            ),
            default=math.nan,
        )
        lines.append(
            (
                f"{n:,}",
                f"{100 * (1 - total('of_log_z')['speaks'] / pilots):.0f}",
                percent(total("of_log_z")),
                f"{100 * lowest:.0f}",
                percent(total("of_normal_where_it_speaks")),
                percent(total("of_normal")),
                percent(total("of_mean")),
                percent(total("of_ess")),
                f"{100 * (1 - total('of_ess')['speaks'] / pilots):.0f}",
            )
        )
    columns = (
        "n", "refused", "log Z", "worst proposal", "normal, same pilots", "normal, all pilots", "mean", "share",
        "share refused",
    )  # fmt: skip
    return in_table(*columns, rows=lines)


def overstatement_table(rows: list[Row]) -> str:
    """By the size of pilots: medians of a cell, their median and their largest."""
    lines = []
    for n in SIZES:
        some = [row for row in rows if row["n"] == n and not row["misses"]]
        ours = [row["overstates"] for row in some if row["two_sided"] >= LEAST]
        same = [row["habit_where_it_speaks"] for row in some if row["two_sided"] >= LEAST]
        every = [row["habit"] for row in some]
        parts = [f"{np.median(part):.2f}, {max(part):.2f}" for part in (ours, same, every)]
        no_limit = [
            row["two_sided"] for row in some if row["k"] is not None and row["k"] >= NO_SHARE
        ]
        lines.append(
            (
                f"{n:,}",
                f"{len(ours)} of {len(some)}",
                *parts,
                f"{sum(no_limit)} of {PILOTS * len(no_limit)}",
            )
        )
    columns = (
        "n",
        "proposals with a two-sided share",
        "ours",
        "empirical, same pilots",
        "empirical, all",
        "two-sided where k̂ of 10⁶ is above 0.5",
    )
    return in_table(*columns, rows=lines)


def forward_table(rows: list[Row]) -> str:
    """Alarms of the forward check, 30 pilots of each proposal: none may be where nothing is missed."""
    lines = []
    for cell in by_cell([row for row in rows if row.get("forward")]):
        for row in cell:
            found = row["forward"]
            name = row["proposal"] + (", misses" if row["misses"] else "")
            lines.append((row["target"], name, f"{row['k']:.2f}" if row.get("k") is not None else "–",
                          found["disagrees"], found["of_log_z"]["speaks"], percent(found["of_log_z"])))  # fmt: skip
    return in_table(
        "target", "proposal", "k̂", "alarms of 30", "log Z speaks", "log Z covers", rows=lines
    )


def fault_table(rows: list[Row]) -> str:
    lines = []
    for fault, says in FAULTS.items():
        (row,) = (row for row in rows if row["fault"] == fault)
        lines.append(
            (
                says,
                f"{row['of_log_z']['speaks']} of {row['pilots']}",
                percent(row["of_log_z"]),
                f"{row['found_with_target_draws']} of {row['pilots']}",
                f"{row['found_by_audit']} of {row['audits']}",
            )
        )
    return in_table(
        "fault",
        "log Z speaks",
        "covers",
        "found with target draws",
        "found by an audit of q",
        rows=lines,
    )


def batch_sentence(rows: list[Row]) -> str:
    (row,) = (row for row in rows if row["fault"] == "batches")
    return (
        f"The mean of empirical shares in batches of 16 is {row['in_batches']:.3f}, that of all 4,096 draws "
        f"{row['whole']:.3f}, and the share is {row['truth']:.3f}."
    )


def record_proposal(made: Records, target: Target, name: str) -> None:
    """Add the rows that are missing."""
    missing = [n for n in SIZES if not made.at(n=n).rows()]
    if missing:
        log_w, values = pool(target, target.proposals[name], POOL, 1)
    for n in missing:
        made.at(n=n).add(measured(target, name, n, log_w, values))
        print(made.key, n, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="targets whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made, faults = Records(RECORDS / "weights.csv"), Records(RECORDS / "weights-faults.csv")
    for name, make in TARGETS.items():
        if options.only not in name:
            continue
        target = make()
        for proposal in target.proposals:
            record_proposal(made.at(target=name, proposal=proposal), target, proposal)
    for fault in FAULTS:
        if options.only in fault:
            faults.at(fault=fault).kept(lambda fault=fault: planted(fault))
    if options.only in "batches":
        faults.at(fault="batches").kept(batches_of_16)
    rows = made.rows()
    print(
        summary_table(rows),
        overstatement_table(rows),
        coverage_table(rows),
        forward_table(rows),
        sep="\n\n",
    )
    print(fault_table(faults.rows()), batch_sentence(faults.rows()), sep="\n\n")


if __name__ == "__main__":
    main()
