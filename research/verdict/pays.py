"""Does a learned nonlinear diffusion pay on images? pays.md has the design.

    python -m research.verdict.pays ROOT costs     # of all steps, while nothing else runs
    python -m research.verdict.pays ROOT           # the search and the trainings that have no row
    yet

``ROOT`` is the folder of ``cifar10.npz`` and ``emoji``; data sets may follow the command. Killed
and started again, it goes on.
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import indm
from indm import INDM, Objective, flow_loss, mle_loss
from indm.flows import Compose, CouplingFlow, ElementwiseFlow, ExactFlow, Flow, Identity
from indm.nets import Zero
from indm.objective import flow_nll
from indm.score import ScoreModel
from indm.sde import VPSDE
from indm.tensors import evaluation_mode, event_size
from indm.training import (
    Descent,
    FlowUse,
    NoiseLevels,
    TrainingStep,
    learning_rate_factor,
    progress_until,
)
from research.lab.costs import Step, kept_costs
from research.lab.seeds import Difference, over_seeds
from research.lab.statistics import cells_of
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.verdict.family import family
from research.verdict.images import DIMS, Images, load
from research.verdict.measures import behaviour, displacement

SEARCH, COSTS, TABLE = (
    Records(RECORDS / f"verdict-pays{end}.csv") for end in ("-search", "-costs", "")
)
STUDIES = ("clothes-16", "cifar10-16", "emoji-32")
# steps of linear diffusion, which a training's cost equals
TUNED, STEPS, SEEDS = 300, 1_000, (1, 2, 3, 4, 5)
SHORT_AND_LONG, FEW_SEEDS = (300, 3_000), (1, 2, 3)
BATCH, WARMUP, FALL, DECAY, BETAS = 32, 100, 0.5, 0.999, (0.9, 0.99)
NOISE_RATE = 3e-3  # rate of learned noise
TIMES = 4  # evaluations of the network for an image's bound
VALID_IMAGES = 500  # validation images that choose
MARGIN = 0.01  # bits/dim that count
FLOW_DRAWS = 8  # draws of the grey levels' noise, for the flow alone
DESCRIBED = (1, 2, 3)  # seeds of which the diffusion on the data is described
WIDE = 40  # channels of the larger network, in place of 32
# steps, rate and entries of the fit of the fixed curve
CURVE_STEPS, CURVE_RATE, CURVE_ENTRIES = 1_000, 3e-2, 20_000


class Scale(ExactFlow):
    """z = exp(log_scale) · x, one scale for all entries."""

    is_elementwise = True

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """z and log|det|, (B,)."""
        return self.log_scale.exp() * x, (event_size(x) * self.log_scale).expand(len(x))

    def inverse_step(self, z: Tensor) -> Tensor:
        """x."""
        return (-self.log_scale).exp() * z


@dataclass(frozen=True)
class Setting:
    """The start of the spline, rates of the network, of the spline (or the scale) and of the
    coupling flow, and whether noises come in pairs.
    """

    # or "histogram", the spline that makes the histogram of grey levels normal
    start: str = "identity"
    lr: float = 8e-3
    curve_lr: float = 3e-3
    coupling_lr: float = 1e-3
    pairs: bool = False


@dataclass(frozen=True)
class Model:
    """A model of the study: the parts of its flow, whether they are trained, and what is searched.

    Args:
        curve: "", "scale", "spline", "fixed" (the spline that brings single grey levels nearest to
            N(0, 1)) or "frozen" (the spline of the same seed's model "spline", as it is after its
            training).
        coupling: whether a coupling flow follows.
        alone: whether the flow is trained by its own likelihood, without a network.
        channels: of the network.
        after: the model whose setting it starts from.
        axes: values of the setting that are tried one after the other; the best on validation
            images stays.
    """

    curve: str = ""
    coupling: bool = False
    alone: bool = False
    channels: int = 32
    after: str = "linear"
    axes: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def is_fixed(self) -> bool:
        return self.curve in ("fixed", "frozen")


PAIRS, START = ("pairs", (False, True)), ("start", ("identity", "histogram"))
MODELS = {
    "linear": Model(after="", axes=(("lr", (4e-3, 8e-3, 1.6e-2)), PAIRS)),
    "spline": Model("spline", axes=(("curve_lr", (1e-3, 3e-3, 1e-2, 3e-2)), START, PAIRS)),
    "coupling": Model("spline", coupling=True, after="spline", axes=(
        ("coupling_lr", (1e-4, 3e-4, 1e-3, 3e-3)), START, PAIRS,
    )),
    "flow alone": Model("spline", coupling=True, alone=True, after="spline", axes=(
        ("coupling_lr", (1e-3, 3e-3, 1e-2)), START, ("curve_lr", (1e-3, 3e-3, 1e-2, 3e-2)),
    )),
    "scale": Model("scale"),
    "fixed curve": Model("fixed"),
    "frozen spline": Model("frozen"),
    "larger network": Model(channels=WIDE),
}  # fmt: skip
CURVES = ("linear", "spline", "coupling")  # whose budgets vary
OF_NOISE = (*CURVES, "flow alone")  # models that learn the noise of grey levels, too
COMPARED = (
    ("spline", "linear"), ("spline", "scale"), ("spline", "fixed curve"),
    ("coupling", "spline"), ("coupling", "linear"), ("coupling", "flow alone"),
)  # fmt: skip
FAMILY = [(data, *names) for data in STUDIES for names in COMPARED]  # Holm has these 18


@dataclass(frozen=True)
class Job:
    """One training, as long as ``steps`` of linear diffusion."""

    data: str
    model: str
    noise: str
    steps: int
    seed: int

    @property
    def table(self) -> Records:
        return TABLE.at(
            data=self.data, model=self.model, noise=self.noise, steps=self.steps, seed=self.seed
        )


def jobs() -> Iterator[Job]:
    """All jobs, whole seeds of a data set first: their differences are then between runs of one
    machine.
    """
    for seed in SEEDS:
        for data in STUDIES:
            yield from (Job(data, model, "uniform", STEPS, seed) for model in MODELS)
    for steps in SHORT_AND_LONG:
        for seed in FEW_SEEDS:
            for data in STUDIES:
                if steps < STEPS or data != "emoji-32":
                    yield from (Job(data, model, "uniform", steps, seed) for model in CURVES)
    for seed in FEW_SEEDS:
        for data in ("clothes-16", "emoji-32"):
            yield from (Job(data, model, "variational", STEPS, seed) for model in OF_NOISE)


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def built(name: str, noise: str, images: Images, seed: int, curve: Tensor | None = None) -> INDM:
    """A model before its first step; ``curve`` are the parameters of its spline, None for the
    identity.
    """
    model, shape = MODELS[name], images.shape
    net = {
        "name": "unet",
        "channels": model.channels,
        "multipliers": [1, 2, 2],
        "blocks": 1,
        "attention": [8],
    }
    tables: dict[str, Any] = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": net}
    if noise != "uniform":
        tables["dequantization"] = {"name": noise}
    torch.manual_seed(seed)  # all models of a seed start from the same network
    bare = indm.build_model(tables, shape, indm.Scaling.images(images.levels))
    parts: list[Flow] = []
    if model.curve:
        parts.append(Scale() if model.curve == "scale" else ElementwiseFlow(shape))
    if curve is not None:
        parts[0].raw.data.copy_(curve)  # type: ignore[union-attr, operator]
    if model.coupling:
        parts.append(CouplingFlow(shape, scales=1, depth=4, width=32))
    flow = (Compose(parts) if len(parts) > 1 else parts[0]) if parts else Identity()
    score = ScoreModel(Zero(), VPSDE()) if model.alone else bare.score
    return INDM(flow, score, bare.scaling, bare.shape, bare.dequantization)


def exact(pairs: bool = False, levels: bool = False) -> Callable[[INDM], Callable[..., Any]]:
    """``mle_loss`` for a model, with pairs of noises and noise levels by gradients where they are
    asked for.
    """
    return lambda model: partial(
        mle_loss, pairs=pairs, noise_levels=NoiseLevels(model.sde) if levels else None
    )


def loss_of(model: INDM, name: str, setting: Setting) -> Callable[..., Any]:
    """The loss that the study minimises for a model."""
    return flow_loss if MODELS[name].alone else exact(setting.pairs, levels=True)(model)


class Fit(Descent):
    """A model in training, by its rates and a loss, by default the study's."""

    def __init__(
        self, model: INDM, name: str, setting: Setting, loss: Callable[..., Any] | None = None
    ):
        self.loss = TrainingStep(model, Objective(loss or loss_of(model, name, setting)))
        fixed = MODELS[name].is_fixed
        self.use = FlowUse.FROZEN if fixed else FlowUse.TRAINED
        parts: dict[str, tuple[nn.Module | None, float]] = {"score": (model.score, setting.lr)}
        if not fixed:
            flows = [*model.flow.flows] if isinstance(model.flow, Compose) else [model.flow]
            rates = {"curve": setting.curve_lr, "coupling": setting.coupling_lr}
            parts |= {part: (flow, rates[part]) for part, flow in zip(rates, flows, strict=False)}
        parts["noise"] = model.dequantization, NOISE_RATE
        groups = [
            {"name": part, "params": list(module.parameters()), "lr": rate}
            for part, (module, rate) in parts.items()
            if module is not None and any(True for _ in module.parameters())
        ]
        optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)
        super().__init__(model.train(), optimizer, DECAY, clip=1.0)

    def train_on(self, raw: Tensor, progress: float) -> bool:
        """One step on raw images, after that share of the training; whether it was skipped."""

        def gradients() -> dict[str, Tensor]:
            loss, terms = self.loss(raw, flow_use=self.use)
            loss.backward()
            return terms

        factor = learning_rate_factor(self.step, progress, WARMUP, FALL)
        return bool(self.advance(gradients, factor)["skipped"])


