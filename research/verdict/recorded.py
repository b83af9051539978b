"""Does a learned front pay on recorded speech and on photographs? recorded.md has the design.

    python -m research.verdict recorded        # the search and the trainings without a row

Killed and started again, it goes on.
"""

import hashlib
import math
import time
import wave
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from indm.evaluation.statistics import mean_and_error
from indm.flows import Compose, CouplingFlow, ElementwiseFlow, Flow, Identity, InstrumentFlow
from research.lab.seeds import over_seeds, paired
from research.lab.statistics import differences_table
from research.markdown import in_table, with_error
from research.networks.circle import Convolutions, TorusConvolutions
from research.records import RECORDS, Records, Row, made_by
from research.verdict.images import load
from research.verdict.instrument import (
    FLOW_RATES,
    MARGIN,
    RATES,
    Method,
    in_convention,
    nats_of,
    seeded,
    trained,
)

SEARCH, TABLE = Records(RECORDS / "recorded-search.csv"), Records(RECORDS / "recorded.csv")
SPEECH = Path("/usr/share/asterisk/sounds")  # of Debian's package asterisk-core-sounds-en-wav
POINTS, LOUD, TEST, VALID, SEEDS = 64, 300.0, 1_024, 512, (0, 1, 2)
SECONDS, TUNED = 60.0, 10.0  # processor seconds of a training, and of a trial of the search
MU, PEAK = 15.0, 8.0  # of the compander, in deviations of the sound
BEFORE = {0: 1.0, 1: -0.6}  # the microphone: samples later, and how much of the sound
BEHIND = {0: 1.0, 3: 0.45, 7: 0.25, 11: -0.2}  # the room
COMPONENTS = (8, 32, 128)  # of the mixture, by validation


# ── Signals ─────────────────────────────────────────────────────────────────────────────────────


def companded(v: Tensor) -> tuple[Tensor, Tensor]:
    """φ(v) = sign(v) PEAK log(1 + μ|v|/PEAK)/log(1 + μ), and log φ'(v)."""
    inside = 1 + MU * v.abs() / PEAK
    scale = 1 / math.log1p(MU)
    return v.sign() * PEAK * scale * inside.log(), (MU * scale / inside).log()


def response(taps: dict[int, float], points: int) -> Tensor:
    """A filter's response to an impulse, (points,)."""
    response = torch.zeros(points, dtype=torch.float64)
    for place, value in taps.items():
        response[place] = value
    return response


def round_the_circle(u: Tensor) -> tuple[Tensor, Tensor]:
    """Frames u through microphone, compander and room, each round its circle, and log|det|, nats."""
    n = u.shape[1]
    first, last = (torch.fft.rfft(response(taps, n)) for taps in (BEFORE, BEHIND))
    curved, slope = companded(torch.fft.irfft(torch.fft.rfft(u) * first, n))
    times = torch.full_like(first.real, 2.0)
    times[[0, -1]] = 1.0  # frequencies that are their own conjugates
    volume = (times * (first.abs() * last.abs()).log()).sum()
    return torch.fft.irfft(torch.fft.rfft(curved) * last, n), slope.sum(1) + volume


def through(sound: Tensor) -> tuple[Tensor, Tensor]:
    """A sound (n,) through the same before it is cut, and log φ' at each of its samples.

    Both filters leave a sample as it is and add earlier ones, so log|det| is the sum of the latter.
    """

    def echoed(x: Tensor, taps: dict[int, float]) -> Tensor:
        return sum(value * F.pad(x, (place, 0))[: len(x)] for place, value in taps.items())  # type: ignore[return-value]

    curved, slope = companded(echoed(sound, BEFORE))
    return echoed(curved, BEHIND), slope


