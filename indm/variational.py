"""Variational dequantization: noise of grey levels that is learned, given the image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import require
from indm.dequantization import Dequantization
from indm.flows.coupling import Affine, Conditioner
from indm.tensors import Batch, PerSample, image_or_vector, rand_like

LEAST_UNIFORM = 2.0**-25  # below what torch.rand gives, other than 0


class Variational(Dequantization):
    """u is a small conditional flow of uniform noise, given the image: affine couplings of its
    logits.

    A coupling moves the entries of one colour of a checkerboard, given the others and the grey
    levels of all. It starts as uniform noise.

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
        require(width >= 1, "width", width, "at least 1")
        require(depth >= 2, "depth", depth, "at least 2")
        self.shape, self.width, self.depth = shape, width, depth
        self.transform = Affine(max_log_scale=3.0)
        self.conditioners = nn.ModuleList(
            Conditioner(2 * shape[0], shape[0], self.transform.size, width, len(shape) == 3)
            for _ in range(depth)
        )
        indices = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
        self.register_buffer("is_odd", indices.sum(0) % 2 == 1, persistent=False)

    @property
    def in_words(self) -> str:
        return f"variational, {self.depth} couplings of width {self.width}"

    def forward(
        self, centre: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Batch, PerSample]:
        v = rand_like(centre, generator).clamp_min(LEAST_UNIFORM).logit()
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
