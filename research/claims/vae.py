r"""A variational autoencoder, the other model with a learned encoder: trained by the same loop, on the same data.

.. math:: p(x) = \int N\big(x;\,\mu(z),\,\mathrm{diag}\,\sigma^2(z)\big)\,N(z;\,0, I)\,dz, \qquad
          q(z|x) = N\big(m(x),\,\mathrm{diag}\,s^2(x)\big)

x is dequantized and in model units, so that its bound and an INDM's are one quantity in one unit.

Its objective is "elbo", its network "vae-conv" or "vae-mlp"; the tables ``[flow]`` and ``[sde]`` of the recipe and the
options of ``[train]`` for the flow are not used::

    recipe = indm.recipe("digits", {"train.objective": "elbo", "net": "vae-conv", "net.width": 24})
    indm.train(recipe, "runs/vae")
    x = VAE.load("runs/vae").sample(64)

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.files import untrusted
from indm.model import build, count_parameters, describe, reading, write_model
from indm.names import name_of
from indm.objective import Losses, as_objective
from indm.rng import randn_like
from indm.scaling import Scaling
from indm.tensors import event_size, squared_norm
from indm.workbench.recipes.recipe import Recipe
from research.claims.coders import Decoded, Encoded

LEAST_STD = 1e-3  # of the decoder, where the data have no grey levels
LEAST_LEVELS = 0.25  # of the decoder, in grey levels: uniform noise within one has a deviation of 0.29
WARMUP = 0.2  # fraction of a run in which the rate's weight rises to 1; at 1 from the start, z would stay unused
PerSample = Float[Tensor, " batch"]


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
        """Zeros, (B,): the bound is one of x itself, not of a noised x as an INDM's."""
        return torch.zeros_like(self.rate)


class VAE(nn.Module):
    """p(x) = ∫ N(x; μ(z), diag σ²(z)) N(z; 0, I) dz, with the encoder q(z|x) = N(m(x), diag s²(x)).

    Args:
        coder: the networks, see :mod:`research.claims.coders`.
        scaling: how data units become model units; saved with the model.
        shape: event shape.

    σ of every entry is learned, as a positive number above a quarter of a grey level, or above 1e-3 where there are
    none. That is less than dequantization noise needs, and keeps the density of continuous data bounded.
    """

    is_diffusion: ClassVar[bool] = False

    def __init__(self, coder: nn.Module, scaling: Scaling, shape: tuple[int, ...]):
        super().__init__()
        self.coder, self.scaling, self.shape = coder, scaling, tuple(shape)

    @property
    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that have learning rates of their own: it is one."""
        return {"vae": self}

    def encode(self, x: Float[Tensor, "batch *event"]) -> Encoded:
        """m(x) and log s(x), (B, latent) each."""
        mean, log_std = self.coder.encode(x)
        return mean.to(x.dtype), log_std.to(x.dtype)

    def decode(self, z: Float[Tensor, "batch latent"]) -> Decoded:
        """μ(z) and log σ(z), (B, *event) each, in model units."""
        mean, log_std = (part.to(z.dtype) for part in self.coder.decode(z))
        least = LEAST_LEVELS / self.scaling.scale if self.scaling.levels else torch.tensor(LEAST_STD)
        return mean, torch.logaddexp(log_std, least.log().to(log_std))

    def bound(self, x: Float[Tensor, "batch *event"], *, generator: torch.Generator | None = None) -> Bound:
        """An unbiased draw of the negative ELBO of each sample: −log p(x|z) at one z ~ q(z|x), and the rate.

        Args:
            x: data in model units.

        Returns:
            ``distortion`` −log p(x|z) and ``rate`` KL(q(z|x) ‖ N(0, I)), nats in model units.
        """
        mean, log_std = self.encode(x)
        z = mean + log_std.exp() * randn_like(mean, generator)
        return Bound(distortion=-normal_log_prob(x, *self.decode(z)), rate=kl_from_standard(mean, log_std))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *event"]:
        """``n`` samples of p(x) in model units, decoder noise included; ``scaling.to_data`` gives data units."""
        if n < 1:
            raise ValueError(f"n must be at least 1 sample, got {n}")
        like = self.scaling.scale
        z = torch.randn(n, self.coder.latent, generator=generator, device=like.device, dtype=like.dtype)
        mean, log_std = self.decode(z)
        return mean + log_std.exp() * randn_like(mean, generator)

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json``, as :meth:`indm.INDM.save` does."""
        write_model(self, folder, {"model": name_of("model", VAE), "net": describe(self.coder, "net")})

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "VAE":
        """Read what :meth:`save` wrote, in evaluation mode.

        Raises:
            ValueError: a file is missing or unreadable, or does not fit the other.
        """
        with reading(folder) as saved:
            make = functools.partial(build_vae, saved.description["net"], saved.shape, saved.scaling)
            model = untrusted.build_described(make, saved.description, saved.state)
            model.load_state_dict(saved.state)
        return model.to(device).eval()


