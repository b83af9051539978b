"""Does a learned front pay on data that passed through an instrument? instrument.md has the design.

    python -m research.verdict instrument              # the search and the trainings without a row
    python -m research.verdict instrument VARIANT      # "60 s", "300 s", "1,000 rows", "weak", "code"
    python -m research.verdict instrument figure

Killed and started again, it goes on.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import least_squares
from torch import Tensor, nn

from indm import INDM, flow_loss, mle_loss, nelbo
from indm.evaluation.statistics import mean_and_error
from indm.flows import Compose, CouplingFlow, ElementwiseFlow, Flow, Identity, InstrumentFlow
from indm.gaussian import GaussianReference
from indm.nets import Zero
from indm.objective import flow_nll
from indm.score import ScoreModel
from indm.sde import VPSDE
from indm.training import Descent, NoiseLevels, learning_rate_factor, progress_until
from indm.workbench.figures.plots import COLOURS, save_figure, styled
from research.lab.seeds import over_seeds, paired
from research.lab.statistics import cells_of, differences_table, judged_as_planned
from research.markdown import in_table, with_error
from research.networks.circle import Convolutions
from research.records import RECORDS, Records, Row, made_by

SEARCH, TABLE = Records(RECORDS / "instrument-search.csv"), Records(RECORDS / "instrument.csv")
FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "instrument.png"
POINTS, HOLD, LEAVE, SPREAD = 32, 3, 0.25, 0.3  # least time of a level; chance to leave it; noise
INSTRUMENTS, SEEDS = (0, 1, 2, 3, 4), (0, 1, 2)
TUNED = 6.0  # processor seconds of a trial of the search
ROWS, FLOW_ROWS, WARMUP, FALL, DECAY, BETAS = 32, 256, 50, 0.5, 0.995, (0.9, 0.99)
VALID, TEST, TIMES, STATES, MARGIN, DIVERGED = 512, 1_024, 16, 6, 0.25, 1e6
RATES, FLOW_RATES = (1e-3, 4e-3), (1e-2, 3e-2)


def seeded(*numbers: int) -> torch.Generator:
    """A stream of random numbers for each tuple of numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


# ── Laws of u ───────────────────────────────────────────────────────────────────────────────────


def round_the_circle(emission: Tensor, transition: Tensor) -> Tensor:
    """log p of rows under a Markov chain of states that closes round the circle, (B,).

    Args:
        emission: log densities of each entry in each state, (B, points, states).
        transition: positive weights from state to state; log p is that of tr ∏ / tr transitionⁿ.
    """
    points = emission.shape[1]
    top = emission.amax(2, keepdim=True)
    weight = (emission - top).exp()
    forward = torch.diag_embed(weight[:, 0])
    total = top.sum((1, 2))
    for t in range(1, points):
        forward = (forward @ transition) * weight[:, t, None]
        size = forward.amax((1, 2), keepdim=True)
        forward, total = forward / size, total + size.log().flatten()
    closed = torch.einsum("bij,ji->b", forward, transition)
    norm = torch.linalg.matrix_power(transition, points).trace()
    return closed.log() + total - norm.log()


def normal(v: Tensor, spread: Tensor | float) -> Tensor:
    """log N(v; 0, spread²) of each entry."""
    spread = torch.as_tensor(spread, dtype=v.dtype)
    return -0.5 * (v / spread).square() - spread.log() - 0.5 * math.log(2 * math.pi)


