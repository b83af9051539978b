"""Is a wrong description of a network found, and no right one accused? Trained networks, described in several ways.

    python -m research.descriptions                            # whatever has no record yet, then the table
    python -m research.descriptions --strangers FOLDER         # with networks of other people, whose files are there
    python -m research.descriptions --only points              # the networks whose name has that in it

A network is trained here in seconds, or was trained by somebody else. A description is what a user says of it to
:func:`indm.from_denoiser`. A wrong one costs its NELBO minus the right one's, on the same rows, seed and noise
levels. A description is a row of ``descriptions.csv``. Files of strangers, all in one FOLDER: ``ddpm_mnist.pt``,
``ddpm_fashion.pt`` and ``models.py`` of BrianPulfer/PapersReimplementations, 9ebf59a, folder ddpm;
``t10k-images-idx3-ubyte.gz`` of MNIST and, as ``fashion-t10k-images-idx3-ubyte.gz``, of Fashion-MNIST; ``cfm_v1.pt``,
``flow_matching_v1.pt``, ``sbcfm_v1.pt`` and ``stochastic_interpolant_v1.pt`` of atong01/conditional-flow-matching,
a9e3033e, folder examples/models/gaussian-moons. Networks whose files are absent are skipped.
"""

import argparse
import gzip
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sklearn.datasets import load_digits, make_moons
from torch import Tensor, nn

import indm
from indm.evaluation.statistics import mean_and_error
from indm.foreign.denoiser import Preconditioned
from indm.foreign.paths import path_of
from research.markdown import in_table
from research.records import RECORDS, Records, Row, made_by

LINEAR = {"betas": torch.linspace(1e-4, 0.02, 1000)}
SCALED = {"betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2}
COSTLY = 0.05  # bits/dim from which a wrong description must be found
ROWS, TIMES = 512, 32  # images to test on; evaluations of each bound

# ── Networks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def cosine(steps: int) -> dict[str, Tensor]:
    s = torch.linspace(0, 1, steps + 1).double()
    bar = ((s + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return {"betas": (1 - bar[1:] / bar[:-1]).clamp(max=0.999)}


def sigmoid(steps: int) -> dict[str, Tensor]:
    bar = (3 - 6 * torch.linspace(0, 1, steps + 1).double()).sigmoid()
    bar = (bar - bar[-1]) / (bar[0] - bar[-1])
    return {"betas": (1 - bar[1:] / bar[:-1]).clamp(max=0.999)}


class Net(nn.Module):
    """A network (x, time) of vectors or images, which sees sines of ``time`` / ``unit``."""

    def __init__(self, shape: tuple[int, ...], unit: float):
        super().__init__()
        self.unit, width = unit, 128 if len(shape) == 1 else 32
        self.register_buffer("frequencies", torch.logspace(-0.5, 1.5, 16))
        layer = (lambda a, b: nn.Linear(a, b)) if len(shape) == 1 else (lambda a, b: nn.Conv2d(a, b, 3, padding=1))
        self.first, self.last = layer(shape[0], width), layer(width, shape[0])
        self.blocks = nn.ModuleList(layer(width, width) for _ in range(3 if len(shape) == 1 else 5))
        self.times = nn.ModuleList(nn.Linear(33, width) for _ in self.blocks)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        u = (time / self.unit)[:, None]
        seen = torch.cat([u, (u * self.frequencies).sin(), (u * self.frequencies).cos()], 1)
        h = self.first(x)
        for block, of_time in zip(self.blocks, self.times, strict=True):
            shift = of_time(seen)
            h = h + block(nn.functional.silu(h + shift.view(*shift.shape, *[1] * (h.ndim - 2))))
        return self.last(nn.functional.silu(h))


def moons(n: int = 12_000) -> Tensor:
    x = torch.tensor(make_moons(n, shuffle=True, random_state=0)[0]).float()
    return 3 * (x + 0.2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))) - 1


def digits() -> Tensor:
    raw = torch.tensor(load_digits().images).long()[:, None]
    return raw[torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))]


