r"""Forward processes whose mean, or mean and deviation, are learned from z_0.

With u = σ²/(α² + σ²) and the place p ∈ [0, 1] on the clock, both have

.. math:: M = z_0 + (u - u_\epsilon)\,(1-p)^j \sum_k P_k(2p - 1)\,y_k(z_0), \qquad
          \log R = 4(u - u_\epsilon)\,(1-p) \sum_k P_k(2p - 1)\,v_k(z_0),

j = 0 where M is free at T and 1 where it is z_0 there, P_k the Legendre polynomials, and y_k, v_k the outputs of a
small network, which start at 0: the process starts as the linear diffusion. u falls as fast as σ² towards ε, as ∂M
must, which the bound weighs by α²/σ².
"""

import torch
from torch import Tensor, nn

from indm.flows.coupling import Conditioner
from indm.objective import legendre
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, PerSample, expand_like, image_or_vector
from research.forward.base import ForwardProcess, Path, noise_share

LARGEST_LOG_SPREAD = 1.5  # of one v_k


class _Learned(ForwardProcess):
    """A network of z_0 with ``maps`` outputs of the size of z_0 for each Legendre polynomial."""

    maps = 1

    def __init__(self, shape: tuple[int, ...], width: int = 32, terms: int = 3):
        super().__init__()
        shape = image_or_vector(shape)
        if width < 1 or terms < 1:
            raise ValueError(f"width and terms must be at least 1, got {width} and {terms}; 32 and 3 are usual")
        self.shape, self.width, self.terms = shape, width, terms
        self.network = Conditioner(shape[0], shape[0], self.maps * terms, width, len(shape) == 3, nn.SiLU)

    def coefficients(self, z: Batch) -> tuple[Tensor, ...]:
        """The outputs of the network, each (B, terms, *event)."""
        return self.network(z).chunk(self.maps, 1)


class LearnedMean(_Learned):
    """z_t = α M(z_0, Λ) + σ n with a learned M, which is z_0 at ε and free at T.

    Args:
        shape: event shape, (C, H, W) or (D,).
        width: hidden channels of the network.
        terms: Legendre polynomials of the clock.

    Source: Nielsen et al. 2024, "DiffEnc", https://arxiv.org/abs/2310.19789; the time enters by polynomials here.

    Example: whatever is learned, the mean at ε is α z_0, as the reconstruction takes for granted; at T it is free.

        >>> from indm.sde import VPSDE
        >>> process, sde, z = LearnedMean((3,), width=8), VPSDE(), torch.randn(5, 3)
        >>> _ = nn.init.normal_(process.network.layers[-1].bias)
        >>> start, end = (process.moments(sde, z, t)[0] / sde.alpha(t)[:, None] for t in sde.endpoints(z))
        >>> torch.allclose(start, z, atol=1e-4), torch.allclose(end, z, atol=1e-4)
        (True, False)
    """

    def path(self, sde: LinearSDE, z: Batch) -> Path:
        (y,) = self.coefficients(z)

        def path(clock: PerSample) -> tuple[Batch, Batch]:
            place, share = sde.place(clock), noise_share(sde, clock)
            return z + expand_like(share, z) * _series(place, y), torch.ones_like(z)

        return path


class Affine(_Learned):
    """z_t = α M(z_0, Λ) + σ R(z_0, Λ) n with M and R learned, and both ends those of the linear diffusion.

    Args:
        shape, width, terms: as of :class:`LearnedMean`.

    Source: Bartosh et al. 2024, "Neural Flow Diffusion Models", https://arxiv.org/abs/2404.12940; here with the
    volatility of the linear SDE and a free drift.

    Example: whatever is learned, both ends are those of the linear diffusion, α z_0 and σ.

        >>> from indm.sde import VPSDE
        >>> process, sde, z = Affine((3,), width=8), VPSDE(), torch.randn(5, 3)
        >>> _ = nn.init.normal_(process.network.layers[-1].bias)
        >>> for t in sde.endpoints(z):
        ...     mean, std = process.moments(sde, z, t)
        ...     torch.allclose(mean, sde.alpha(t)[:, None] * z, atol=1e-4), torch.allclose(std, sde.sigma(t)[:, None])
        (True, True)
        (True, True)
    """

    maps = 2

    def path(self, sde: LinearSDE, z: Batch) -> Path:
        y, v = self.coefficients(z)
        v = LARGEST_LOG_SPREAD * (v / LARGEST_LOG_SPREAD).tanh()

        def path(clock: PerSample) -> tuple[Batch, Batch]:
            place, share = sde.place(clock), noise_share(sde, clock)
            factor = expand_like(share * (1 - place), z)
            return z + factor * _series(place, y), (4 * factor * _series(place, v)).exp()

        return path


def _series(place: PerSample, coefficients: Tensor) -> Batch:
    """Σ_k P_k coefficients_k; coefficients are (B, terms, *event)."""
    return torch.einsum("bk,bk...->b...", legendre(place, coefficients.shape[1]), coefficients)