def batches(images: Tensor, seed: int, size: int) -> Iterator[Tensor]:
    """Batches of random images without end: every image once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(size):
            if len(rows) == size:
                yield images[rows]


def rows_of(setting: Setting) -> int:
    """Images of a batch: pairs of noises take half as many, so that the network sees as many noised
    images.
    """
    return BATCH // 2 if setting.pairs else BATCH


def trained(job: Job, setting: Setting) -> tuple[INDM, dict[str, Any]]:
    """The averaged model, and the start of its row."""
    images, steps = images_of(job.data), steps_of(job, setting)
    model = built(job.model, job.noise, images, job.seed, curve_of(job, setting))
    fit, source = Fit(model, job.model, setting), batches(images.train, job.seed, rows_of(setting))
    torch.manual_seed(job.seed)
    started, skipped = time.process_time(), 0
    for progress in progress_until(steps):
        skipped += fit.train_on(next(source), progress)
    spent = time.process_time() - started
    return fit.ema.model.eval(), {
        "trained_steps": steps,
        "cpu_seconds": round(spent, 1),
        "skipped": skipped,
    }


@functools.lru_cache(maxsize=4)
def fixed_curve(images: Images) -> Tensor:
    """Parameters of the spline whose values are nearest to N(0, 1): the greatest likelihood of
    single grey levels.
    """
    generator = torch.Generator().manual_seed(0)
    raw = images.train.flatten()
    raw = raw[torch.randint(len(raw), (CURVE_ENTRIES,), generator=generator)][:, None].float()
    flow = ElementwiseFlow(images.shape)
    optimizer = torch.optim.Adam(flow.parameters(), lr=CURVE_RATE)
    scaling = indm.Scaling.images(images.levels)
    for n in range(CURVE_STEPS):
        optimizer.param_groups[0]["lr"] = CURVE_RATE * learning_rate_factor(
            n, n / CURVE_STEPS, 0, 1.0
        )
        z, log_slope = flow(scaling.to_model(raw, generator=generator))
        (0.5 * z.square().sum(1) - log_slope).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return flow.raw.detach()


def curve_of(job: Job, setting: Setting) -> Tensor | None:
    """Parameters of the spline before the first step: None for the identity."""
    curve = MODELS[job.model].curve
    if curve == "fixed" or (curve == "spline" and setting.start == "histogram"):
        return fixed_curve(images_of(job.data))
    if curve == "frozen":
        (row,) = replace(job, model="spline").table.rows()
        return torch.tensor(row["curve"])
    return None


# ── Costs, search and measures ────────────────────────────────────────────────────────────────────


def cost_key(name: str, setting: Setting, noise: str) -> str:
    return (
        name + (", pairs" if setting.pairs else "") + (f", {noise}" if noise != "uniform" else "")
    )


def measured_costs(data: str, noise: str) -> dict[str, float]:
    """The cost of a step by :func:`cost_key`, relative to linear diffusion; measured once, by
    processor seconds.
    """

    def step(name: str, setting: Setting, of: str) -> Step:
        images = images_of(data)
        fit, source = (
            Fit(built(name, of, images, 0), name, setting),
            batches(images.train, 0, rows_of(setting)),
        )
        return lambda: fit.train_on(next(source), 0.0)

    kinds = [("linear", Setting(), "uniform")]
    kinds += [
        (n, Setting(pairs=p), noise)
        for n in MODELS
        for p in (False, True)
        if not (p and MODELS[n].alone)
    ]
    steps = {cost_key(*kind): partial(step, *kind) for kind in kinds}
    return kept_costs(COSTS.at(data=data), steps, "linear")


def steps_of(job: Job, setting: Setting) -> int:
    """Steps that cost as much as the job's of linear diffusion, of uniform noise and without pairs."""
    return round(
        job.steps / measured_costs(job.data, job.noise)[cost_key(job.model, setting, job.noise)]
    )


