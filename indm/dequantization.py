r"""Dequantization: the noise that makes grey levels continuous, and its log-density.

Grey levels are discrete; a density model is compared on them only through noise inside their bins,

.. math:: -\log P(\text{raw}) \le E_{u \sim q(u|\text{raw})} [ -\log p(\text{raw} + u) + \log q(u|\text{raw}) ].

Every q gives a bound of the same probability, so the numbers of models with different noise may be compared.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.flows.coupling import Affine, Conditioner
from indm.rng import rand_like
from indm.scaling import Scaling
from indm.tensors import Batch, PerSample, image_or_vector

LEAST = 2.0**-25  # below what torch.rand gives, other than 0


class Dequantization(nn.Module, ABC):
    """The law q(u|raw) of noise u in (0, 1), in units of one grey level.

    To write one, define :meth:`forward` and :attr:`in_words`. Where it has parameters they are trained with the model,
    through u and through log q.

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

    @abstractmethod
    def forward(self, centre: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        """A draw of u and log q(u|raw) in nats (B,), where ``centre`` are the middles of the bins in model units."""

    @property
    @abstractmethod
    def in_words(self) -> str:
        """What a report says of the noise."""


class Uniform(Dequantization):
    """u is uniform: log q = 0. The density that the model has to learn has a box with sharp edges at each level.

    Example:

        >>> u, log_q = Uniform()(torch.zeros(3, 2))
        >>> u.shape, bool((u >= 0).all() and (u < 1).all()), log_q.tolist()
        (torch.Size([3, 2]), True, [0.0, 0.0, 0.0])
    """

    in_words = "uniform"

    def forward(self, centre: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        return rand_like(centre, generator), centre.new_zeros(len(centre))


class Variational(Dequantization):
    """u is a small conditional flow of uniform noise, given the image: affine couplings of its logits.

    A coupling moves the entries of one colour of a checkerboard, given the others and the grey levels of all. It
    starts as uniform noise.

    Args:
        shape: event shape, (C, H, W) or (D,).
        width: hidden channels of the conditioners.
        depth: couplings; at least 2, so that every entry is moved.

    Source: Ho et al. 2019, "Flow++", §3.1, https://arxiv.org/abs/1902.00275.

    Example: uniform noise at the start, log q = 0.

        >>> u, log_q = Variational((1, 4, 4), width=8)(torch.zeros(3, 1, 4, 4))
        >>> u.shape, torch.allclose(log_q, torch.zeros(3), atol=1e-3)
        (torch.Size([3, 1, 4, 4]), True)
    """

    def __init__(self, shape: tuple[int, ...], width: int = 32, depth: int = 4):
        super().__init__()
        shape = image_or_vector(shape)
        if width < 1 or depth < 2:
            raise ValueError(f"width must be at least 1 and depth at least 2, got {width} and {depth}")
        self.shape, self.width, self.depth = shape, width, depth
        self.transform = Affine(max_log_scale=3.0)
        self.conditioners = nn.ModuleList(
            Conditioner(2 * shape[0], shape[0], self.transform.size, width, len(shape) == 3) for _ in range(depth)
        )
        indices = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
        self.register_buffer("is_odd", indices.sum(0) % 2 == 1, persistent=False)

    @property
    def in_words(self) -> str:
        return f"variational, {self.depth} couplings of width {self.width}"

    def forward(self, centre: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        v = rand_like(centre, generator).clamp_min(LEAST).logit()
        log_q = log_logistic(v)
        for step, conditioner in enumerate(self.conditioners):
            is_moved = self.is_odd ^ (step % 2 == 1)
            given = torch.cat([torch.where(is_moved, 0.0, v.tanh()), centre], 1)
            moved, log_slope = self.transform(v, conditioner(given))
            v = torch.where(is_moved, moved, v)
            log_q = log_q - torch.where(is_moved, log_slope, 0.0)
        return v.sigmoid(), (log_q - log_logistic(v)).flatten(1).sum(1)


def log_logistic(v: Tensor) -> Tensor:
    """The log-density of the logistic law, log σ'(v)."""
    return -F.softplus(v) - F.softplus(-v)


def checked(dequantization: Dequantization | None, scaling: Scaling) -> Dequantization | None:
    """The noise of data with that scaling: ``dequantization``, by default uniform; None for continuous data.

    Raises:
        ValueError: noise for data without grey levels.
    """
    if dequantization is None:
        return None if scaling.levels is None else Uniform()
    check_levels_for(type(dequantization).__name__, scaling)
    return dequantization


def check_levels_for(name: str, scaling: Scaling) -> None:
    """ValueError where the data have no grey levels, which noise of that name needs."""
    if scaling.levels is None:
        raise ValueError(
            f"dequantization must be left out for continuous data, which have no grey levels, got {name!r}; "
            "whole numbers have them where they are stored as integers"
        )


def check_raw(model: nn.Module, raw: Tensor) -> None:
    """ValueError unless ``raw`` are data of this model in data units, see :meth:`indm.Scaling.check`."""
    model.scaling.check(raw, model.shape if getattr(model, "has_shape", False) else None)


def from_data(model: nn.Module, raw: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, PerSample]:
    """x in model units, and log q(x|raw) in nats, (B,): −log p(raw) ≤ E[−log p(x) + log q(x|raw)].

    Of continuous data x is the raw data moved and scaled, and log q the log of the scale, with which equality holds.
    It is in float64 where the device of the model has that.

    Args:
        model: anything with a ``scaling``; where it has no ``dequantization``, grey levels get uniform noise.
        raw: data in data units (B, *event), which are not checked here, see :func:`check_raw`.
        generator: feeds the noise.
    """
    scaling, noise = _parts_of(model)
    centre = scaling.centre(raw)
    log_volume = scaling.log_volume_on_device(raw.shape[1:])
    if noise is None:
        return centre, (-log_volume).expand(len(raw))
    u, log_q = noise(centre, generator=generator)
    return scaling.place(raw, u), log_q.to(log_volume.dtype) - log_volume


def in_words(model: nn.Module) -> str:
    """What noise the grey levels of a model get and what their likelihood counts of it."""
    scaling, noise = _parts_of(model)
    if noise is None:
        return "none (continuous data)"
    m = f"{scaling.margin:.3g}"
    return f"{noise.in_words} on [{m}, 1 − {m}], {scaling.levels} grey levels, its density counted"


def _parts_of(model: nn.Module) -> tuple[Scaling, Dequantization | None]:
    """The scaling of a model, and its noise as :func:`checked` has it."""
    scaling: Scaling = model.scaling
    return scaling, checked(getattr(model, "dequantization", None), scaling)