def part_of(name: str) -> str:
    """The split of a recording, by the hash of its name: a tenth tests, a tenth validates."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "valid"}.get(number, "train")


Frames = dict[str, tuple[Tensor, Tensor]]  # x (n, *event) and log|dx/du| of each, by split


def standardised(parts: Frames) -> Frames:
    """x with the mean 0 and the deviation 1 of all training entries."""
    x = parts["train"][0]
    mean, deviation, entries = x.mean(), x.std(), math.prod(x.shape[1:])
    return {
        name: (((x - mean) / deviation).float(), volume - entries * deviation.log())
        for name, (x, volume) in parts.items()
    }


@cache
def speech(kind: str) -> Frames:
    """Frames of 64 samples that are louder than LOUD levels (root mean square), in three splits.

    Args:
        kind: "as recorded"; "round the circle": each frame through the instrument; "before cutting":
            the recording through the instrument.
    """
    generator, sounds = seeded(21), {}
    for path in sorted(SPEECH.rglob("*.wav")):
        with wave.open(str(path)) as file:
            levels = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64)
        whole = torch.from_numpy(levels[: len(levels) // POINTS * POINTS])
        noise = torch.rand(len(whole), generator=generator, dtype=torch.float64)
        sounds[f"{path.parent.name}/{path.name}"] = whole + noise - 0.5
    loud = {name: s.unflatten(0, (-1, POINTS)).std(1) > LOUD for name, s in sounds.items()}
    deviation = torch.cat(
        [s.unflatten(0, (-1, POINTS))[loud[name]].flatten() for name, s in sounds.items()]
    ).std()
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "valid": [], "test": []}
    for name, sound in sounds.items():
        u = sound / deviation
        x, slope = through(u) if kind == "before cutting" else (u, torch.zeros_like(u))
        rows, volume = (part.unflatten(0, (-1, POINTS))[loud[name]] for part in (x, slope))
        volume = volume.sum(1)
        if kind == "round the circle" and len(rows):
            rows, volume = round_the_circle(rows)
        found[part_of(name)].append((rows, volume - POINTS * deviation.log()))
    return standardised({name: joined(rows) for name, rows in found.items()})


def joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    rows, volumes = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat(volumes)


# ── Images ──────────────────────────────────────────────────────────────────────────────────────


def optics(number: int) -> tuple[float, float, float]:
    """Deviation of the blur in pixels, exponent of the curve, and strength of the sharpening."""
    a, b, c = torch.rand(3, generator=seeded(number, 31)).tolist()
    return 0.35 + 0.2 * a, 0.5 + 0.3 * b, 0.3 + 0.4 * c


def kernel(spread: float) -> Tensor:
    """A Gaussian of 5×5 pixels."""
    place = torch.arange(-2, 3, dtype=torch.float64)
    line = (-0.5 * (place / spread).square()).exp()
    return torch.outer(line, line) / line.sum() ** 2


def blurred(x: Tensor, spread: float, mode: str) -> Tensor:
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode), kernel(spread)[None, None])


@cache
def clothes(number: int | None, mode: str) -> Frames:
    """Clothes, 16×16, through optics, a curve and a sharpening, each with these borders.

    log|det| is that round the torus, also where borders are reflected.

    Args:
        number: of the instrument; None for none.
        mode: "circular" or "reflect".
    """
    spread, exponent, strength = optics(number or 0)
    images, generator, parts = load("clothes-16"), seeded(22), {}
    impulse = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    impulse[0, 0, 0, 0] = 1
    optic = torch.fft.fft2(blurred(impulse, spread, "circular")).abs()
    sharp = (1 + strength) - strength * torch.fft.fft2(blurred(impulse, 1.0, "circular")).abs()
    for name in ("train", "valid", "test"):
        raw = getattr(images, name).double()
        u = (raw + torch.rand(raw.shape, generator=generator, dtype=torch.float64)) / 256
        x, volume = u, torch.zeros(len(u), dtype=torch.float64)
        if number is not None:
            v = blurred(u, spread, mode) + 0.02  # the curve is steep, not vertical, at black
            curved, slope = v.pow(exponent), (exponent * v.pow(exponent - 1)).log()
            x = (1 + strength) * curved - strength * blurred(curved, 1.0, mode)
            volume = slope.flatten(1).sum(1) + optic.log().sum() + sharp.log().sum()
        parts[name] = (x, volume - 256 * math.log(256))
    return standardised(parts)


SETTINGS: dict[str, Callable[[], Frames]] = {
    "as recorded": partial(speech, "as recorded"),
    "round the circle": partial(speech, "round the circle"),
    "before cutting": partial(speech, "before cutting"),
    "clothes": partial(clothes, None, "circular"),
    "torus 0": partial(clothes, 0, "circular"),
    "torus 1": partial(clothes, 1, "circular"),
    "borders 0": partial(clothes, 0, "reflect"),
    "borders 1": partial(clothes, 1, "reflect"),
}
OF_SPEECH, OF_CLOTHES = tuple(SETTINGS)[:3], tuple(SETTINGS)[3:]


# ── Methods ─────────────────────────────────────────────────────────────────────────────────────


def shape_of(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])


def curve(x: Tensor) -> Flow:
    return ElementwiseFlow(shape_of(x), bins=16)


def instrument(x: Tensor) -> Flow:
    return InstrumentFlow(shape_of(x))


def couplings(x: Tensor) -> Flow:
    return CouplingFlow(shape_of(x), width=64, depth=4)


def whitening(x: Tensor) -> Flow:
    """An instrument with a straight curve, whose gains whiten rows x; nothing in it is trained."""
    flow = InstrumentFlow(shape_of(x), max_log_gain=20.0)
    rows = x.reshape(len(x), *flow.torus)
    power = torch.fft.rfft2(rows - rows.mean(0), norm="ortho").abs().square().mean(0)
    logs = torch.zeros_like(flow.first.log_gain)
    logs[:, flow.first.place.flatten()] = -0.5 * power.log().flatten(1)  # k and −k have one power
    with torch.no_grad():
        flow.first.log_gain.copy_(20.0 * (logs / 20.0).atanh())
    return flow.requires_grad_(False)


def from_whitening(x: Tensor) -> Flow:
    """The same, and all of it is trained."""
    return whitening(x).requires_grad_(True)


def quantiles(x: Tensor) -> Flow:
    """The curve that all entries share, after its own likelihood on rows x."""
    flow = curve(x)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(150):
        z, log_det = flow(x[torch.randint(len(x), (256,))])
        loss = (0.5 * z.square().flatten(1).sum(1) - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow.requires_grad_(False)


def both_maps(x: Tensor) -> Flow:
    fixed = quantiles(x)
    return Compose([fixed, whitening(fixed.latent(x))]).requires_grad_(False)


class Layered(nn.Module):
    """A network between two instruments of its own: the layers of the flow, but in the score."""

    is_smooth = True

    def __init__(self, inner: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.first, self.last = InstrumentFlow(shape), InstrumentFlow(shape)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return self.last.latent(self.inner(self.first.latent(z), level))


def nothing(x: Tensor) -> Flow:
    return Identity()


METHODS = {
    "linear": Method(nothing),
    "spline": Method(curve),
    "whitened": Method(whitening),
    "quantiles, whitened": Method(both_maps),
    "layered": Method(nothing),
    "INDM": Method(from_whitening),
    "INDM from the identity": Method(instrument),
    "frozen": Method(instrument, first=0.5),
    "front, splines": Method(lambda x: Compose([instrument(x), couplings(x)]), ""),
    "whitened, splines": Method(lambda x: Compose([both_maps(x), couplings(x)]), ""),
    "flow alone": Method(instrument, ""),
}
MIXTURE = "whitened, mixture"
# the methods of clothes with the lowest means of seed 0, which get seeds 1 and 2
BEST_OF_IMAGES = ("linear", "spline", "layered", "INDM from the identity")
OF_IMAGES = ("linear", "spline", "whitened", "layered", "INDM", "INDM from the identity")
MOVED = ("spline", "INDM", "INDM from the identity", "frozen")  # fronts with a rate of their own
FRONTS = (*MOVED[1:], "flow alone")  # instruments that are trained
RIVALS = ("linear", "spline", "whitened", "quantiles, whitened", "layered")
DENSITIES = ("front, splines", "whitened, splines", MIXTURE)


def rates_of(name: str) -> list[tuple[float, float]]:
    """The rates of network and flow that the search tries."""
    if METHODS[name].behind == "":
        return [(0.0, rate) for rate in (3e-3, *FLOW_RATES)]
    flow_rates = FLOW_RATES if name in MOVED else (0.0,)
    return [(rate, flow) for rate in RATES for flow in flow_rates]


def network_of(name: str, shape: tuple[int, ...]) -> nn.Module:
    inner = Convolutions(48, 2) if len(shape) == 1 else TorusConvolutions(shape[0], 48)
    return Layered(inner, shape) if name == "layered" else inner


def run(
    setting: str, name: str, rates: Sequence[float], seed: int, seconds: float, split: str
) -> Row:
    """The row of a training, measured on random rows of a split, in nats of the data before the
    instrument.
    """
    frames, stream = SETTINGS[setting](), seeded(seed, 0)
    torch.manual_seed(seed)
    x = frames["train"][0]

    def draw(n: int) -> Tensor:
        return x[torch.randint(len(x), (n,), generator=stream)]

    network = partial(network_of, name, shape_of(x))
    model, steps = trained(METHODS[name], draw, rates, seconds, network)
    rows, volume = some(frames[split], seed, split)
    nats = nats_of(model, rows, draw(2_000)).double() - volume
    mean, error = mean_and_error(nats)
    row: Row = {"rates": list(rates), "steps": steps, "nats": mean, "error": error}
    if setting == "round the circle" and name in FRONTS:
        row |= recovery(model.flow)
    return row


def some(rows: tuple[Tensor, Tensor], seed: int, split: str) -> tuple[Tensor, Tensor]:
    """Random rows of a split, the same ones for all methods of a seed."""
    size = {"test": TEST, "valid": VALID}[split]
    order = torch.randperm(len(rows[0]), generator=seeded(seed, 8))[:size]
    return rows[0][order], rows[1][order]


@torch.no_grad()
def recovery(flow: InstrumentFlow) -> Row:
    """Root mean square errors of the room's log-gains and phases."""
    taps = [response(taps, POINTS) for taps in (BEFORE, BEHIND)]
    (_, wanted), _ = in_convention(torch.stack([torch.fft.rfft(tap) for tap in taps]))
    ratio = flow.gain[1].to(torch.complex128) / wanted
    return {
        "room_log": ratio.abs().log().square().mean().sqrt().item(),
        "room_phase": ratio[1:-1].angle().square().mean().sqrt().item(),
    }


