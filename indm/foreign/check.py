r"""The description of a network trained elsewhere, judged by its denoising error on data.

An error e = E‖n − n̂‖²/d that is larger by Δ over a part of the clock Λ = log(σ²/α²) of width w costs the NELBO ½ Δ w
nats a dimension; at the least noise it costs another ½ Δ, by the reconstruction term. Three errors bound the least
possible one from above: the error of the best linear predictor, the error of the best combination a f + b x_τ + c of
output and input, and what a level with more noise allows: as Λ falls, log(e/(1 − e)) rises at most as fast, by Stam's
inequality for the Fisher information (1 − e)/σ² of x_0 + σ n.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from indm.checks import require
from indm.dequantization import check_raw, from_data
from indm.foreign.paths import PREDICTIONS
from indm.gaussian import GaussianReference
from indm.likelihood import check_gradient
from indm.objective import NOISE_LEVELS, reconstruction_units
from indm.protocols import Model
from indm.score import context_of, described, unguided
from indm.tensors import evaluation_mode, randn_like

ENTRIES = 2**13  # numbers of data that make the errors of vectors precise enough; images have more
ROWS, OTHERS, MOST_FITTED = 256, 32, 10_000  # at least, at least for other descriptions, at most for the linear fit
LOST, TRIED = 0.05, 0.02  # bits/dim from which a loss is a finding, and from which other descriptions are tried
EXPLAINED = 0.5  # share of the loss that another description explains at least, if it is named
REST, OF_MUCH = 0.2, 0.05  # shares of the loss beyond the least noise, and of one above 1 bit/dim, that it may leave
WEAK = 1.5  # ratio of a level's error to the linear predictor's from which it is mentioned
SIGNIFICANT = 3.0  # standard errors by which an estimate may be off
TAKEN = 3 + SIGNIFICANT * 6**0.5  # unit squares that a fit of three coefficients removes, at most: χ² of 3
Asked = tuple[Tensor, tuple[Tensor, ...], Tensor, int]  # x, the network's view of c, levels log(σ/α), rows at a time


@dataclass(frozen=True)
class DenoiserCheck:
    """The error of a denoiser on data, by noise level.

    Attributes:
        levels: log(σ/α), (levels,): eight, evenly on the clock, and before them the least one, if the reconstruction
            uses the network there.
        errors: for each kind of prediction that the network could have made, E‖n − n̂‖²/d at each level, (levels,).
        linear: error of the best linear predictor of these data, (levels,).
        lost: bits per dimension that the network loses at least at each level, (levels,).
        predicts: the kind that the model was given.
        verdict: a sentence that follows from the rows.
        wrong: whether the network loses 0.05 bits per dimension or more, or another description fits it better.

    Example:
        >>> zero = torch.zeros(1)
        >>> print(DenoiserCheck(zero, {"noise": zero}, zero, zero, "noise", "nothing looks wrong", False))
        error of n̂ as       noise    linear bits lost
        σ/α          1           0         0         0
        nothing looks wrong
    """

    levels: Float[Tensor, " levels"]
    errors: dict[str, Float[Tensor, " levels"]]
    linear: Float[Tensor, " levels"]
    lost: Float[Tensor, " levels"]
    predicts: str
    verdict: str
    wrong: bool

    def __str__(self) -> str:
        """A table, a row for each noise level, and the verdict."""
        first = {self.predicts: self.errors[self.predicts]}
        columns = first | self.errors | {"linear": self.linear, "bits lost": self.lost}
        lines = ["error of n̂ as".ljust(16) + "".join(f"{name:>10}" for name in columns)]
        for noise, *values in zip(self.levels.exp().tolist(), *(c.tolist() for c in columns.values()), strict=True):
            lines.append(f"σ/α {noise:10.4g}  " + "".join(f"{value:10.3g}" for value in values))
        return "\n".join([*lines, self.verdict])


def check_denoiser(
    model: Model, raw: Num[Tensor, "batch *event"], *, c: Any = None, batch_size: int = 64, generator=None
) -> DenoiserCheck:
    r"""Measure the denoising error of a model of :func:`indm.from_denoiser` on data, and say what looks wrong.

    From a loss of 0.02 bits per dimension on, other predictions, paths, times and scalings are tried with the same
    noise. :func:`indm.evaluate` calls this once, warns if the verdict is ``wrong``, and prints it.

    Args:
        model: what :func:`indm.from_denoiser` made; else a ValueError.
        raw: data in data units. The network is asked at half of them, of images at most 256; the rest gives "linear".
        c: their conditions, of a model that has one.
        batch_size: rows at a time.
        generator: of noise of grey levels.

    Example: v = 0 is exact for N(0, I), and is said to be the noise.

        >>> import indm
        >>> model = indm.from_denoiser(lambda x, tau: 0 * x, predicts="noise", path="linear", shape=(2,))
        >>> indm.check_denoiser(model, torch.randn(512, 2, generator=torch.Generator().manual_seed(0))).verdict[:40]
        "predicts='v' fits the network better, by"
    """
    denoiser = denoiser_of(model)
    check_raw(model, raw)
    require(len(raw) >= 2, "raw", len(raw), "at least 2 rows")
    c = model.rows(c, len(raw))
    order = torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))  # classes may come one by one
    most = min(max(2, len(raw) // 2), max(ROWS, ENTRIES // math.prod(model.shape)))
    ours, others = order[:most], order[len(raw) // 2 :][:MOST_FITTED]
    start, width = model.sde.clock_span()[0], model.sde.log_snr_range() / NOISE_LEVELS
    first = [(0.0, unit)] if (unit := reconstruction_units(model)) else []
    parts = [(width * (i + 0.5), width) for i in range(NOISE_LEVELS)]
    clock, widths = torch.tensor(first + parts).double().T
    levels, bits = 0.5 * (start + clock), 0.5 * widths / math.log(2)  # bits/dim for a unit of error at each level
    with evaluation_mode(model):
        x, rest = (from_data(model, raw[rows], generator=generator)[0] for rows in (ours, others))
        score = unguided(model).given(c, rows=ours).score
        check_gradient(score, x)
        asked = (x, context_of(score), levels, batch_size)
        errors, least = _errors(denoiser, asked, GaussianReference.fit(rest))
        error, linear = errors[denoiser.predicts], errors.pop("linear").mean(1)
        best, noise = torch.minimum(least, linear), SIGNIFICANT * error.std(1) / len(x) ** 0.5
        above = (torch.minimum(best, error.mean(1)) + noise)[1:].clamp(1e-12, 1 - 1e-9)
        best[:-1] = torch.minimum(best[:-1], (above.logit() + 2 * levels.diff()).sigmoid() + noise[:-1])
        lost = bits * (error.mean(1) - best).clamp_min(0)
        gains = dict(_gains(denoiser, asked, bits)) if lost.sum() >= TRIED else {}
    verdict, wrong = _verdict(levels, lost, error.mean(1) / linear, gains)
    return DenoiserCheck(
        levels, {k: v.mean(1) for k, v in errors.items()}, linear, lost, denoiser.predicts, verdict, wrong
    )


def denoiser_of(model: Model) -> Any:
    """The network of a model of :func:`indm.from_denoiser`; ValueError where it is another one."""
    if (network := described(model.score)) is None:
        raise ValueError(f"model must come from from_denoiser, got one with {type(model.score).__name__}")
    return network


def _errors(
    denoiser: Any, asked: Asked, reference: GaussianReference, scale: float = 1.0, shift: float = 0.0
) -> tuple[dict[str, Tensor], Tensor]:
    """‖n − n̂‖²/d, (levels, rows), of each prediction and "linear", of the reference, and what a f + b x + c attains."""
    x, seen, levels, batch_size = asked
    errors = {name: torch.zeros(len(levels), len(x)).double() for name in (*PREDICTIONS, "linear")}
    products = torch.zeros(len(levels), 4, 4).double()
    generator = torch.Generator(x.device).manual_seed(0)  # the same noise for each description
    for i, level in enumerate(levels.tolist()):
        for rows in torch.arange(len(x)).split(batch_size):
            z, r = x[rows], math.exp(2 * level)
            noise = randn_like(z, generator)
            at_level = z.new_full((len(z),), level + math.log(scale))
            y = (scale * z + shift + scale * r**0.5 * noise) / (1 + scale**2 * r) ** 0.5
            x_tau, tau, f = denoiser.output(y, at_level, *(part[rows] for part in seen))
            off = {name: denoiser.noise_from(name, f, x_tau, tau) - noise for name in PREDICTIONS}
            known = reference.variance * reference.coordinates(noise) - r**0.5 * reference.offset(z)
            off["linear"] = known / (reference.variance + r)
            for name, values in off.items():
                errors[name][i, rows] = values.square().flatten(1).mean(1).double().cpu()
            parts = torch.stack([f[:, : z.shape[1]], x_tau, torch.ones_like(z), off[denoiser.predicts]]).flatten(1)
            products[i] += (parts.double() @ parts.double().T).cpu()
    size = products.diagonal(dim1=1, dim2=2).clamp_min(1e-300).sqrt()
    unit = products / (size[:, :, None] * size[:, None]) + 1e-10 * torch.eye(4)
    return errors, size[:, 3] ** 2 / torch.linalg.inv(unit)[:, 3, 3] / max(x.numel() - TAKEN, 1)


def _gains(denoiser: Any, asked: Asked, bits: Tensor) -> Iterator[tuple[str, float]]:
    """Other descriptions in words, and the bits/dim by which each is better, by ``bits`` for a unit of error.

    At the least noise paths differ too much to be compared, so only other predictions count there.
    """
    x, seen, levels, batch_size = asked
    rows = max(OTHERS, ENTRIES // x[0].numel())
    asked = (x := x[:rows], tuple(part[:rows] for part in seen), levels, batch_size)
    a, b, std, mean = (v.item() for v in (x.min(), x.max(), x.std(), x.mean()))
    scalings = {"[−1, 1]": ((b - a) / 2 or 1, (a + b) / 2), "[0, 1]": (b - a or 1, a), "deviation 1": (std or 1, mean)}
    tried = [(f"data of {name}", denoiser, 1 / size, -centre / size) for name, (size, centre) in scalings.items()]
    for words, path, time in denoiser.noises.others():
        network = lambda x, tau, *c, time=time: denoiser.network(x, time(tau.double()).to(tau), *c)  # noqa: E731
        tried.append((words, type(denoiser)(network, denoiser.predicts, path, steps=denoiser.steps), 1.0, 0.0))
    reference = GaussianReference.standard(x)
    errors = _errors(denoiser, asked, reference)[0]
    del errors["linear"]
    given = errors.pop(denoiser.predicts)
    for words, other, *scaling in tried:
        with suppress(IndexError, RuntimeError, ValueError):  # networks may not accept such a call
            errors[words] = _errors(other, asked, reference, *scaling)[0][denoiser.predicts]
    for words, error in errors.items():
        gain = bits * (given - error).mean(1)
        if words in PREDICTIONS:
            yield f"predicts={words!r}", gain.sum().item()
        else:
            yield words, gain[-NOISE_LEVELS:].sum().item()


def _verdict(levels: Tensor, lost: Tensor, ratio: Tensor, gains: Mapping[str, float]) -> tuple[str, bool]:
    """A sentence that follows from the rows, and whether something is wrong."""
    total, on_clock, where = lost.sum().item(), lost[-NOISE_LEVELS:].sum().item(), lost >= 0.5 * lost.max()
    if total < TRIED and ratio.max() < WEAK:
        return "nothing looks wrong", False
    noise = ", ".join(f"{noise:.2g}" for noise in levels[where].exp().tolist())
    text = f"loses at least {total:.2g} bits/dim, most at σ/α = {noise}"
    if (worst := ratio[where].max().item()) > WEAK:
        text += f", where its error is up to {worst:.2g} times that of the best linear predictor"
    words, gain = max(gains.items(), key=lambda item: item[1], default=("", 0.0))
    rest = on_clock - gain
    if gain >= max(TRIED, EXPLAINED * total) and rest <= min(REST * on_clock, max(LOST, OF_MUCH * on_clock)):
        return f"{words} fits the network better, by {gain:.2g} bits/dim: as described it {text}", True
    if gain >= TRIED:
        text += f"; the best of {len(gains)} other descriptions, {words}, loses {gain:.2g} bits/dim less"
    elif gains:
        text += f"; none of {len(gains)} other descriptions loses {TRIED} bits/dim less"
    if total < LOST:
        return f"the description looks right, but the network {text}", False
    return (
        f"the network {text}: it was trained too little there, or for other data than these, or with noise coupled to "
        "the data, or as none of these descriptions says. If the noise was coupled, the likelihood of the probability "
        "flow and its samples hold, the NELBO is loose, and SDE samplers, inpainting and classification do not apply"
    ), True