def bound(name: str, model: INDM, images: Tensor) -> Tensor:
    """The bound of −log P of each image, nats, (N,): the NELBO, or of a flow alone its likelihood."""
    if not MODELS[name].alone:
        found = indm.evaluate(model, images, [indm.Bound(times=TIMES)], seed=0, progress=False)
        return found.nats["nelbo"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), evaluation_mode(model):
        draws = []
        for _ in range(FLOW_DRAWS):
            parts = [model.from_data(raw, generator=generator) for raw in images.split(256)]
            draws.append(torch.cat([flow_nll(model, x) + log_q for x, log_q in parts]))
    return torch.stack(draws).double().mean(0)


def bits(nats: Tensor, images: Images) -> float:
    return round(nats.mean().item() / (math.prod(images.shape) * math.log(2)), 5)


def chosen(data: str, name: str) -> Setting:
    """The best setting of a model on validation images; what has no row yet is trained."""
    setting = chosen(data, MODELS[name].after) if MODELS[name].after else Setting()
    setting = replace(setting, pairs=False) if MODELS[name].axes else setting
    for key, values in MODELS[name].axes:
        tried = [replace(setting, **{key: value}) for value in values]
        setting = min(tried, key=partial(trial, data, name))
    return setting


def trial(data: str, name: str, setting: Setting) -> float:
    """Bits/dim of validation images after a short training, seed 0."""
    images, job = images_of(data), Job(data, name, "uniform", TUNED, 0)
    table = SEARCH.at(data=data, model=name, **vars(setting))

    def made() -> dict[str, Any]:
        model, row = trained(job, setting)
        return (
            row
            | {"bits": bits(bound(name, model, images.valid[:VALID_IMAGES]), images)}
            | made_by(0)
        )

    return table.kept(made)["bits"]


