r"""Dequantization: the noise that makes grey levels continuous, and its log-density.

Grey levels are discrete; a density model is compared on them only through noise inside their bins,

.. math:: -\log P(\text{raw}) \le E_{u \sim q(u|\text{raw})} [ -\log p(\text{raw} + u) + \log q(u|\text{raw}) ].

Every q gives a bound of the same probability, so the numbers of models with different noise may be
compared.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.checks import require
from indm.protocols import Model
from indm.scaling import Scaling
from indm.sde.linear import Kernel
from indm.tensors import Batch, PerSample, double, rand_like, widest

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# deviations of the noise from one grey level to the next, from which z_ε tells them apart
CERTAIN = 20.0


class Dequantization(nn.Module, ABC):
    """The law q(u|raw) of noise u in (0, 1), in units of one grey level.

    To write one, define :meth:`forward` and :attr:`in_words`. Where it has parameters they are
    trained with the model, through u and through log q. ``decodes`` says that it has a decoder of
    its own, as :class:`GreyLevels`.

    Example: the mean of two uniform numbers has the density 4 min(u, 1 − u), of entropy ½ − log 2.

        >>> import math
        >>> class Triangular(Dequantization):
        ...     in_words = "triangular"
        ...     def forward(self, centre, *, generator=None):
        ...         u = 0.5 * (rand_like(centre, generator) + rand_like(centre, generator))
        ...         return u, (4 * torch.minimum(u, 1 - u)).log().flatten(1).sum(1)
        >>> u, log_q = Triangular()(torch.zeros(10_000, 1))
        >>> abs(-log_q.mean().item() - (0.5 - math.log(2))) < 0.05  # of a mean whose deviation is 0.005
        True
    """

    decodes: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self, centre: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Batch, PerSample]:
        """A draw of u and log q(u|raw) in nats (B,), where ``centre`` are the middles of the bins
        in model units.
        """

    @property
    @abstractmethod
    def in_words(self) -> str:
        """Description of the noise for a report."""

    def constant_log_q(self, scaling: Scaling, shape: tuple[int, ...]) -> float | None:
        """log q(x|raw) in nats where it is the same for all raw data of that event shape; None
        where it is not.
        """
        return None


class Uniform(Dequantization):
    """u is uniform: log q = 0. The density that the model has to learn has a box with sharp edges
    at each level.

    Example:

        >>> u, log_q = Uniform()(torch.zeros(3, 2))
        >>> u.shape, bool((u >= 0).all() and (u < 1).all()), log_q.tolist()
        (torch.Size([3, 2]), True, [0.0, 0.0, 0.0])
    """

    in_words = "uniform"

    def forward(
        self, centre: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Batch, PerSample]:
        return rand_like(centre, generator), centre.new_zeros(len(centre))

    def constant_log_q(self, scaling: Scaling, shape: tuple[int, ...]) -> float:
        return -scaling.log_volume(shape)


class GreyLevels(Dequantization):
    r"""No noise: a grey level is the middle of its bin, and z_ε is decoded to the levels by Bayes'
    rule.

    .. math:: P(\text{raw}|z_\epsilon) \propto q(z_\epsilon|\text{raw}), \qquad
              -\log P(\text{raw}) \le E[-\log p_\epsilon(z_\epsilon) + \log q(z_\epsilon|\text{raw})
              - \log P(\text{raw}|z_\epsilon)].

    The decoder is one of each entry by itself, so the model's flow must be the identity. It suits
    networks that were trained on the levels themselves. The bound holds at every ε, and is best
    where the network has learned best. To train with it, set ``sde.eps`` so that σ_ε/α_ε is about a
    fifth of the distance of two levels.

    Source: Kingma et al. 2021, "Variational Diffusion Models", eq. 8,
    https://arxiv.org/abs/2107.00630.

    Example: N(0, I) and its exact score give −log P near the middle, of 256 levels from −1 to 1:
    log(127.5 √(2π)).

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> tables |= {"dequantization": {"name": "levels"}}
        >>> model = indm.build_model(tables, (1, 2, 2), indm.Scaling.between(-1, 1))
        >>> report = indm.importance_bound(model, torch.full((1, 1, 2, 2), 127), draws=32, eps=1e-3)
        >>> abs(report.nats.item() - 4 * 5.767) < 0.2
        True
    """

    in_words = "none"
    decodes = True

    def forward(
        self, centre: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Batch, PerSample]:
        return torch.full_like(centre, 0.5), centre.new_zeros(len(centre))

    def constant_log_q(self, scaling: Scaling, shape: tuple[int, ...]) -> float:
        return 0.0

    def reconstruction(self, scaling: Scaling, kernel: Kernel, z: Batch, noise: Batch) -> PerSample:
        """log q(z_ε|raw) − log P(raw|z_ε) at z_ε = α z + σ noise, nats, (B,)."""
        sigma, step = _widths(scaling, kernel)
        level = scaling.level(z).to(sigma.device)
        per_entry = (
            log_share(double(noise), level, step, _count(scaling)) - sigma.log() - HALF_LOG_2PI
        )
        return per_entry.flatten(1).sum(1).to(z)

    def mean_reconstruction(self, scaling: Scaling, kernel: Kernel, z: Batch) -> PerSample:
        """:meth:`reconstruction` on average over the noise, by the trapezium rule for each grey
        level, nats, (B,).
        """
        sigma, step = _widths(scaling, kernel)
        step = min(step, CERTAIN)
        n = torch.linspace(
            -9, 9, 1 + 2 * math.ceil(9 * max(4.0, 3 * step)), dtype=sigma.dtype, device=sigma.device
        )
        levels, weight = torch.arange(_count(scaling), device=n.device), (-0.5 * n**2).exp()
        of_level = log_share(n, levels[:, None], step, len(levels)) @ (weight / weight.sum())
        per_entry = of_level[scaling.level(z).to(sigma.device)] - sigma.log() - HALF_LOG_2PI
        return per_entry.flatten(1).sum(1).to(z)


def _widths(scaling: Scaling, kernel: Kernel) -> tuple[Tensor, float]:
    """σ, and the distance of two neighbouring grey levels at ε in units of σ."""
    sigma, alpha = double(kernel.sigma.flatten()[0]), double(kernel.alpha.flatten()[0])
    return sigma, (alpha / (sigma * double(scaling.scale))).item()


def _count(scaling: Scaling) -> int:
    """The number of grey levels."""
    assert scaling.levels is not None, "continuous data have no grey levels"
    return scaling.levels


def log_share(n: Tensor, level: Tensor, step: float, levels: int) -> Tensor:
    """log Σ_l exp(−½(n − (l − level) step)²) over the grey levels l: −½n² − log P(level|z_ε), entry
    by entry.
    """
    largest = n.abs().max().item() if n.numel() else 0.0
    reach = min(levels - 1, math.ceil((largest + 9) / step))  # farther levels add less than e^{-40}
    total = torch.full(
        torch.broadcast_shapes(n.shape, level.shape), -math.inf, dtype=n.dtype, device=n.device
    )
    for offset in range(-reach, reach + 1):
        exists = (level + offset >= 0) & (level + offset < levels)
        total = torch.logaddexp(
            total, torch.where(exists, -0.5 * (n - offset * step) ** 2, -math.inf)
        )
    return total


def checked(dequantization: Dequantization | None, scaling: Scaling) -> Dequantization | None:
    """The noise of data with that scaling: ``dequantization``, by default uniform; None for
    continuous data.
    """
    if dequantization is None:
        return None if scaling.levels is None else Uniform()
    name = type(dequantization).__name__
    check_levels_for(name, scaling)
    if dequantization.decodes and scaling.scale.numel() > 1:
        raise ValueError(
            f"scaling must have one scale for all entries under {name}, got {scaling.scale.numel()}"
        )
    return dequantization


def decoder_of(model: Model) -> Any:
    """The model's noise where that decodes, as :class:`GreyLevels`; None where the score does."""
    noise = model.dequantization
    return noise if noise is not None and noise.decodes else None


