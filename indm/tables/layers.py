"""The MLPs that networks of tables add to a mixture's score, with exact derivatives."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from indm.nets.embedding import EmbeddingBlock
from indm.nets.mlp import MLP
from indm.tensors import Batch, PerSample, zeroed

CONDITION_BLOCKS = 2  # residual blocks of the embedding of c
Pushed = tuple[Tensor, Tensor]  # a value (B, width), and its tangents (B, directions, width)


class SmoothMLP(MLP):
    """An :class:`~indm.nets.MLP` that is smoother in the level, so that its ODE needs a third fewer
    evaluations.
    """

    shortest_period = 4.0

    def with_diagonal(
        self, z: Batch, level: PerSample, c: Tensor, slope: Float[Tensor, "batch d last"]
    ) -> Pushed:
        """The output, and ∂output_i/∂z_i (B, d), where the last numbers of c change by slope_i with
        z_i.

        It is for evaluation: without dropout and gradients.
        """
        d, last = slope.shape[1:]
        features, embedding = self.features(z), self.embedding(level)
        sin, cos = (
            self.omega[:, None] * wave
            for wave in features[:, d:].unflatten(1, (2, self.fourier, d)).unbind(1)
        )
        # each of its own entry of z
        d_features = torch.cat([torch.ones_like(features[:, None, :d]), cos, -sin], 1)
        weight = self.input.weight.unflatten(1, (-1, d))
        h = self.input(features) + self.condition_input(c)
        d_h = torch.einsum("bfi,wfi->biw", d_features, weight).add_(
            slope @ self.condition_input.weight[:, -last:].mT
        )
        gates: list[Tensor | None] = [None] * self.depth
        if self.condition_blocks is not None:
            first, *layers, out = list(self.condition_embedding.mlp)[1:]
            code, d_code = pushed(layers, first(c), slope @ first.weight[:, -last:].mT)
            embedding = embedding + out(code)
            gates = [d_code @ (block.level.weight @ out.weight).mT for block in self.blocks]
        for block, d_gates in zip(self.blocks, gates, strict=True):
            h, d_h = pushed_block(block, h, d_h, embedding, d_gates)
        h, d_h = pushed((nn.SiLU(),), h, d_h)
        return self.output(h).reshape(z.shape), (d_h * self.output.weight).sum(2)


def pushed_block(
    block: Any, h: Tensor, d_h: Tensor, embedding: Tensor, d_gates: Tensor | None
) -> Pushed:
    """:func:`pushed` of a block of an MLP; ``d_gates`` (B, directions, 2 · width) are tangents of
    scale and shift.
    """
    scale, shift = block.level(embedding).chunk(2, dim=1)
    inner, d_inner = pushed((block.norm, block.inner), h, d_h)
    hidden = torch.addcmul(shift, 1 + scale, inner)
    d_hidden = d_inner.mul_(1 + scale[:, None])
    if d_gates is not None:
        d_scale, d_shift = d_gates.chunk(2, dim=2)
        d_hidden.addcmul_(d_scale, inner[:, None]).add_(d_shift)
    more, d_more = pushed((nn.SiLU(), block.outer), hidden, d_hidden)
    return h + more, d_more.add_(d_h)


def pushed(layers: Iterable[nn.Module], x: Tensor, dx: Tensor) -> Pushed:
    """Output of ``layers`` without dropout at x (B, n), and its tangents along dx (B, directions,
    n).

    A SiLU overwrites dx, so that large tensors are reused.
    """
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x, dx = layer(x), dx @ layer.weight.mT
        elif isinstance(layer, nn.SiLU):
            gate = x.sigmoid()
            x, dx = x * gate, dx.mul_((gate + x * gate * (1 - gate))[:, None])
        elif isinstance(layer, nn.LayerNorm):
            offset = x - x.mean(1, keepdim=True)
            scale = (offset.square().mean(1, keepdim=True) + layer.eps).rsqrt()
            normal = scale * offset
            # directions that it removes
            fixed = torch.stack([torch.ones_like(x), normal], 1) / math.sqrt(x.shape[1])
            dx = torch.baddbmm(dx, dx @ fixed.mT, fixed, alpha=-1).mul_(
                (scale * layer.weight)[:, None]
            )
            x = normal * layer.weight + layer.bias
        elif isinstance(layer, EmbeddingBlock):
            more, d_more = pushed(layer.mlp, x, dx)
            x, dx = x + more, d_more.add_(dx)
    return x, dx


class ColumnMLP(nn.Module):
    """One small MLP, shared by all columns, adds to a number's noise what its own column explains;
    it starts at zero.

    It sees the noised number, the level, the centre of the column's law given what is known, and
    some numbers for each column. From few rows of many columns it learns what an MLP of all columns
    together does not.

    Args:
        d: columns.
        width: of its two hidden layers.
        fourier: it also sees the sines and cosines that :class:`~indm.nets.MLP` does.
    """

    CODE = 8  # numbers for each column
    is_off = False  # then it adds 0, at no cost

    def __init__(self, d: int, width: int = 32, fourier: int = 2):
        super().__init__()
        self.register_buffer("omega", math.pi / 2 * 2.0 ** torch.arange(fourier), persistent=False)
        # periods of waves in the level
        periods = torch.tensor([32.0, 16.0, 8.0, SmoothMLP.shortest_period])
        self.register_buffer("level_omega", 2 * math.pi / periods, persistent=False)
        self.level = nn.Linear(2 * len(periods), width)
        self.code = nn.Parameter(0.3 * torch.randn(d, self.CODE))
        self.input = nn.Linear(2 * (1 + 2 * fourier) + self.CODE, width)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.output = zeroed(nn.Linear(width, 1))

    def forward(self, u: Tensor, centre: Tensor, level: PerSample) -> Tensor:
        """The noise that is added, (B, d), at noised columns of unit scale and their centres, (B,
        d) each.
        """
        if self.is_off:
            return torch.zeros_like(u)
        return self.output(self.layers(self._first(u, centre, level)))[..., 0]

    def with_slope(self, u: Tensor, centre: Tensor, level: PerSample) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, and its derivative in u, (B, d); without gradients."""
        if self.is_off:
            return torch.zeros_like(u), torch.zeros_like(u)
        angle = u[..., None] * self.omega
        d_waves = torch.cat(
            [torch.ones_like(u)[..., None], self.omega * angle.cos(), -self.omega * angle.sin()], 2
        )
        h = self._first(u, centre, level)
        d_h = d_waves @ self.input.weight[:, : d_waves.shape[2]].mT
        noise, slope = pushed(
            (*self.layers, self.output), h.flatten(0, 1), d_h.flatten(0, 1)[:, None]
        )
        return noise.reshape(u.shape), slope.reshape(u.shape)

    def _first(self, u: Tensor, centre: Tensor, level: PerSample) -> Float[Tensor, "batch d width"]:
        """The first layer's output."""
        seen = [self._waves(u), self._waves(centre), self.code.expand(len(u), -1, -1)]
        phase = level[:, None] * self.level_omega
        return (
            self.input(torch.cat(seen, 2))
            + self.level(torch.cat([phase.sin(), phase.cos()], 1))[:, None]
        )

    def _waves(self, u: Tensor) -> Float[Tensor, "batch d waves"]:
        angle = u[..., None] * self.omega
        return torch.cat([u[..., None], angle.sin(), angle.cos()], 2)


def adds_nothing(mlp: MLP | ColumnMLP) -> bool:
    """Whether the output of ``mlp`` is 0 for any input, as before any training."""
    return not any(bool(parameter.any()) for parameter in mlp.output.parameters())