def run(job: Job) -> None:
    """Train one model, measure it and write its row."""
    images, setting = images_of(job.data), chosen(job.data, job.model)
    model, row = trained(job, setting)
    nats = bound(job.model, model, images.test)
    row |= {"setting": vars(setting), "bits": bits(nats, images), "nelbo_nats": nats.tolist()}
    row |= {"valid": bits(bound(job.model, model, images.valid[:VALID_IMAGES]), images)}
    if job.model == "spline":
        row["curve"] = model.flow.raw.tolist()
    if job.model == "scale":
        row["scale"] = round(model.flow.log_scale.exp().item(), 4)
    if job.model in ("spline", "coupling", "flow alone") and job.noise == "uniform":
        row["displacement"] = displacement(model, images.test, job.seed)
    if (
        job.model in ("linear", "spline", "coupling")
        and job.noise == "uniform"
        and job.seed in DESCRIBED
    ):
        row["behaviour"] = behaviour(model, images.test, job.seed)
    job.table.add(row | made_by(job.seed))


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────


def called(difference: Difference, values: list[float], form: str) -> str:
    """The difference with its error, bold where it exceeds twice that and has one sign in all of
    several seeds.
    """
    found = with_error(difference.difference, difference.standard_error, f"+{form}")
    one_sign = min(values) > 0 or max(values) < 0
    large = abs(difference.difference) > 2 * difference.standard_error
    return f"**{found}**" if len(values) > 1 and one_sign and large else found


