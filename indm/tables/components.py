"""A Gaussian mixture at some noise: weights, density, score and its Jacobian in closed form."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from indm.tables.columns import FAR
from indm.tensors import PerSample

# variance of the noise in which a row is compared with the mixture: narrow components are no wall
BLUR = 0.25


class Components(NamedTuple):
    """Noised components N(y − Q offset, Q diag(total) Qᵀ) at rows y, of a mixture of K; Q may be
    one for all rows.
    """

    log_weight: Tensor  # (B, K), of the components, up to a constant
    offset: Tensor  # (B, K, d)
    total: Tensor  # (B, K, d)
    basis: Tensor  # (1 or B, K, d, d)

    def log_joint(self) -> Tensor:
        """log of weight times density in each component, up to one constant, (B, K)."""
        return self.log_weight - 0.5 * (self.offset.square() / self.total + self.total.log()).sum(2)

    def share(self) -> Tensor:
        """The probability that a row is of a component, (B, K)."""
        return self.log_joint().softmax(1)

    def log_prob(self) -> PerSample:
        """log of the density of y, nats."""
        constant = 0.5 * self.offset.shape[2] * math.log(2 * math.pi)
        return self.log_joint().logsumexp(1) - self.log_weight.logsumexp(1) - constant

    def gate(self) -> PerSample:
        """The share of what is learned that counts, (B,): 1 near the mixture, and 0 beyond √d +
        :data:`FAR` deviations from each component, with noise of variance :data:`BLUR`. Nothing
        is trained so far away, where slopes of the MLPs would grow.
        """
        closed, _, _ = self._closed()
        return 1 - closed.square() * (3 - 2 * closed)

    def gated(
        self, learned: Float[Tensor, "batch d"], divergence: PerSample, r: Tensor
    ) -> tuple[Tensor, PerSample]:
        """:meth:`gate` times a ``learned`` field at y/√(1 + r), and the divergence of that from the
        field's own.
        """
        closed, nearest, span = self._closed()
        rows, gate = torch.arange(len(closed), device=closed.device), self.gate()
        scaled = (self.offset / (self.total + BLUR))[rows, nearest]
        outward = torch.einsum(
            "bd,bde,be->b", learned, self.basis.expand(len(rows), -1, -1, -1)[rows, nearest], scaled
        )
        fall = 12 * closed * (1 - closed) / span * (1 + r[:, 0]).sqrt()
        return gate[:, None] * learned, gate * divergence - fall * outward

    def _closed(self) -> tuple[PerSample, Tensor, float]:
        """Position of the gate from open to closed, 0 to 1; the nearest component; the length of
        the way in squared distances.
        """
        root = math.sqrt(self.offset.shape[2])
        least, most = (root + FAR / 2) ** 2, (root + FAR) ** 2
        square, nearest = (self.offset.square() / (self.total + BLUR)).sum(2).min(1)
        return ((square - least) / (most - least)).clamp(0, 1), nearest, most - least

    def noise(
        self, y: Float[Tensor, "batch d"], r: Float[Tensor, "batch 1"]
    ) -> tuple[Tensor, Tensor]:
        """The noise beyond the noise of N(0, I) at rows y, (B, d), and its Jacobian in y/√(1 + r),
        (B, d, d).
        """
        share = self.share()
        scaled, weight = self.offset / self.total, share[:, :, None] / self.total
        if len(self.basis) == 1:
            (basis,) = self.basis
            each = torch.einsum("bke,kde->bkd", scaled, basis)
            mean = weight.flatten(1) @ torch.einsum("kde,kfe->kedf", basis, basis).flatten(
                0, 1
            ).flatten(1)
            mean = mean.unflatten(1, basis.shape[1:])
        else:
            each = torch.einsum("bke,bkde->bkd", scaled, self.basis)
            mean = torch.einsum("bkde,bkfe->bdf", self.basis * weight[:, :, None], self.basis)
        slope = torch.einsum("bk,bkd->bd", share, each)  # −∇ log p of y
        spread = each - slope[:, None]
        jacobian = mean - (share[:, :, None] * spread).mT @ spread
        jacobian.diagonal(dim1=1, dim2=2).sub_(1 / (1 + r))
        return r.sqrt() * (slope - y / (1 + r)), (r * (1 + r)).sqrt()[:, :, None] * jacobian