def constant_log_q(model: Model, x: Tensor) -> Float[Tensor, " batch"]:
    """log q(x|raw), nats (B,), where it is the same for all raw data; ValueError for noise of
    another kind.
    """
    scaling, noise = model.scaling, model.dequantization
    shape = tuple(x.shape[1:])
    log_q = -scaling.log_volume(shape) if noise is None else noise.constant_log_q(scaling, shape)
    if log_q is None:
        raise ValueError(
            f"log_q must be given for {type(noise).__name__} noise: x, log_q = model.from_data(raw), then log_q=log_q"
        )
    return x.new_full((len(x),), log_q, dtype=widest(x.device))


def check_levels_for(name: str, scaling: Scaling) -> None:
    """ValueError where the data have no grey levels, which noise of that name needs."""
    has, hint = (
        scaling.levels is not None,
        "whole numbers have them where they are stored as integers",
    )
    require(
        has, "dequantization", name, "left out for continuous data, which have no grey levels", hint
    )


def check_raw(model: Model, raw: Tensor) -> None:
    """ValueError unless ``raw`` are data of this model in data units, see
    :meth:`indm.Scaling.check`.
    """
    model.scaling.check(raw, model.shape if model.has_shape else None)


def from_data(
    model: Model, raw: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, PerSample]:
    """x in model units, and log q(x|raw) in nats, (B,): −log p(raw) ≤ E[−log p(x) + log q(x|raw)],
    see :func:`check_raw`.

    Of continuous data log q is the log of the scale, with which equality holds.
    """
    scaling, noise = model.scaling, model.dequantization
    centre = scaling.centre(raw)
    log_volume = scaling.log_volume_on_device(raw.shape[1:])
    if noise is None:
        return centre, (-log_volume).expand(len(raw))
    u, log_q = noise(centre, generator=generator)
    return scaling.place(raw, u), log_q.to(log_volume.dtype) - (0 if noise.decodes else log_volume)


def in_words(model: Model) -> str:
    """Description of the noise that the grey levels of a model get, and of its part in the
    likelihood.
    """
    scaling, noise = model.scaling, model.dequantization
    if noise is None:
        return "none (continuous data)"
    if noise.decodes:
        return f"none, {scaling.levels} grey levels, decoded by P(level|z_ε)"
    m = f"{scaling.margin:.3g}"
    return f"{noise.in_words} on [{m}, 1 − {m}], {scaling.levels} grey levels, its density counted"