def mixture(setting: str, seed: int) -> Row:
    """Gaussians with full covariances behind the fixed maps; their number by validation rows."""
    frames, stream = SETTINGS[setting](), seeded(seed, 0)
    torch.manual_seed(seed)
    x = frames["train"][0]
    x = x[torch.randperm(len(x), generator=stream)[:40_000]]
    maps, began, tried = both_maps(x[:2_000]), time.process_time(), []
    z = maps.latent(x).double().numpy()
    for count in COMPONENTS:
        fit = GaussianMixture(count, reg_covar=1e-5, max_iter=40, random_state=seed).fit(z)
        tried.append((nats_of_mixture(fit, maps, *some(frames["valid"], seed, "valid")), fit))
    _, best = min(tried, key=lambda pair: pair[0].mean())
    nats = nats_of_mixture(best, maps, *some(frames["test"], seed, "test"))
    mean, error = mean_and_error(nats)
    seconds = round(time.process_time() - began)
    return {"components": best.n_components, "seconds": seconds, "nats": mean, "error": error}


@torch.no_grad()
def nats_of_mixture(fit: GaussianMixture, maps: Flow, x: Tensor, volume: Tensor) -> Tensor:
    z, log_det = maps(x)
    return -torch.from_numpy(fit.score_samples(z.double().numpy())) - log_det.double() - volume


