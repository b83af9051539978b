r"""A variational autoencoder, the other model with a learned encoder: trained by the same loop, on the same data.

.. math:: p(x) = \int N\big(x;\,\mu(z),\,\mathrm{diag}\,\sigma^2(z)\big)\,N(z;\,0, I)\,dz, \qquad
          q(z|x) = N\big(m(x),\,\mathrm{diag}\,s^2(x)\big)

x is dequantized and in model units, so that its bound and an INDM's are one quantity in one unit.

A recipe for it is an ordinary one with another ``[net]``, "vae-conv" or "vae-mlp". ``[data]``, ``[train]`` and
``[evaluate]`` mean what they mean elsewhere; ``[flow]``, ``[sde]`` and the keys of ``[train]`` that speak of the flow's
rates are not read, and what would change an INDM's loss must be at its default::

    recipe = recipes.override(recipes.load("digits"), {"net": "vae-conv", "net.width": "24"})
    train_vae(recipe, "runs/vae")
    evaluate_run("runs/vae")
    x = sample(load("runs/vae"), 64)

The run folder holds ``vae.safetensors`` and ``vae.json`` where that of an INDM has ``model.safetensors`` and
``model.json``.

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.config import recipes
from indm.config.options import Evaluation, Training
from indm.config.recipes import Recipe
from indm.data.base import stack
from indm.data.registry import load_data
from indm.evaluation.likelihood import in_units
from indm.evaluation.runs import write_evaluation
from indm.files import atomic, untrusted
from indm.messages import reason
from indm.model import build, count_parameters, describe
from indm.nets.unet import SMALLEST_SIDE, group_norm
from indm.rng import randn_like
from indm.runs import provenance
from indm.runs.provenance import warn_of_other_splits
from indm.scaling import Scaling
from indm.tensors import evaluation_mode, event_size, squared_norm, zeroed
from indm.training.loop import train
from indm.training.trainer import Draw, Trainer

WEIGHTS, DESCRIPTION = "vae.safetensors", "vae.json"
LEAST_STD = 1e-3  # of the decoder, where the data have no grey levels
LEAST_LEVELS = 0.25  # of the decoder, in grey levels: uniform noise within one has a deviation of 0.29
WARMUP = 0.2  # first fraction of a run, in which the rate's weight rises to 1: else z is given up before it is of use
NO_VAE = ("objective", "pretrain", "soft_truncation", "isometry", "terminal", "latent_mean")  # keys of an INDM's loss
# Mean and log deviation of z given x, and of x given z.
Encoded = tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]
Decoded = tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]
PerSample = Float[Tensor, " batch"]


class Residual(nn.Module):
    """h ↦ h + conv(silu(norm(conv(silu(norm(h)))))); starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))


class ConvCoder(nn.Module):
    """Encoder and decoder of images: twice half the side, residual blocks of ``width`` and then 2 · ``width`` channels.

    Args:
        shape: (channels, height, width) of an image, height and width at least 8.
        width: feature channels at full resolution.
        latent: dimensions of z.

    Raises:
        ValueError: for a ``shape`` that is no image of side 8 or more, no channel, or no latent.
    """

    def __init__(self, shape, width: int = 32, latent: int = 32):
        super().__init__()
        self.shape, self.width, self.latent = tuple(shape), width, latent
        if len(self.shape) != 3 or min(self.shape[1:]) < SMALLEST_SIDE:
            raise ValueError(
                f"shape must be (channels, height, width) with height and width at least {SMALLEST_SIDE}, got "
                f"{self.shape}; use vae-mlp for vectors"
            )
        _check_sizes(width, latent)
        channels, wide = self.shape[0], 2 * width
        small = [-(-side // 4) for side in self.shape[1:]]
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            Residual(width),
            nn.Conv2d(width, wide, 3, stride=2, padding=1),
            Residual(wide),
            nn.Conv2d(wide, wide, 3, stride=2, padding=1),
            Residual(wide),
            group_norm(wide),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(wide * math.prod(small), 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, wide * math.prod(small)),
            nn.Unflatten(1, (wide, *small)),
            Residual(wide),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, wide, 3, padding=1),
            Residual(wide),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, width, 3, padding=1),
            Residual(width),
            group_norm(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * channels, 3, padding=1),
        )

    def encode(self, x: Float[Tensor, "batch *event"]) -> Encoded:
        """m and log s, (B, latent) each."""
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        return mean, log_std

    def decode(self, z: Float[Tensor, "batch latent"]) -> Decoded:
        """μ and log σ before it is bounded, (B, *event) each."""
        mean, log_std = self.decoder(z)[:, :, : self.shape[1], : self.shape[2]].chunk(2, dim=1)
        return mean, log_std


