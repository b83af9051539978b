"""The base class of backbones, with its defaults."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from indm.gaussian import STANDARD
from indm.tensors import Batch, PerSample


class Backbone(nn.Module):
    """The base class of networks inside :class:`indm.ScoreModel`.

    Write ``forward(z, level, c=None)``, which returns a tensor of the shape of z (B, *event), the
    noisy latents. ``level`` (B,) is log(σ/α), and c is what the network sees of conditions.

    Attributes:
        takes_condition: whether it is called as forward(z, level, c).
        is_smooth: whether it varies slowly along the level, without ripples of an embedding.
            Likelihoods and samples then take fewer steps.
        has_kinks: whether its slope along the level jumps.
        parameterization: the subclass of :class:`indm.ScoreModel` that makes a score of the output;
            None for :class:`indm.ScoreModel` itself, which adds the noise of N(0, I).
        with_divergence: with_divergence(z, level) or (z, level, c) returns the output and its exact
            divergence in z, (B,); None if there is no closed form.
        examine: examine(model, raw, …) checks the description of a network of another library, see
            :func:`indm.check_denoiser`; None for others.

    A plain ``nn.Module`` works, too, and gets these defaults.

    Example: two layers that see z and the noise level.

        >>> class Net(Backbone):
        ...     is_smooth = True
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2))
        ...     def forward(self, z, level, c=None):
        ...         return self.layers(torch.cat([z, level[:, None]], 1))
        >>> Net()(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    takes_condition: bool = False
    is_smooth: bool = False
    has_kinks: bool = False
    parameterization: Any = None
    with_divergence: Callable[..., tuple[Tensor, PerSample]] | None = None
    examine: Callable[..., Any] | None = None

    @property
    def base(self) -> Any:
        """The law of latents whose exact score the network adds to, by default N(0, I)."""
        return STANDARD

    def noise_parts(
        self, z: Batch, level: PerSample, c: Tensor | None = None
    ) -> tuple[Batch, Batch]:
        """The output in two parts: the noise of :attr:`base` beyond that of N(0, I), and the rest."""
        output = self(z, level) if c is None else self(z, level, c)
        return torch.zeros_like(output), output


PLAIN = Backbone()  # the defaults, for networks of other classes


def declared(network: Any) -> Backbone:
    """``network`` if it is a :class:`Backbone`, else the defaults."""
    return network if isinstance(network, Backbone) else PLAIN