# ── The driver ──────────────────────────────────────────────────────────────────────────────────


def chosen(setting: str, name: str) -> tuple[float, float]:
    """The best rates of a method on validation rows, of speech or clothes through one instrument."""
    place = "round the circle" if setting in OF_SPEECH else "torus 0"

    def trial(rates: tuple[float, float]) -> float:
        made = lambda: run(place, name, rates, 0, TUNED, "valid") | made_by(0)  # noqa: E731
        at = SEARCH.at(setting=place, method=name, lr=rates[0], flow_lr=rates[1])
        return at.kept(made)["nats"]

    return min(rates_of(name), key=trial)


def jobs() -> list[tuple[str, str, int]]:
    """Setting, method and seed of each training, in order."""
    found = []
    for seed in SEEDS:
        for setting in OF_SPEECH:
            found += [(setting, name, seed) for name in (*METHODS, MIXTURE)]
        for setting in OF_CLOTHES:
            names = OF_IMAGES if seed == 0 else BEST_OF_IMAGES
            found += [(setting, name, seed) for name in names]
    return found


def main() -> None:
    torch.set_num_threads(1)
    trained(METHODS["linear"], lambda n: torch.randn(n, 64), (1e-3, 0.0), 0.1)  # imports first
    for setting, name, seed in jobs():
        if name == MIXTURE:
            make = partial(mixture, setting, seed)
        else:
            make = partial(run, setting, name, chosen(setting, name), seed, SECONDS, "test")
        row = TABLE.at(setting=setting, method=name, seed=seed)
        row.kept(lambda make=make, seed=seed: make() | made_by(seed))
        print(setting, name, seed, flush=True)