class MLPCoder(nn.Module):
    """Encoder and decoder of vectors: multilayer perceptrons.

    Args:
        shape: the event shape, any number of axes.
        width: hidden width.
        latent: dimensions of z.
        depth: hidden layers of each.

    Raises:
        ValueError: for no unit, no latent, or no layer.
    """

    def __init__(self, shape, width: int = 128, latent: int = 2, depth: int = 3):
        super().__init__()
        self.shape, self.width, self.latent, self.depth = tuple(shape), width, latent, depth
        _check_sizes(width, latent)
        if depth < 1:
            raise ValueError(f"depth must be at least 1 hidden layer, got {depth}")
        d = math.prod(self.shape)
        self.encoder = _perceptron(d, width, 2 * latent, depth)
        self.decoder = _perceptron(latent, width, 2 * d, depth)

    def encode(self, x: Float[Tensor, "batch *event"]) -> Encoded:
        """m and log s, (B, latent) each."""
        mean, log_std = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mean, log_std

    def decode(self, z: Float[Tensor, "batch latent"]) -> Decoded:
        """μ and log σ before it is bounded, (B, *event) each."""
        mean, log_std = self.decoder(z).unflatten(1, (2, *self.shape)).unbind(1)
        return mean, log_std


def _perceptron(inputs: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.SiLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _check_sizes(width: int, latent: int) -> None:
    if min(width, latent) < 1:
        raise ValueError(f"width and latent must be at least 1, got {width} and {latent}")


CONSTRUCTORS = {"net": {"vae-conv": ConvCoder, "vae-mlp": MLPCoder}}


class VAE(nn.Module):
    """p(x) = ∫ N(x; μ(z), diag σ²(z)) N(z; 0, I) dz, with the encoder q(z|x) = N(m(x), diag s²(x)).

    Args:
        coder: the networks, a module with ``latent``, ``encode`` and ``decode`` as :class:`ConvCoder` has them.
        scaling: how data units become model units; kept and saved with the model.
        shape: event shape.

    σ of every entry is learned, as a positive number above a quarter of a grey level, or above 1e-3 where there are
    none: less than dequantization noise needs, and more than would let a density of continuous data grow without bound.
    """

    is_diffusion: ClassVar[bool] = False

    def __init__(self, coder: nn.Module, scaling: Scaling, shape: tuple[int, ...]):
        super().__init__()
        self.coder, self.scaling, self.shape = coder, scaling, tuple(shape)

    def encode(self, x: Float[Tensor, "batch *event"]) -> Encoded:
        """m(x) and log s(x), (B, latent) each."""
        mean, log_std = self.coder.encode(x)
        return mean.to(x.dtype), log_std.to(x.dtype)

    def decode(self, z: Float[Tensor, "batch latent"]) -> Decoded:
        """μ(z) and log σ(z), (B, *event) each, in model units."""
        mean, log_std = (part.to(z.dtype) for part in self.coder.decode(z))
        least = LEAST_LEVELS / self.scaling.scale if self.scaling.levels else torch.tensor(LEAST_STD)
        return mean, torch.logaddexp(log_std, least.log().to(log_std))

    def bound(self, x: Float[Tensor, "batch *event"], *, generator: torch.Generator | None = None) -> "Bound":
        """See :func:`bound`."""
        return bound(self, x, generator=generator)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *event"]:
        """See :func:`sample`."""
        return sample(self, n, generator=generator)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "VAE":
        """See :func:`load`."""
        return load(folder, device)

    def save(self, folder: str | Path) -> None:
        """Write ``vae.safetensors`` and ``vae.json``, as :meth:`indm.INDM.save` does."""
        folder = Path(folder)
        description = {"format": 1, "shape": list(self.shape), "levels": self.scaling.levels}
        description |= {"net": describe(self.coder, "net", CONSTRUCTORS)}
        folder.mkdir(parents=True, exist_ok=True)
        weights = atomic.weights_into(self.state_dict())
        atomic.together({folder / WEIGHTS: weights, folder / DESCRIPTION: atomic.json_into(description)})


def build_vae(table: dict, shape: tuple[int, ...], scaling: Scaling) -> VAE:
    """A VAE from the ``[net]`` table of a recipe.

    Raises:
        ValueError: an unknown name or argument, or a bad value.
    """
    return VAE(build(table, "net", shape, CONSTRUCTORS), scaling, shape)


def load(folder: str | Path, device: str = "cpu") -> VAE:
    """Read what :meth:`VAE.save` wrote, in evaluation mode.

    Raises:
        ValueError: a file is missing or unreadable, or does not fit the other.
    """
    folder = Path(folder)
    try:
        description = untrusted.json_object(folder / DESCRIPTION)
        state = untrusted.weights(folder / WEIGHTS, device=str(device))
        scaling = Scaling(state["scaling.shift"], state["scaling.scale"], description["levels"])
        make = functools.partial(build_vae, description["net"], tuple(description["shape"]), scaling)
        untrusted.check_described(make, description, state)
        model = make()
        model.load_state_dict(state)
    except Exception as error:  # what is damaged, or described by a stranger, surfaces as almost anything
        raise ValueError(f"no VAE can be read in {folder}: {reason(error)}") from error
    return model.to(device).eval()


@dataclass(frozen=True)
class Bound:
    """The terms of −log p(x) ≤ distortion + rate, nats in model units, each (B,)."""

    distortion: Tensor
    rate: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, (B,): the negative ELBO."""
        return self.distortion + self.rate

    @property
    def reconstruction(self) -> Tensor:
        """Zeros, (B,): it is a bound of x itself, not of a noised x."""
        return torch.zeros_like(self.rate)


def bound(model: VAE, x: Float[Tensor, "batch *event"], *, generator: torch.Generator | None = None) -> Bound:
    """An unbiased draw of the negative ELBO of each sample: −log p(x|z) at one z ~ q(z|x), and KL(q(z|x) ‖ N(0, I)).

    Args:
        model: the VAE, used in the mode in which it is.
        x: data in model units.
    """
    mean, log_std = model.encode(x)
    z = mean + log_std.exp() * randn_like(mean, generator)
    return Bound(distortion=-normal_log_prob(x, *model.decode(z)), rate=kl_from_standard(mean, log_std))


def normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> PerSample:
    """log N(x; mean, diag e^{2 log_std}) in nats, (B,)."""
    whitened = (x - mean) * (-log_std).exp()
    return -0.5 * squared_norm(whitened) - log_std.flatten(1).sum(1) - 0.5 * event_size(x) * math.log(2 * math.pi)


def kl_from_standard(mean: Tensor, log_std: Tensor) -> PerSample:
    """KL(N(mean, diag e^{2 log_std}) ‖ N(0, I)) in nats, (B,)."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).flatten(1).sum(1)


@torch.no_grad()
def sample(model: VAE, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *event"]:
    """``n`` samples of p(x) in model units, decoder noise included; ``model.scaling.to_data`` gives data units."""
    if n < 1:
        raise ValueError(f"n must be at least 1 sample, got {n}")
    like = model.scaling.scale
    z = torch.randn(n, model.coder.latent, generator=generator, device=like.device, dtype=like.dtype)
    mean, log_std = model.decode(z)
    return mean + log_std.exp() * randn_like(mean, generator)


def matching_width(table: dict, shape: tuple[int, ...], parameters: int) -> int:
    """The ``width`` with which the networks of ``table`` come nearest to so many parameters in all.

    Raises:
        ValueError: where not even width 1 has so few that it comes within a factor of two.
    """

    def count(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(table | {"width": width}, "net", shape, CONSTRUCTORS))

    width = 1
    while count(width + 1) <= parameters:
        width += 1
    nearest = min((width, width + 1), key=lambda w: abs(count(w) - parameters))
    if count(nearest) > 2 * parameters:
        raise ValueError(f"parameters must be at least {count(1) // 2} for {table}, got {parameters}; lower the latent")
    return nearest


class VAEStep(nn.Module):
    """The bound as a training step, x ↦ (loss in nats per dimension, terms in nats per sample).

    ``weight`` is that of the rate in the loss: 1 is the bound, less lets the code be used before it is paid for.

    Source: Sønderby et al. 2016, "Ladder Variational Autoencoders", §2.3, https://arxiv.org/abs/1602.02282.
    """

    def __init__(self, model: VAE):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        terms = bound(self.model, x)
        distortion, rate = terms.distortion.mean(), terms.rate.mean()
        loss = (distortion + weight * rate) / event_size(x)
        known = {"loss": loss, "nelbo": distortion + rate, "distortion": distortion, "rate": rate}
        return loss, {name: term.detach() for name, term in known.items()}


class VAETrainer(Trainer):
    """:class:`~indm.training.trainer.Trainer` of a VAE."""

    shown = ("distortion", "rate")

    def build_model(self, recipe: Recipe) -> VAE:
        default = Training()
        for key in NO_VAE:
            if getattr(self.options, key) != getattr(default, key):
                raise ValueError(
                    f"train.{key} must be {getattr(default, key)!r} for a VAE, which has no flow and no diffusion, got "
                    f"{getattr(self.options, key)!r}"
                )
        return build_vae(recipe["net"], self.data.shape, self.data.scaling)

    def parameter_groups(self) -> list[dict]:
        o = self.options
        return [
            {"name": "vae", "params": list(self.model.parameters()), "base_lr": o.lr, "weight_decay": o.weight_decay}
        ]

    def build_step(self, recipe: Recipe) -> VAEStep:
        return VAEStep(self.model)

    def conditions(self) -> dict:
        return {"weight": min(1.0, self.progress / WARMUP)}

    def bound(self, model: VAE, raw: Tensor) -> Draw:
        return lambda x, generator: bound(model, x, generator=generator).total


def train_vae(recipe: Recipe, out: str | Path, *, resume: bool = False, progress: bool = True) -> dict:
    """:func:`indm.training.loop.train` for a VAE, with a recipe whose ``[net]`` is "vae-conv" or "vae-mlp"."""
    return train(recipe, out, resume=resume, progress=progress, trainer=VAETrainer)


def evaluate(
    model: VAE, raw: Tensor, *, repeats: int = 2, batch_size: int = 256, seed: int = 0
) -> tuple[dict, dict[str, Tensor]]:
    """The negative ELBO of raw data (N, *event) in data units, reported as :func:`indm.evaluate` does.

    The bound is one of x itself, not of a noised x: there is no truncation (``eps`` 0) and no reconstruction term, so
    that the numbers with and without it are one. With the seed and the batch size of an INDM's evaluation the
    dequantization is the same, too.

    Returns:
        A JSON-able report, and nats of the raw data by name: ``nelbo`` and ``nelbo_without_reconstruction``, (N,).
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, got {repeats}: one draw cannot show its own noise")
    if len(raw) < 2:
        raise ValueError(f"raw must hold at least 2 samples for a standard error, got {len(raw)}")
    device, levels, dims = model.scaling.scale.device, model.scaling.levels, math.prod(raw.shape[1:])
    generator, draws = torch.Generator(device), []
    with evaluation_mode(model):
        for index, batch in enumerate(raw.split(batch_size)):
            for repeat in range(repeats):
                generator.manual_seed(seed + 1_000_003 * (index * repeats + repeat))
                x = model.scaling.to_model(batch.to(device), generator=generator)
                draws.append(bound(model, x, generator=generator).total.double().cpu())
    nats = torch.stack([torch.cat(draws[r::repeats]) for r in range(repeats)]) + model.scaling.log_scale(model.shape)
    numbers = in_units(nats, dims)
    report = {
        "images": {"nelbo": len(raw), "nll": 0},
        "dims": dims,
        "dequantization": f"uniform, {levels} grey levels" if levels else "none (continuous data)",
        "eps": 0.0,
        "repeats": repeats,
        "seed": seed,
        "nelbo": {"with_reconstruction": numbers, "without_reconstruction": numbers},
    }
    return report, {"nelbo": nats.mean(0), "nelbo_without_reconstruction": nats.mean(0)}


def evaluate_vae_run(run: str | Path) -> dict:
    """Evaluate a VAE's run folder as its recipe's ``[evaluate]`` says; writes evaluation.json and evaluation.npz there.

    A VAE has no NLL: ``indm compare`` and ``indm report`` compare the bounds.

    Returns:
        What is written into evaluation.json.
    """
    run = Path(run)
    recipe = recipes.resolve(recipes.load(run))
    options, data = Evaluation(**recipe["evaluate"]), load_data(**recipe["data"])
    warn_of_other_splits(run, data)
    model = load(run, device=provenance.device())
    raw = stack(getattr(data, options.split), options.examples)
    report, nats = evaluate(model, raw, repeats=options.repeats, batch_size=options.batch_size, seed=options.seed)
    write_evaluation(run, report, nats, recipe, data, options.split)
    return report
