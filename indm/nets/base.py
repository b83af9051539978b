"""What a network says of itself: the base class of backbones and its defaults."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from indm.gaussian import STANDARD
from indm.tensors import Batch, PerSample


class Backbone(nn.Module):
    """A network inside :class:`indm.ScoreModel`: write ``forward``, and override what differs.

    ``forward(z, level, c=None)`` returns a tensor of the shape of z (B, *event), the noisy latents;
    ``level`` (B,) is log(σ/α), and c what is seen of conditions, of a network that takes them.

    Attributes:
        takes_condition: whether it is called with a condition, as forward(z, level, c).
        is_smooth: whether it varies slowly along the level, without ripples of an embedding.
            Likelihoods and samples then take fewer steps.
        has_kinks: whether its slope along the level jumps.
        parameterization: the subclass of :class:`indm.ScoreModel` whose ``forward`` makes a score
            of the output; None for :class:`indm.ScoreModel` itself, which adds the output to the
            noise of N(0, I).
        with_divergence: with_divergence(z, level), with c where there is one, returns the output
            and its exact divergence in z, (B,); None where no closed form is known.
        examine: examine(model, raw, …) compares the description of a network of another library
            with data, see :func:`indm.check_denoiser`; None for others.

    A plain ``nn.Module`` works, too. It has these defaults, whatever attributes it has.

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
        """The law of latents to whose exact score the network adds, by default N(0, I)."""
        return STANDARD

    def noise_parts(
        self, z: Batch, level: PerSample, c: Tensor | None = None
    ) -> tuple[Batch, Batch]:
        """The output in two parts: the noise that :attr:`base` has and N(0, I) has not, and what
        the network adds.
        """
        output = self(z, level) if c is None else self(z, level, c)
        return torch.zeros_like(output), output


PLAIN = Backbone()  # what a network of another class says: the defaults


def declared(network: Any) -> Backbone:
    """The network whose attributes describe ``network``: itself, or the defaults for a module of
    another class.
    """
    return network if isinstance(network, Backbone) else PLAIN