def data_of(name: str) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to test."""
    raw, rows = (moons(), 4096) if name == "points" else (digits(), ROWS)
    return raw[:-rows], raw[-rows:]


@dataclass(frozen=True)
class Trained:
    """A training of seconds: what the network predicts on which path, and what it is given for τ."""

    data: str
    predicts: str
    path: Any
    unit: float
    scaling: indm.Scaling | None = None
    wrap: Callable[[nn.Module], Any] = lambda net: net

    def prepared(self, raw: Tensor) -> Tensor:
        return (
            raw
            if self.scaling is None
            else self.scaling.centre(raw)
            if self.scaling.levels
            else self.scaling.to_model(raw)
        )


def train(about: Trained) -> nn.Module:
    torch.manual_seed(0)
    x = about.prepared(data_of(about.data)[0])
    net, path = Net(tuple(x.shape[1:]), about.unit), path_of(about.path)
    asked = about.wrap(net)
    steps, batch = (3000, 512) if x.ndim == 2 else (2500, 128)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    first, last = sorted(path.range)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        x_0 = x[torch.randint(len(x), (batch,))]
        noise, u = torch.randn_like(x_0), torch.rand(batch).double()
        tau = (u * (last - first + 1)).floor() if hasattr(path, "levels") else first + u * (last - first)
        if path.range[0] > 0.001 and path.range[1] > 2:  # σ
            span = math.log(last / first)
            tau = first * (span * u).exp()
        wide = (batch, *[1] * (x.ndim - 1))
        alpha, sigma = path.alpha(tau).float().view(wide), path.sigma(tau).float().view(wide)
        x_tau = alpha * x_0 + sigma * noise
        target = {"noise": noise, "data": x_0, "v": alpha * noise - sigma * x_0}
        if about.predicts == "velocity":
            slopes = [s.float().view(wide) for s in path.slopes(tau)]
            target["velocity"] = slopes[0] * x_0 + slopes[1] * noise
        weight = 1 + 1 / sigma**2 if about.predicts == "data" else 1.0  # EDM's weight
        error = asked(x_tau, tau.float()) - target[about.predicts]
        loss = (weight * error.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return asked


class At(nn.Module):
    """network(x, time(τ)), asked at (x, τ)."""

    def __init__(self, network: Callable[..., Tensor], time: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.time = network, time

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        return self.network(x, self.time(tau))


def squashed(sigma: Tensor) -> Tensor:
    return sigma / (1 + sigma) + sigma.clamp_min(1e-6).log() / 4


def quarter(sigma: Tensor) -> Tensor:
    return 0.25 * sigma.log()


LEVELS = indm.Scaling.between(-1, 1, levels=17)
FROM_ZERO = indm.Scaling.between(0, 1, levels=17)
WIDE = indm.Scaling.standardise(moons())
TRAININGS = {
    "points-noise-linear": Trained("points", "noise", LINEAR, 1000),
    "points-noise-scaled": Trained("points", "noise", SCALED, 1000, WIDE),
    "points-v-cosine-20": Trained("points", "v", cosine(20), 20),
    "points-data-edm": Trained("points", "data", "edm", 1, wrap=lambda net: Preconditioned(net, 1.5)),
    "points-noise-quarter": Trained("points", "noise", {"sigmas": (0.02, 20.0)}, 1, wrap=lambda net: At(net, quarter)),
    "points-noise-sigma": Trained("points", "noise", {"sigmas": (0.02, 20.0)}, 1, wrap=lambda net: At(net, squashed)),
    "points-velocity-linear": Trained("points", "velocity", "linear", 1),
    "points-velocity-trigonometric": Trained("points", "velocity", "trigonometric", 1),
    "points-velocity-1000": Trained(
        "points", "velocity", "linear", 1000, wrap=lambda net: At(net, lambda tau: 1000 * tau)
    ),
    "digits-noise-cosine": Trained("digits", "noise", cosine(1000), 1000, LEVELS),
}

# ── Descriptions ─────────────────────────────────────────────────────────────────────────────────────────────────────

RIGHT = "right"
Said = tuple[str, str, dict[str, Any]]  # in words; RIGHT, or what the verdict should name; options of from_denoiser


def descriptions(name: str, net: Any) -> Iterator[Said]:
    """Descriptions that users may give of a network, the one of its training first."""
    if name in TRAININGS:
        about = TRAININGS[name]
        shape = (2,) if about.data == "points" else (1, 8, 8)
        given = {"predicts": about.predicts, "path": about.path, "shape": shape, "scaling": about.scaling}
        others = of_points(net) if about.data == "points" else of_digits(net)
    else:
        given, others = of_strangers(name), with_strangers(net)
    for words, named, changes in [("as trained", RIGHT, {}), *others.get(name, [])]:
        yield words, named, {"network": net} | given | changes


def of_points(net: Any) -> dict[str, list[Said]]:
    def at(time: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {"network": At(net, time)}

    bar = (1 - LINEAR["betas"]).cumprod(0)
    return {
        "points-noise-linear": [
            ("scaled_linear", "of linear", {"path": SCALED}),
            ("cosine", "of linear", {"path": cosine(1000)}),
            ("v", "predicts='noise'", {"predicts": "v"}),
            ("k from the other end", "other end", at(lambda k: 999 - k)),
            ("k/K", "", at(lambda k: k / 1000)),
            ("raw data 0 to 1", "", {"scaling": indm.Scaling(-1.0, 7.0)}),
            (
                "its output as a score", RIGHT,
                {"predicts": "score", "network": lambda x, k: -net(x, k) / (1 - bar)[k.round().long(), None].sqrt()},
            ),
        ],
        "points-noise-scaled": [("not standardised", "deviation 1", {"scaling": None})],
        "points-v-cosine-20": [
            ("k + 1", "k − 1", at(lambda k: (k + 1).clamp(max=19))),
            ("k − 1", "k + 1", at(lambda k: (k - 1).clamp(min=0))),
            ("noise", "predicts='v'", {"predicts": "noise"}),
        ],
        "points-data-edm": [
            ("σ without ¼ log", "", {"network": Plain(net.network, 1.5) if isinstance(net, Preconditioned) else net}),
            ("σ_data 0.5", "", {"network": Preconditioned(getattr(net, "network", net), 0.5)}),
        ],
        "points-noise-quarter": [("σ for ¼ log σ", "¼ log σ", {"network": getattr(net, "network", net)})],
        "points-noise-sigma": [("¼ log σ for σ", "without ¼ log", at(quarter))],
        "points-velocity-linear": [
            ("data at τ = 1", "path='linear'", {"path": "linear-reversed"}),
            ("trigonometric", "path='linear'", {"path": "trigonometric"}),
            (
                "the other way round", RIGHT,
                {"path": "linear-reversed", "network": lambda x, tau: -net(x, 1 - tau)},
            ),
        ],
        "points-velocity-trigonometric": [("linear", "path='trigonometric'", {"path": "linear"})],
        "points-velocity-1000": [("τ in place of 1000 τ", "1000 τ", {"network": getattr(net, "network", net)})],
    }  # fmt: skip


class Plain(Preconditioned):
    """EDM's D whose F was given σ, where it takes ¼ log σ."""

    def forward(self, x: Tensor, sigma: Tensor, *c: Tensor) -> Tensor:
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        std = (s**2 + self.sigma_data**2).sqrt()
        return (self.sigma_data / std) ** 2 * x + s * self.sigma_data / std * self.network(x / std, sigma, *c)