class Telegraph:
    """u = ±1 + 0.3 n: a level is kept for three points at least, then left with chance 1/4 a point,
    round a circle."""

    def __init__(self, points: int = POINTS):
        self.points = points
        chain = torch.zeros(2 * HOLD, 2 * HOLD, dtype=torch.float64)  # (level, points at it)
        for level in (0, 1):
            first, other = level * HOLD, (1 - level) * HOLD
            for age in range(HOLD - 1):
                chain[first + age, first + age + 1] = 1.0
            chain[first + HOLD - 1, first + HOLD - 1] = 1 - LEAVE
            chain[first + HOLD - 1, other] = LEAVE
        self.chain = chain
        self.levels = torch.tensor([-1.0] * HOLD + [1.0] * HOLD, dtype=torch.float64)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Signals (n, points), float64."""
        powers = [torch.eye(2 * HOLD, dtype=torch.float64)]
        for _ in range(self.points):
            powers.append(powers[-1] @ self.chain)
        start = torch.multinomial(powers[-1].diagonal(), n, True, generator=generator)
        states = [start]
        for t in range(1, self.points):
            back = powers[self.points - t][:, start].T  # of the rest of the way to the start
            chances = self.chain[states[-1]] * back
            states.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
        clean = self.levels[torch.stack(states, 1)]
        noise = torch.randn(n, self.points, generator=generator, dtype=torch.float64)
        return clean + SPREAD * noise

    def log_prob(self, u: Tensor) -> Tensor:
        """Nats of signals u, (B,)."""
        return round_the_circle(normal(u[..., None] - self.levels, SPREAD), self.chain)


class Code:
    """Each frequency is present with chance 0.15, or weak: independent Gaussian waves."""

    CHANCE, STRONG, WEAK = 0.15, 2.4, 0.3

    def __init__(self, points: int = POINTS):
        self.points = points
        frequency = torch.arange(points // 2 + 1)
        self.is_real = (2 * frequency) % points == 0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Signals (n, points), float64."""
        white = torch.randn(n, self.points, generator=generator, dtype=torch.float64)
        present = torch.rand(n, len(self.is_real), generator=generator) < self.CHANCE
        scale = torch.where(present & ~self.is_real, self.STRONG, self.WEAK).double()
        return torch.fft.irfft(torch.fft.rfft(white) * scale, self.points)

    def log_prob(self, u: Tensor) -> Tensor:
        """Nats of signals u, (B,)."""
        wave = torch.fft.rfft(u, norm="ortho")
        weak, strong = (self._one(wave, scale) for scale in (self.WEAK, self.STRONG))
        strong, rare = strong + math.log(self.CHANCE), weak + math.log(1 - self.CHANCE)
        return torch.where(self.is_real, weak, torch.logaddexp(strong, rare)).sum(1)

    def _one(self, wave: Tensor, scale: float) -> Tensor:
        """Nats of a frequency: of two numbers of half the power, or of one that is real."""
        real = normal(wave.real, scale)
        power = wave.abs().square() / scale**2
        # cos and sin parts of orthonormal waves are √2 times the real and imaginary parts
        pair = -power - 2 * math.log(scale) - math.log(2 * math.pi)
        return torch.where(self.is_real, real, pair)


# ── Instruments ─────────────────────────────────────────────────────────────────────────────────


def filtered(x: Tensor, gain: Tensor) -> Tensor:
    """x (B, points) with its Fourier coefficients times ``gain``."""
    return torch.fft.irfft(torch.fft.rfft(x) * gain, x.shape[1])