def bits_of(table: Records, data: str, names: Sequence[str], **where: Any) -> dict[str, np.ndarray]:
    """Bits/dim of the test images by model, (seeds, N), of the seeds that all of them have on one
    machine.
    """
    runs = table.at(data=data, **where).of_common_seeds("model", names)
    alike = [
        len({row["machine"] for row in rows}) == 1 for rows in zip(*runs.values(), strict=True)
    ]
    dims = DIMS[data] * math.log(2)
    return {
        name: np.array([row["nelbo_nats"] for row, kept in zip(rows, alike, strict=True) if kept])
        / dims
        for name, rows in runs.items()
    }


def family_table(table: Records) -> str:
    """The tested differences: with errors over seeds and images, 95 % intervals, Holm's p, and the
    word.
    """
    made = {}
    for data, *names in FAMILY:
        bits = bits_of(table, data, names, steps=STEPS, noise="uniform")
        if len(bits[names[0]]):
            made[data, names[0], names[1]] = bits[names[0]], bits[names[1]]
    rows = []
    for row in family(FAMILY, made):
        names = f"{row['variant']} − {row['baseline']}"
        rows.append((row["data"], names, row["seeds"], *cells_of(row, MARGIN, ".4f")))
    return in_table(
        "data",
        "difference",
        "seeds",
        "bits/dim",
        "95 % interval",
        "Holm's p",
        "is called",
        rows=rows,
    )


def markdown(table: Records) -> str:
    """Bits/dim of test images by data set, model, noise and budget: means over seeds."""
    kinds = {(row["noise"], row["steps"]) for row in table.rows()}
    rows = []
    for noise, steps in sorted(
        kinds, key=lambda kind: (kind[0] != "uniform", kind[1] != STEPS, kind[1])
    ):
        for name in MODELS:
            found = [
                table.at(data=data, model=name, noise=noise, steps=steps).rows() for data in STUDIES
            ]
            if any(found):
                cells = [
                    with_error(*over_seeds([row["bits"] for row in own]), ".4f") if own else ""
                    for own in found
                ]
                rows.append((f"{steps:,}", noise, name, *cells, max(map(len, found))))
    return in_table("steps", "noise", "model", *STUDIES, "seeds", rows=rows)


def behaviour_table(table: Records) -> str:
    """The displacement by learned flows, and the diffusion on the data at three noise levels: means
    over seeds.
    """
    lines = []
    for data in STUDIES:
        for name in ("spline", "coupling"):
            rows = table.at(data=data, model=name, noise="uniform", steps=STEPS).rows()
            described = [row for row in rows if row.get("behaviour")]
            for level in list(zip(*(row["behaviour"] for row in described), strict=True))[::2]:
                mean = {
                    key: np.mean([seed[key] for seed in level])
                    for key in level[0]
                    if key != "spectrum"
                }
                size = np.mean([row["displacement"]["size"] for row in described])
                share = mean["drift_beyond_linear"] / mean["drift"]
                cells = (
                    f"{size:.2f}",
                    f"{mean['noise']:.2g}",
                    f"{share:.2f}",
                    f"{mean['anisotropy']:.2g}",
                )
                lines.append((data, name, *cells, len(described)))
    titles = "displacement", "σ/α", "drift beyond linear", "anisotropy of the volatility", "seeds"
    return in_table("data", "model", *titles, rows=lines)


def images_of(data: str) -> Images:
    """The images of a study, of the folder that the command names."""
    return load(data, Path(sys.argv[1]))


def main() -> None:
    """``ROOT [costs] [DATA …]``."""
    torch.set_num_threads(1)
    only_costs = sys.argv[2:3] == ["costs"]
    studies = sys.argv[3 if only_costs else 2 :] or STUDIES
    for data in studies:
        measured_costs(data, "uniform")
        if not only_costs:
            print(data, {name: chosen(data, name) for name in MODELS}, flush=True)
    for job in () if only_costs else jobs():
        if job.data in studies and not job.table.rows():
            run(job)


if __name__ == "__main__":
    main()