def of_digits(net: Any) -> dict[str, list[Said]]:
    return {
        "digits-noise-cosine": [
            ("linear", "squaredcos_cap_v2", {"path": LINEAR}),
            ("sigmoid", "squaredcos_cap_v2", {"path": sigmoid(1000)}),
            ("v", "predicts='noise'", {"predicts": "v"}),
            ("data in [0, 1]", "data of [−1, 1]", {"scaling": FROM_ZERO}),
        ],
    }


# ── Networks of strangers ────────────────────────────────────────────────────────────────────────────────────────────


class Theirs(nn.Module):
    """The attributes of a pickled MLP of torchcfm, called as (x, t)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None]], 1))


def stranger(name: str, folder: Path) -> tuple[nn.Module, Tensor]:
    """A stranger's network and its test data; FileNotFoundError where one is absent."""
    kind, what = name.split("-")
    if kind == "torchcfm":
        linear = [nn.Sequential, nn.Linear, nn.SELU, set]
        with torch.serialization.safe_globals([(Theirs, "__main__.MLP"), *linear]):
            net = torch.load(folder / f"{what}_v1.pt", weights_only=True, map_location="cpu")
        return net.eval(), data_of("points")[1]
    spec = importlib.util.spec_from_file_location("theirs", folder / "models.py")
    if spec is None or spec.loader is None or not (folder / "models.py").exists():
        raise FileNotFoundError(folder / "models.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    weights = torch.load(folder / f"ddpm_{what}.pt", weights_only=True, map_location="cpu")
    net = module.MyUNet()
    net.load_state_dict({key.removeprefix("network."): v for key, v in weights.items() if key.startswith("network.")})
    images = folder / f"{'' if what == 'mnist' else 'fashion-'}t10k-images-idx3-ubyte.gz"
    pixels = torch.frombuffer(bytearray(gzip.decompress(images.read_bytes())[16:]), dtype=torch.uint8)
    return At(net.eval(), lambda k: k.round().long()), pixels.view(-1, 1, 28, 28)[:ROWS]


STRANGERS = (
    "ddpm-mnist", "ddpm-fashion", "torchcfm-cfm", "torchcfm-flow_matching", "torchcfm-sbcfm",
    "torchcfm-stochastic_interpolant",
)  # fmt: skip


def noisy(alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], end: float = 1.0) -> SimpleNamespace:
    """torchcfm's path from noise at 0 to data at ``end``, on which noise of deviation 0.1 remains."""
    return SimpleNamespace(alpha=alpha, sigma=sigma, range=(end, 1e-4), prior_std=1.0)