def build_vae(table: Mapping[str, Any], shape: tuple[int, ...], scaling: Scaling) -> VAE:
    """A VAE from the ``[net]`` table of a recipe.

    Raises:
        ValueError: an unknown name or argument, a bad value, or a network that is no coder.
    """
    coder = build(table, "net", shape)
    missing = [name for name in ("latent", "encode", "decode") if not hasattr(coder, name)]
    if missing:
        raise ValueError(
            "the objective elbo needs a net with latent, encode and decode, such as ConvCoder or MLPCoder, got "
            f"{table.get('name')!r} without {', '.join(missing)}"
        )
    return VAE(coder, scaling, shape)


def _build(recipe: Recipe, shape: tuple[int, ...], scaling: Scaling) -> VAE:
    noise = recipe.get("dequantization", {}).get("name", "uniform")
    if noise != "uniform":
        raise ValueError(f"dequantization must be uniform with the objective elbo, got {noise!r}")
    return build_vae(recipe["net"], shape, scaling)


@as_objective(build=_build, shown=("distortion", "rate"), truncates=False)
def elbo(model: VAE, x: Tensor, *, progress: float) -> Losses:
    """The negative ELBO with a weight of the rate that rises to 1 over the first fifth of the run.

    A rate that is paid for in full from the start would leave the code unused.

    Args:
        progress: fraction of the run that is over.

    Returns:
        The loss in nats per dimension, and the mean terms in nats per sample: ``nelbo``, ``distortion``, ``rate``.

    Source: Sønderby et al. 2016, "Ladder Variational Autoencoders", §2.3, https://arxiv.org/abs/1602.02282.
    """
    terms = model.bound(x)
    distortion, rate = terms.distortion.mean(), terms.rate.mean()
    loss = (distortion + min(1.0, progress / WARMUP) * rate) / event_size(x)
    return loss, {"nelbo": (distortion + rate).detach(), "distortion": distortion.detach(), "rate": rate.detach()}


def normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> PerSample:
    """log N(x; mean, diag e^{2 log_std}) in nats, (B,)."""
    whitened = (x - mean) * (-log_std).exp()
    return -0.5 * squared_norm(whitened) - log_std.flatten(1).sum(1) - 0.5 * event_size(x) * math.log(2 * math.pi)


def kl_from_standard(mean: Tensor, log_std: Tensor) -> PerSample:
    """KL(N(mean, diag e^{2 log_std}) ‖ N(0, I)) in nats, (B,)."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).flatten(1).sum(1)


def matching_width(table: Mapping[str, Any], shape: tuple[int, ...], parameters: int) -> int:
    """The ``width`` with which the networks of ``table`` have most nearly that many parameters.

    Raises:
        ValueError: even width 1 has more than twice as many.
    """

    def count(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build({**table, "width": width}, "net", shape))

    width = 1
    while count(width + 1) <= parameters:
        width += 1
    nearest = min((width, width + 1), key=lambda w: abs(count(w) - parameters))
    if count(nearest) > 2 * parameters:
        raise ValueError(f"parameters must be at least {count(1) // 2} for {table}, got {parameters}; lower the latent")
    return nearest