class Instrument:
    """x = (A₂ φ(A₁ u) − mean)/deviation: random smooth gains, φ(v) = bend tanh(1.5 v + 0.4) + (1.1 −
    bend) v, and one mean and deviation of all entries."""

    def __init__(self, number: int, law: Telegraph | Code, bend: float):
        self.law, self.bend = law, bend
        generator = seeded(number, 77)
        place = torch.linspace(0, math.pi, law.points // 2 + 1, dtype=torch.float64)
        order = torch.arange(1, 4)
        gains = []
        for _ in range(2):
            a, b = torch.randn(2, 3, generator=generator, dtype=torch.float64) / order
            logs = 0.5 * (a[:, None] * (order[:, None] * place).cos()).sum(0)
            phase = 0.8 * (b[:, None] * (order[:, None] * place).sin()).sum(0)
            phase[[0, -1]] = 0.0
            gains.append(torch.polar(logs.exp(), phase))
        self.gains = torch.stack(gains)
        self.mean, self.deviation = 0.0, 1.0
        x, _ = self.of(law.draw(20_000, seeded(number, 78)))
        self.mean, self.deviation = x.mean().item(), x.std().item()

    def curve(self, v: Tensor) -> Tensor:
        """φ(v)."""
        return self.bend * (1.5 * v + 0.4).tanh() + (1.1 - self.bend) * v

    def of(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """x of signals u, and its log p, nats."""
        v = filtered(u, self.gains[0])
        x = (filtered(self.curve(v), self.gains[1]) - self.mean) / self.deviation
        slope = 1.5 * self.bend * (1 - (1.5 * v + 0.4).tanh().square()) + 1.1 - self.bend
        times = torch.full((v.shape[1] // 2 + 1,), 2.0, dtype=torch.float64)
        times[[0, -1]] = 1.0
        volume = (times * self.gains.abs().log().sum(0)).sum()
        volume = volume - v.shape[1] * math.log(self.deviation)
        return x, self.law.log_prob(u) - slope.log().sum(1) - volume

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """u, x and log p(x) of n signals, x in single precision."""
        u = self.law.draw(n, generator)
        x, log_prob = self.of(u)
        return u, x.float(), log_prob


# ── Methods ─────────────────────────────────────────────────────────────────────────────────────


class Chain(nn.Module):
    """A hidden Markov model round the circle: six states, a Gaussian each, in nats of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.linspace(-1.5, 1.5, STATES))
        self.log_spread = nn.Parameter(torch.full((STATES,), -0.5))
        self.weight = nn.Parameter(torch.eye(STATES) + 0.1 * torch.randn(STATES, STATES))

    def log_prob(self, u: Tensor) -> Tensor:
        emission = normal(u[..., None] - self.mean, self.log_spread.exp())
        return round_the_circle(emission, self.weight.softmax(1))


class Layered(nn.Module):
    """A network between two instruments of its own: the layers of the flow, but in the score."""

    is_smooth = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.first, self.last = InstrumentFlow((POINTS,)), InstrumentFlow((POINTS,))

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return self.last.latent(self.inner(self.first.latent(z), level))


def network() -> nn.Module:
    return Convolutions(width=48, fold=2, dilations=(1, 2, 4))


def front() -> Flow:
    return InstrumentFlow((POINTS,))


def splines() -> Flow:
    return CouplingFlow((POINTS,), width=64, depth=4)


def quantile_map(x: Tensor) -> Flow:
    """The spline that all entries share, after its own likelihood on rows x."""
    flow = ElementwiseFlow((POINTS,), bins=16)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(150):
        rows = x[torch.randint(len(x), (256,))]
        z, log_det = flow(rows)
        loss = (0.5 * z.square().sum(1) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow.requires_grad_(False)


def whitening(x: Tensor) -> Flow:
    """An instrument with a straight curve, whose gains whiten rows x; nothing in it is trained."""
    flow = InstrumentFlow((POINTS,), max_log_gain=20.0)
    power = torch.fft.rfft(x, norm="ortho").abs().square().mean(0)
    logs = torch.zeros(POINTS // 2 + 1)
    logs[flow.first.place.flatten()] = -0.5 * power.log()
    with torch.no_grad():
        flow.first.log_gain.copy_((20.0 * (logs / 20.0).atanh())[None])
    return flow.requires_grad_(False)


def both_maps(x: Tensor) -> Flow:
    curve = quantile_map(x)
    return Compose([curve, whitening(curve.latent(x))]).requires_grad_(False)


@dataclass(frozen=True)
class Method:
    """What stands in front, what behind, and what is trained.

    Args:
        flow: makes the front from rows x.
        behind: "network", "layered", "chain" or "" for N(0, I).
        first: share of the seconds in which the flow is trained alone and then frozen.
        sees: "x", or "u" for the oracle.
    """

    flow: Callable[[Tensor], Flow]
    behind: str = "network"
    first: float = 0.0
    sees: str = "x"

    @property
    def rates(self) -> list[tuple[float, float]]:
        """The rates of network and flow that the search tries."""
        if self.behind == "":
            return [(0.0, rate) for rate in FLOW_RATES]
        moves = any(p.requires_grad for p in self.flow(torch.randn(500, POINTS)).parameters())
        return [(rate, flow) for rate in RATES for flow in (FLOW_RATES if moves else (0.0,))]


MAIN = {
    "linear": Method(lambda x: Identity()),
    "whitened": Method(whitening),
    "layered": Method(lambda x: Identity(), "layered"),
    "INDM": Method(lambda x: front()),
    "front, splines": Method(lambda x: Compose([front(), splines()]), ""),
    "front, chain": Method(lambda x: front(), "chain"),
}
OTHERS = {
    "oracle": Method(lambda x: Identity(), sees="u"),
    "flow alone": Method(lambda x: front(), ""),
    "frozen": Method(lambda x: front(), first=0.5),
    "quantiles, whitened": Method(both_maps),
    "splines alone": Method(lambda x: splines(), ""),
}
METHODS = MAIN | OTHERS
FRONT_RIVALS = ("linear", "whitened", "layered")
BEHIND_RIVALS = ("front, splines", "front, chain", "INDM's front, chain")


@dataclass(frozen=True)
class Variant:
    """One study: its law, the bend of the curve, training rows (0: fresh ones) and seconds."""

    law: Callable[[], Any] = Telegraph
    bend: float = 1.0
    rows: int = 0
    seconds: float = 20.0


VARIANTS = {
    "20 s": Variant(),
    "60 s": Variant(seconds=60.0),
    "300 s": Variant(seconds=300.0),
    "1,000 rows": Variant(rows=1_000, seconds=60.0),
    "weak": Variant(bend=0.3, seconds=60.0),
    "code": Variant(Code, seconds=60.0),
}


class Pair(nn.Module):
    """A front and a chain, in training."""

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow, self.score = flow, Chain()

    def nats(self, x: Tensor) -> Tensor:
        """−log p of rows."""
        z, log_det = self.flow(x)
        return -self.score.log_prob(z) - log_det


Loss = Callable[[Tensor], Tensor]


def descend(
    model: nn.Module, loss: Loss, rates: Sequence[float], rows: int, draw: Any, seconds: float
) -> int:
    """Train score and flow at their rates, leave the average in ``model``, return the steps."""
    parts = zip(("score", "flow"), rates, strict=True)
    groups = []
    for name, rate in parts:
        moved = [p for p in getattr(model, name).parameters() if p.requires_grad]
        if rate and moved:
            groups.append({"name": name, "params": moved, "lr": rate})
    descent = Descent(model, torch.optim.Adam(groups, betas=BETAS, fused=True), DECAY, 1.0)

    def gradients() -> dict[str, Tensor]:
        loss(draw(rows)).backward()
        return {}

    for share in progress_until(deadline=time.process_time() + seconds, clock=time.process_time):
        descent.advance(gradients, learning_rate_factor(descent.step, share, WARMUP, FALL))
    model.load_state_dict(descent.ema.model.state_dict())
    return descent.step


def trained(
    method: Method,
    draw: Callable[[int], Tensor],
    rates: Sequence[float],
    seconds: float,
    network: Callable[[], nn.Module] = network,
) -> tuple[nn.Module, list[int]]:
    """The averaged model after so many processor seconds, and the steps of its two parts."""
    rows = draw(2_000)
    flow, steps, shape = method.flow(rows), [0, 0], tuple(rows.shape[1:])
    if method.behind == "chain":
        pair = Pair(flow)
        steps[1] = descend(pair, lambda x: pair.nats(x).mean(), rates, ROWS * 2, draw, seconds)
        return pair.eval(), steps
    backbone = {"": Zero, "network": network, "layered": Layered}[method.behind]()
    model = INDM(flow, ScoreModel(backbone, VPSDE()), shape=shape)
    if method.behind == "":
        alone = lambda x: flow_loss(model, x)[0]  # noqa: E731
        steps[0] = descend(model, alone, rates, FLOW_ROWS, draw, seconds)
        return model.eval(), steps
    levels = NoiseLevels(model.sde)
    bound = lambda x: mle_loss(model, x, pairs=True, noise_levels=levels)[0]  # noqa: E731
    if method.first:
        bare = INDM(flow, ScoreModel(Zero(), VPSDE()), shape=shape)
        alone = lambda x: flow_loss(bare, x)[0]  # noqa: E731
        steps[0] = descend(bare, alone, rates, FLOW_ROWS, draw, method.first * seconds)
        flow.requires_grad_(False)
        rates = (rates[0], 0.0)
    steps[1] = descend(model, bound, rates, ROWS, draw, (1 - method.first) * seconds)
    return model.eval(), steps


@torch.no_grad()
def nats_of(model: nn.Module, rows: Tensor, control: Tensor) -> Tensor:
    """−log p of rows: by the bound, of chains and flows alone exactly."""
    if isinstance(model, Pair):
        return model.nats(rows)
    if isinstance(model.score.backbone, Zero):
        return flow_nll(model, rows)
    reference = GaussianReference.fit(model.encode(control)[0])
    return nelbo(model, rows, times=TIMES, reference=reference, generator=seeded(9)).total


def gap_of(nats: Tensor, true: Tensor) -> Row:
    """The mean of log p − log p of the model, nats, and its error over rows."""
    gap, error = mean_and_error((nats + true).nan_to_num(DIVERGED).clamp_max(DIVERGED))
    return {"gap": gap, "error": error}


def rows_of(
    machine: Instrument, sees: str, n: int, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Signals as a method sees them, and their log p."""
    u, x, log_prob = machine.draw(n, stream)
    return (u.float(), machine.law.log_prob(u)) if sees == "u" else (x, log_prob)


def run(
    method: Method, machine: Instrument, variant: Variant, rates: Sequence[float], seed: int,
    seconds: float, purpose: int,
) -> tuple[Row, nn.Module]:  # fmt: skip
    """The row of a training, measured on fresh rows of a purpose (1 tests, 2 validates)."""
    stream = seeded(seed, 0)
    torch.manual_seed(seed)
    kept = rows_of(machine, method.sees, variant.rows, stream)[0] if variant.rows else None

    def draw(n: int) -> Tensor:
        if kept is None:
            return rows_of(machine, method.sees, n, stream)[0]
        return kept[torch.randint(len(kept), (n,), generator=stream)]

    model, steps = trained(method, draw, rates, seconds)
    size = {1: TEST, 2: VALID}[purpose]
    test, true = rows_of(machine, method.sees, size, seeded(seed, purpose))
    nats = nats_of(model, test, draw(2_000))
    return {"rates": list(rates), "steps": steps} | gap_of(nats, true), model


def chain_behind(model: INDM, machine: Instrument, variant: Variant, seed: int) -> Row:
    """The chain on latents of a trained INDM, whose front stays as it is."""
    flow = copy.deepcopy(model.flow).requires_grad_(False)
    method = Method(lambda x: flow, "chain")
    best: Row = {}
    for rate in FLOW_RATES:
        row, _ = run(method, machine, variant, (rate, 0.0), seed, 0.5 * variant.seconds, 1)
        if not best or row["gap"] < best["gap"]:
            best = row
    return best


# ── Recovery ────────────────────────────────────────────────────────────────────────────────────


def in_convention(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Gains (2, frequencies) with geometric means 1 and the delay in the first, and the means."""
    points = 2 * (gains.shape[1] - 1)
    whole = torch.fft.fft(torch.fft.irfft(gains, points))
    means = whole.abs().log().mean(1).exp()
    place = torch.fft.irfft(gains[1], points).abs().argmax()
    turn = 2 * math.pi * place * torch.arange(gains.shape[1], dtype=torch.float64) / points
    delay = torch.polar(torch.ones_like(turn), -turn)
    return gains / means[:, None] * torch.stack([delay, 1 / delay]), means


@torch.no_grad()
def recovery(flow: InstrumentFlow, machine: Instrument) -> Row:
    """Root mean square errors of log-gains, phases and the curve, and what the figure shows."""
    true, means = in_convention(machine.gains)
    found = flow.gain.to(torch.complex128)
    row: Row = {}
    for name, mine, wanted in zip(("a1", "a2"), found, true, strict=True):
        ratio = mine / wanted
        if name == "a1":  # u is stationary, so it has a delay of its own, and a sign
            turn = torch.arange(len(ratio)) * 2 * math.pi / machine.law.points
            turned = [torch.polar(torch.ones_like(turn), d * turn) * ratio for d in range(POINTS)]
            ratio = min(turned, key=lambda r: r.angle().square().mean().item())
        row[f"{name}_log"] = ratio.abs().log().square().mean().sqrt().item()
        row[f"{name}_phase"] = ratio[1:-1].angle().square().mean().sqrt().item()
    v = filtered(machine.law.draw(300, seeded(5)), true[0] * means[0]).flatten()
    v = v.sort().values[:: len(v) // 60]
    level = machine.gains[1][0].real
    straight = means[1] / machine.deviation * (machine.curve(v) - machine.mean / level)
    z = straight.numpy()

    def miss(line: np.ndarray) -> np.ndarray:
        mapped = torch.as_tensor(line[0] + math.exp(line[1]) * v.numpy()).to(flow.raw)
        return flow.curve(mapped).double().numpy() - z

    starts = [least_squares(miss, np.array([0.0, start])) for start in (-1.0, 0.0, 1.0)]
    best = min(starts, key=lambda fit: fit.cost)
    row["curve"] = float(np.sqrt(np.mean(best.fun**2)) / z.std())
    rounded = lambda numbers: [round(float(n), 4) for n in numbers]  # noqa: E731
    shown = {
        "v": rounded(v), "true": rounded(z), "found": rounded(z + best.fun),
        "log": [rounded(g.abs().log()) for g in (true[1], found[1])],
        "phase": [rounded(g.angle()) for g in (true[1], found[1])],
    }  # fmt: skip
    return row | {"shown": shown}


# ── The driver ──────────────────────────────────────────────────────────────────────────────────


def chosen(name: str) -> tuple[float, float]:
    """The best rates of a method on validation rows of instrument 0 of the main law."""
    method, machine = METHODS[name], Instrument(0, Telegraph(), 1.0)

    def trial(rates: tuple[float, float]) -> float:
        made = lambda: run(method, machine, Variant(), rates, 0, TUNED, 2)[0] | made_by(0)  # noqa: E731
        return SEARCH.at(method=name, lr=rates[0], flow_lr=rates[1]).kept(made)["gap"]

    return min(method.rates, key=trial)


def job(title: str, number: int, name: str, seed: int) -> None:
    """Write the row of a method, and with INDM the row of the chain behind its front."""
    key = {"variant": title, "instrument": number, "seed": seed}
    if TABLE.at(**key, method=name).rows():
        return
    variant = VARIANTS[title]
    machine = Instrument(number, variant.law(), variant.bend)
    row, model = run(METHODS[name], machine, variant, chosen(name), seed, variant.seconds, 1)
    fronts = [part for part in model.flow.modules() if isinstance(part, InstrumentFlow)]
    if fronts and name not in ("whitened", "quantiles, whitened"):
        row |= recovery(fronts[0], machine)
    if name == "INDM" and isinstance(model, INDM):
        behind = chain_behind(model, machine, variant, seed)
        TABLE.at(**key, method="INDM's front, chain").add(behind | made_by(seed))
    TABLE.at(**key, method=name).add(row | made_by(seed))


def main(title: str) -> None:
    """Make the rows of a variant, by the name in :data:`VARIANTS`, that are missing."""
    torch.set_num_threads(1)
    trained(MAIN["linear"], lambda n: torch.randn(n, POINTS), (1e-3, 0.0), 0.1)  # imports first
    for seed in SEEDS:
        for number in INSTRUMENTS:
            for name in MAIN:
                job(title, number, name, seed)
            for name in OTHERS if (number, seed) == (0, 0) else ():
                job(title, number, name, seed)


def markdown(table: Records, title: str) -> str:
    """Gaps in nats of a signal: mean and error over the pairs of instrument and seed."""
    rows = []
    for name in (*MAIN, "INDM's front, chain", *OTHERS):
        found = table.at(variant=title, method=name).rows()
        if found:
            alone = found[0]["error"] if len(found) == 1 else math.nan
            gap = with_error(*over_seeds([row["gap"] for row in found], alone), ".2f")
            rates = (
                "" if name.startswith("INDM's") else ", ".join(f"{r:g}" for r in found[0]["rates"])
            )
            rows.append((name, len(found), gap, rates))
    return in_table("method", "trainings", "gap, nats", "rates of network and flow", rows=rows)


def each(table: Records, title: str) -> str:
    """Gaps of each instrument, nats: means over its seeds."""
    rows = []
    for name in (*MAIN, "INDM's front, chain"):
        cells = []
        for number in INSTRUMENTS:
            found = table.at(variant=title, method=name, instrument=number).rows()
            gaps = [row["gap"] for row in found]
            cells.append(format(sum(gaps) / len(gaps), ".2f") if gaps else "")
        rows.append((name, *cells))
    return in_table("method", *(f"instrument {number}" for number in INSTRUMENTS), rows=rows)


def means(table: Records, title: str) -> str:
    """INDM − its rivals by the means of instruments, each over its seeds, and Holm's p."""

    def of(name: str) -> list[float]:
        rows = [table.at(variant=title, method=name, instrument=i).rows() for i in INSTRUMENTS]
        return [sum(row["gap"] for row in found) / len(found) for found in rows]

    names = (*FRONT_RIVALS, *BEHIND_RIVALS)
    judged = judged_as_planned([paired(of("INDM"), of(name)) for name in names], len(names))
    lines = [
        (f"INDM − {name}", *cells_of(row, MARGIN, ".2f"))
        for name, row in zip(names, judged, strict=True)
    ]
    return in_table("difference", "nats", "95 % interval", "Holm's p", "is called", rows=lines)


def family(table: Records, title: str) -> str:
    """INDM − its rivals by pairs of instrument and seed, and Holm's p in the planned family."""
    names, made = (*FRONT_RIVALS, *BEHIND_RIVALS), {}
    for other in names:
        gaps = {}
        for name in ("INDM", other):
            rows = table.at(variant=title, method=name).rows()
            gaps[name] = {(row["instrument"], row["seed"]): row["gap"] for row in rows}
        common = sorted(gaps["INDM"].keys() & gaps[other].keys())
        if len(common) > 1:
            ours, theirs = ([gaps[name][place] for place in common] for name in ("INDM", other))
            made[other] = paired(ours, theirs)
    return differences_table("INDM", made, len(names), MARGIN, "pairs")


def recovered(table: Records, title: str) -> str:
    """Errors of the fronts."""
    measures = ("a2_log", "a2_phase", "a1_log", "a1_phase", "curve")
    rows = []
    for name in ("INDM", "front, splines", "front, chain", "flow alone", "frozen"):
        found = table.at(variant=title, method=name).rows()
        if found:
            cells = [format(over_seeds([row[m] for row in found])[0], ".3f") for m in measures]
            rows.append((name, len(found), *cells))
    head = (
        "method",
        "trainings",
        "A₂, log-gain",
        "A₂, phase",
        "A₁, log-gain",
        "A₁, phase",
        "curve",
    )
    return in_table(*head, rows=rows)


@styled
def draw(table: Records) -> None:
    """The picture of the page, as a file."""
    save_figure(figure(table), FIGURE)


def figure(table: Records, title: str = "60 s") -> Figure:
    """The true and the recovered instrument of the first INDM."""
    (row,) = table.at(variant=title, method="INDM", instrument=0, seed=0).rows()
    shown = row["shown"]
    drawn = Figure(figsize=(9, 2.8), layout="constrained")
    log_gain, phase, curve = drawn.subplots(1, 3)
    for axis, name in ((log_gain, "log"), (phase, "phase")):
        for values, style, who in zip(shown[name], ("-", "o"), ("true", "learned"), strict=True):
            axis.plot(values, style, color=COLOURS[style == "o"], label=who, ms=3)
    log_gain.set(xlabel="frequency", ylabel="last filter, log-gain")
    phase.set(xlabel="frequency", ylabel="last filter, phase")
    curve.plot(shown["v"], shown["true"], "-", color=COLOURS[0], label="true")
    curve.plot(shown["v"], shown["found"], "o", color=COLOURS[1], label="learned", ms=3)
    curve.set(xlabel="input of the curve", ylabel="its output")
    return drawn