def of_strangers(name: str) -> dict[str, Any]:
    """Options of the right description, by the code beside the weights."""
    if name.startswith("ddpm"):
        return {"predicts": "noise", "path": LINEAR, "shape": (1, 28, 28), "scaling": indm.Scaling.between(-1, 1)}
    path = noisy(lambda t: t, lambda t: ((1 - t) ** 2 + 0.01).sqrt())
    if name.endswith("flow_matching"):
        path = noisy(lambda t: t, lambda t: 1 - 0.9 * t)
    if name.endswith("interpolant"):
        angle = math.pi / 2  # at the end τ = 1 a velocity says nothing of the noise
        path = noisy(lambda t: (angle * t).sin(), lambda t: ((angle * t).cos() ** 2 + 0.01).sqrt(), end=0.99)
    return {"predicts": "velocity", "path": path, "shape": (2,), "scaling": None}


def with_strangers(net: Any) -> dict[str, list[Said]]:
    def deviation(k: Tensor) -> Tensor:
        return (1 - (1 - LINEAR["betas"]).cumprod(0))[k.round().long(), None, None, None].sqrt()

    back = SimpleNamespace(
        alpha=lambda t: 1 - t, sigma=lambda t: (t**2 + 0.01).sqrt(), range=(0.0, 1 - 1e-4), prior_std=1.0
    )
    return {
        "ddpm-mnist": [
            ("its output as a score", RIGHT, {"predicts": "score", "network": lambda x, k: -net(x, k) / deviation(k)}),
            ("scaled_linear", "of linear", {"path": SCALED}),
            ("data in [0, 1]", "data of [−1, 1]", {"scaling": indm.Scaling.between(0, 1)}),
            ("k from the other end", "other end", {"network": At(net, lambda k: 999 - k)}),
            ("k + 1", "k − 1", {"network": At(net, lambda k: (k + 1).clamp(max=999))}),
        ],
        "ddpm-fashion": [
            ("cosine", "of linear", {"path": cosine(1000)}),
            ("v", "predicts='noise'", {"predicts": "v"}),
        ],
        "torchcfm-cfm": [
            ("the other way round", RIGHT, {"path": back, "network": lambda x, tau: -net(x, 1 - tau)}),
            ("σ = 0", "", {"path": "linear-reversed"}),
            ("noise at τ = 1", "linear-reversed", {"path": "linear"}),
        ],
        "torchcfm-stochastic_interpolant": [("linear", "trigonometric-reversed", {"path": "linear-reversed"})],
    }


# ── The study ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Within:
    """``path`` between two values of log(σ/α), with the start N(0, I) of x/√(α² + σ²)."""

    def __init__(self, path: Any, low: float, high: float):
        self.alpha, self.sigma = path.alpha, path.sigma
        ends = path.time(torch.tensor([low, high]).double())
        self.range = tuple(ends.tolist())
        self.prior_std = torch.hypot(self.alpha(ends[1:]), self.sigma(ends[1:])).item()