def markdown(table: Records, kind: str) -> str:
    """Means over seeds of −log p in nats, a column for each setting of speech or clothes that has
    rows.
    """
    of_kind = OF_SPEECH if kind == "speech" else OF_CLOTHES
    settings = [name for name in of_kind if table.at(setting=name).rows()]
    rows = []
    for method in (*METHODS, MIXTURE) if kind == "speech" else OF_IMAGES:
        cells = []
        for setting in settings:
            found = table.at(setting=setting, method=method).rows()
            made = over_seeds([row["nats"] for row in found], found[0]["error"]) if found else None
            cells.append(with_error(*made, ".2f") if made else "")
        rows.append((method, *cells))
    return in_table("method", *settings, rows=rows)


def family(table: Records, setting: str, ours: str) -> str:
    """A method − its rivals by pairs of seeds, and Holm's p in a family of all of them."""
    names, made = (*RIVALS, *DENSITIES), {}
    for name in names:
        found = table.at(setting=setting).of_common_seeds("method", (ours, name))
        with_ours, theirs = ([row["nats"] for row in found[method]] for method in (ours, name))
        if with_ours:
            made[name] = paired(with_ours, theirs)
    return differences_table(ours, made, len(names), MARGIN, "seeds")


def of_clothes(table: Records) -> str:
    """INDM from the identity − its rivals on clothes, nats: mean and error over pairs of seeds."""
    *rivals, ours = BEST_OF_IMAGES
    rows = []
    for setting in OF_CLOTHES:
        cells = []
        for name in rivals:
            found = table.at(setting=setting).of_common_seeds("method", (ours, name))
            nats = [[row["nats"] for row in found[method]] for method in (ours, name)]
            made = paired(*nats)
            cells.append(with_error(made.difference, made.standard_error, "+.2f"))
        rows.append((setting, len(nats[0]), *cells))
    return in_table("setting", "seeds", *(f"− {name}" for name in rivals), rows=rows)
