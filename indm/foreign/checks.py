"""Whether a network trained elsewhere fits what was said of it, on data."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from indm.dequantization import check_raw, from_data
from indm.foreign.denoiser import PREDICTIONS, Denoiser
from indm.likelihood import latent_reference
from indm.score import context_of, unguided
from indm.tensors import evaluation_mode, expand_like

NOISE_LEVELS = 8  # at which the error is measured, evenly on the clock
LINEAR = 1.2  # ratio of the sum of errors to that of the best linear predictor from which something is said
MISTAKEN, NOTICED = 0.5, 0.02  # ratio and difference of excess errors from which another kind is said to fit better
MOST_ENTRIES = 2**20  # of data, of which the best combination is found
LARGE = 20.0  # |x| of data in model units that no usual scaling gives


@dataclass(frozen=True)
class DenoiserCheck:
    """The error of a denoiser on data, by noise level.

    Attributes:
        levels: log(σ/α), (8,).
        errors: for each kind of prediction that the network could have made, E‖n − n̂‖²/d at each level, (8,).
        linear: that of the best linear predictor of these data, (8,).
        predicts: the kind that the model was given.
        findings: sentences, one for each thing that looks wrong.

    Example: two noise levels, at which the network knows more than a linear predictor.

        >>> error, linear = torch.tensor([0.5, 0.01]), torch.tensor([0.9, 0.02])
        >>> print(DenoiserCheck(torch.tensor([-1.0, 3.0]), {"noise": error}, linear, "noise", ()))
        error of n̂ as       noise    linear
        σ/α     0.3679         0.5       0.9
        σ/α      20.09        0.01      0.02
        nothing looks wrong
    """

    levels: Float[Tensor, " levels"]
    errors: dict[str, Float[Tensor, " levels"]]
    linear: Float[Tensor, " levels"]
    predicts: str
    findings: tuple[str, ...]

    def __str__(self) -> str:
        """A table, a row for each noise level, and the findings."""
        names = [self.predicts, *(name for name in self.errors if name != self.predicts)]
        lines = ["error of n̂ as".ljust(16) + "".join(f"{name:>10}" for name in names) + f"{'linear':>10}"]
        for i, level in enumerate(self.levels.tolist()):
            values = [*(self.errors[name][i].item() for name in names), self.linear[i].item()]
            lines.append(f"σ/α {math.exp(level):10.4g}  " + "".join(f"{value:10.3g}" for value in values))
        return "\n".join([*lines, *(self.findings or ["nothing looks wrong"])])


def is_foreign(model) -> bool:
    """Whether the score of a model is a :class:`Denoiser`."""
    return isinstance(getattr(model.score, "backbone", None), Denoiser)


def denoiser_of(model) -> Denoiser:
    """The network of a model of :func:`indm.from_denoiser`; ValueError where it is another one."""
    if not is_foreign(model):
        raise ValueError(f"model must come from from_denoiser, got one with {type(model.score).__name__}")
    return model.score.backbone


def check_denoiser(
    model,
    raw: Num[Tensor, "batch *event"],
    *,
    c=None,
    most: int = 256,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> DenoiserCheck:
    r"""Measure the denoising error of a model of :func:`indm.from_denoiser` on data, and say what looks wrong.

    The output is read as each kind of prediction. Where another kind is much nearer to the best combination of x_τ and
    the output, that is probably what the network predicts. An error above that of the best linear predictor says that
    the network is not E[n|x_τ]: it was trained too little, noise and data were coupled in training (as by optimal
    transport, or rectified), or the path, the scaling or the unit of τ is another one. :func:`indm.evaluate` calls this
    once and warns of each finding.

    Args:
        model: what :func:`indm.from_denoiser` made.
        raw: data in data units.
        c: their conditions, of a model that has one.
        most: how many are used.
        batch_size: samples at a time.
        generator: feeds the noise.

    Raises:
        ValueError: the model is not of :func:`indm.from_denoiser`.

    Example: a network of N(0, I) data that predicts the data, and is said to predict the noise.

        >>> import indm
        >>> def data(x, tau):
        ...     return (1 - tau)[:, None] / ((1 - tau) ** 2 + tau**2)[:, None] * x
        >>> model = indm.from_denoiser(data, predicts="noise", path="linear", shape=(2,))
        >>> check = indm.check_denoiser(model, torch.randn(256, 2, generator=torch.Generator().manual_seed(0)))
        >>> print(check.findings[0].split(":")[0])
        the network's output looks like 'data', not 'noise'
    """
    predicts = denoiser_of(model).predicts
    check_raw(model, raw)
    c, raw = model.rows(c, len(raw)), raw[:most]
    c = None if c is None else c[:most]
    start, end = model.sde.clock_span()
    levels = 0.5 * (start + (end - start) * (torch.arange(NOISE_LEVELS).double() + 0.5) / NOISE_LEVELS)
    with evaluation_mode(model):
        x = from_data(model, raw, generator=generator)[0]
        errors, least = _errors(unguided(model).given(c, len(x)), x, levels, batch_size, generator)
    variance = latent_reference(model, raw, c=c).variance.double().cpu()
    linear = (variance / (variance + (2 * levels[:, None]).exp())).mean(1)
    share = (2 * levels).sigmoid()  # of the noise: where it is small, a network of data gives it badly
    excess = {name: (share * (values - least)).sum().item() for name, values in errors.items()}
    findings = tuple(_findings(model, x, errors, excess, linear))
    return DenoiserCheck(levels, errors, linear, predicts, findings)


def _errors(
    model, x: Tensor, levels: Tensor, batch_size: int, generator: torch.Generator | None
) -> tuple[dict[str, Tensor], Float[Tensor, " levels"]]:
    """E‖n − n̂‖²/d at each level for each kind of prediction, and for the best n̂ = a f + b x_τ, as all kinds are."""
    denoiser, seen = denoiser_of(model), context_of(model.score)
    errors, least = {name: torch.zeros_like(levels) for name in PREDICTIONS}, torch.zeros_like(levels)
    for i, level in enumerate(levels.tolist()):
        triples = []
        for rows in torch.arange(len(x)).split(batch_size):
            z, given = x[rows], [c[rows] for c in seen]
            noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            at_level = z.new_full((len(z),), level)
            alpha, sigma = (expand_like((sign * at_level).sigmoid().sqrt(), z) for sign in (-2, 2))
            x_tau, tau, f = denoiser.output(alpha * z + sigma * noise, at_level, *given)
            for name in PREDICTIONS:
                off = denoiser.noise_from(name, f, x_tau, tau) - noise
                errors[name][i] += off.square().sum().item() / x.numel()
            every = max(1, x.numel() // MOST_ENTRIES)
            parts = [part.flatten()[::every] for part in (f[:, : z.shape[1]], x_tau, noise)]
            triples.append(torch.stack(parts, 1).double().cpu())
        known, noises = torch.cat(triples).split([2, 1], 1)
        least[i] = (known @ torch.linalg.lstsq(known, noises, driver="gelsd").solution - noises).square().mean()
    return errors, least


def _findings(model, x: Tensor, errors: dict[str, Tensor], excess: dict[str, float], linear: Tensor):
    """A sentence for each thing that looks wrong."""
    predicts, largest = denoiser_of(model).predicts, x.abs().max().item()
    best, total = min(excess, key=excess.__getitem__), errors[predicts].sum()
    if largest > LARGE:
        yield (
            f"data in the network's units reach {largest:.3g}: give the scaling with which it was trained, such as "
            "scaling=indm.Scaling.between(-1, 1) for grey levels"
        )
    if excess[best] < MISTAKEN * excess[predicts] - NOTICED:
        yield (
            f"the network's output looks like {best!r}, not {predicts!r}: its squared error of the noise is "
            f"{excess[best]:.2g} as {best!r} and {excess[predicts]:.2g} as {predicts!r}, above that of the best "
            "combination of x and the output, summed over noise levels by their share of noise"
        )
    elif total > LINEAR * linear.sum():
        yield (
            f"the denoising error, {total:.3g} summed over noise levels, is above {linear.sum():.3g}, that of the best "
            "linear predictor, so the network is not E[noise|x]: it was trained too little, noise and data were "
            "coupled in training, or the path, the scaling or the unit of τ is another one. If they were coupled, the "
            "likelihood of the probability flow and its samples hold, the NELBO is loose, and SDE samplers, inpainting "
            "and classification do not apply"
        )