def bound(options: dict[str, Any], raw: Tensor, low: float, high: float) -> Tensor:
    """The NELBO of each row in bits/dim over noise levels from ``low`` to ``high``, log(σ/α) of raw data."""
    unit = 0.0 if options["scaling"] is None else options["scaling"].scale.log().mean().item()
    path = Within(path_of(options["path"]), low - unit, high - unit)
    model = indm.from_denoiser(**options | {"path": path})
    generator = torch.Generator().manual_seed(1)
    x, log_q = model.from_data(raw, generator=generator)
    with torch.no_grad():
        nats = indm.nelbo(model, x, times=TIMES, log_q=log_q, generator=generator).nats
    return nats / (math.prod(model.shape) * math.log(2))


def common(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float]:
    """The noise levels that both descriptions cover, less a quarter at the least noise, log(σ/α) of raw data."""
    ends = []
    for options in (first, second):
        path = path_of(options["path"])
        unit = 0.0 if options["scaling"] is None else options["scaling"].scale.log().mean().item()
        ends.append((path.level(torch.tensor(path.range).double()) + unit).tolist())
    (low, high), (other_low, other_high) = ends
    return max(low, other_low) + 0.25, min(high, other_high)


def judged(options: dict[str, Any], raw: Tensor, right: dict[str, Any]) -> Row:
    """The cost of a description, in bits/dim with its error, and what is said of it."""
    ends, some = common(options, right), raw[:1024]
    cost, error = mean_and_error((bound(options, some, *ends) - bound(right, some, *ends)).double())
    record: Row = {"cost": cost if math.isfinite(cost) else None, "error": error if math.isfinite(cost) else None}
    try:
        check = indm.check_denoiser(indm.from_denoiser(**options), raw, batch_size=512)
    except ValueError as refused:
        return record | {"wrong": True, "verdict": str(refused)} | made_by(0)
    return record | {"lost": check.lost.sum().item(), "wrong": check.wrong, "verdict": check.verdict} | made_by(0)


def study(made: Records, only: str, folder: Path) -> None:
    for name in [name for name in (*TRAININGS, *STRANGERS) if only in name]:
        try:
            net, raw = (
                (train(TRAININGS[name]), data_of(TRAININGS[name].data)[1])
                if name in TRAININGS
                else stranger(name, folder)
            )
        except FileNotFoundError as absent:
            print(f"{name} is skipped: {absent.filename or absent} is absent")
            continue
        right = None
        for words, named, options in descriptions(name, net):
            right = right or options
            about = {"network": name, "said": words}
            row = made.at(**about).kept(
                lambda options=options, raw=raw, right=right, named=named: (
                    {"named": named} | judged(options, raw, right)
                )
            )
            print(name, "|", words, "|", row.get("cost"), row.get("lost"), row["wrong"], "|", row["verdict"][:230])


def in_bits(lost: float) -> str:
    """Bits, of a network that fails in powers of ten."""
    return f"{lost:.0e}" if lost > 1e4 else f"{lost:.3f}"


def table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        right = row["named"] == RIGHT
        cost = "not finite" if "cost" not in row else f"{row['cost']:+.3f} ± {row['error']:.3f}"
        named = row["named"] and not right and row["named"] in row["verdict"]
        found = ("loses bits" if right else "named" if named else "found") if row["wrong"] else "–"
        lines.append(
            (row["network"], row["said"], "right" if right else cost, in_bits(row.get("lost", math.nan)), found)
        )
    return in_table("network", "said", "cost", "lost at least", "finding", rows=lines)


def counts(rows: list[Row]) -> str:
    right = [row for row in rows if row["named"] == RIGHT]
    wrong = [row for row in rows if row["named"] != RIGHT]
    costly = [row for row in wrong if row.get("cost", math.inf) > COSTLY]
    better = "fits the network better"
    return (
        f"Of {len(costly)} wrong descriptions that cost more than {COSTLY} bits/dim, "
        f"{sum(row['wrong'] for row in costly)} are found, and for {sum(better in row['verdict'] for row in costly)} a "
        f"better one is named. Of {len(wrong) - len(costly)} that cost less, "
        f"{sum(row['wrong'] for row in wrong if row not in costly)} are found. Of {len(right)} right ones, "
        f"{sum(better in row['verdict'] for row in right)} are called worse than another, and "
        f"{sum(row['wrong'] for row in right)} have a finding, which says that the network loses bits."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name has this in it")
    parser.add_argument("--strangers", type=Path, default=Path("strangers"), help="folder with files of strangers")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = Records(options.records / "descriptions.csv")
    study(made, options.only, options.strangers)
    print(table(made.rows()))


if __name__ == "__main__":
    main()
