"""The lattice field φ⁴ on a torus: its action, draws by Monte Carlo, and the flow and the network
that fit it.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.flows import Compose, ElementwiseFlow, ExactFlow, Flow
from indm.nets import Backbone
from indm.nets.embedding import LevelEmbedding
from indm.tensors import zeroed

SITES = 8  # of each side
STEP = 1.1  # half the width of a proposal: about half of them are accepted
# chains side by side, sweeps before the first draw and between two of them
CHAINS, WARM, EVERY = 2_000, 600, 40

convolution = partial(nn.Conv2d, kernel_size=3, padding="same", padding_mode="circular")


@dataclass(frozen=True)
class Field:
    """p(φ) ∝ exp(−S), S = Σ (4 + m²) φ² + λ φ⁴ − φ · (sum of the four neighbours); log p is known
    up to log Z.

    Source: Albergo et al. 2019, "Flow-based generative models for Markov chain Monte Carlo in
    lattice field theory", https://arxiv.org/abs/1904.12072, whose λ for 8×8 sites is 6.008.
    """

    coupling: float
    mass: float = -4.0  # m²

    def action(self, x: Tensor) -> Tensor:
        """S of fields (B, 1, L, L), (B,)."""
        square = x.square()
        sites = (4 + self.mass) * square + self.coupling * square.square() - x * neighbours(x)
        return sites.flatten(1).sum(1)

    @torch.no_grad()
    def draws(self, per_chain: int, seed: int) -> Tensor:
        """Fields (chains, per_chain, 1, L, L), float64, each with a random sign, which is a
        symmetry of the law.

        Metropolis steps of half of the sites at a time, coloured like a chessboard; the other half
        are the neighbours.
        """
        generator = torch.Generator().manual_seed(seed)
        draw = partial(
            torch.rand, CHAINS, 1, SITES, SITES, generator=generator, dtype=torch.float64
        )
        x, place = 2 * draw() - 1, torch.arange(SITES)
        is_black = (place[:, None] + place) % 2 == 0
        kept = []
        for sweep in range(1, WARM + per_chain * EVERY + 1):
            for colour in (is_black, ~is_black):
                proposed = x + STEP * (2 * draw() - 1)
                change = self._local(proposed, neighbours(x)) - self._local(x, neighbours(x))
                moves = colour & (draw().log() < -change)
                x = torch.where(moves, proposed, x)
            if sweep > WARM and (sweep - WARM) % EVERY == 0:
                kept.append(x)
        fields = torch.stack(kept, 1)
        sign = 2 * torch.randint(2, fields.shape[:2], generator=generator) - 1
        return fields * sign[:, :, None, None, None]

    def _local(self, x: Tensor, around: Tensor) -> Tensor:
        """The part of S that depends on a site."""
        return (4 + self.mass) * x.square() + self.coupling * x.pow(4) - 2 * x * around


def neighbours(x: Tensor) -> Tensor:
    """The sum over the four neighbours of each site."""
    return sum(x.roll(shift, axis) for axis in (-1, -2) for shift in (1, -1))  # type: ignore[return-value]


def memory(fields: Tensor, field: Field) -> dict[str, float]:
    """Correlation of the action and of the size of the mean field between two draws of a chain that
    follow each other.
    """
    chains, each = fields.shape[:2]
    rows = fields.flatten(0, 1)
    values = {"action": field.action(rows), "mean": rows.flatten(1).mean(1).abs()}
    found = {}
    for name, value in values.items():
        value = (value - value.mean()).reshape(chains, each)
        found[name] = ((value[:, 1:] * value[:, :-1]).mean() / value.square().mean()).item()
    return found


class Spectrum(ExactFlow):
    """z = ifft(fft(x) · exp(s)) of fields on a torus, s real and the same for k and −k: a scale of
    each frequency.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(SITES, SITES))

    def _even(self) -> Tensor:
        turned = self.log_scale.flip((0, 1)).roll((1, 1), (0, 1))  # −k
        return 0.5 * (self.log_scale + turned)

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """z (B, 1, L, L) and log|det|, (B,)."""
        scale = self._even()
        z = torch.fft.ifft2(torch.fft.fft2(x) * scale.exp()).real
        return z, scale.sum().expand(len(x))

    def inverse_step(self, z: Tensor) -> Tensor:
        """x."""
        return torch.fft.ifft2(torch.fft.fft2(z) * (-self._even()).exp()).real

    @torch.no_grad()
    def whiten(self, x: Tensor) -> "Spectrum":
        """This flow with the scales that give rows ``x`` a flat spectrum."""
        power = torch.fft.fft2(x, norm="ortho").abs().square().mean((0, 1))
        self.log_scale.copy_(-0.5 * power.log())
        return self


def curve_and_spectrum(x: Tensor) -> Compose:
    """A spline that all sites share, at the identity, then the whitening of rows ``x``."""
    return Compose([ElementwiseFlow((1, SITES, SITES), bins=16), Spectrum().whiten(x)])


class Block(nn.Module):
    """h + W₂ silu((1 + a) · W₁ norm(h) + b), W₁ and W₂ convolutions on a torus, a and b by the
    level of noise.
    """

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm, self.level = nn.GroupNorm(4, width), nn.Linear(width, 2 * width)
        self.inner, self.outer = (convolution(width, width, dilation=dilation) for _ in range(2))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.level(embedding)[:, :, None, None].chunk(2, 1)
        return h + self.outer(F.silu(torch.addcmul(shift, 1 + scale, self.inner(self.norm(h)))))


class Torus(Backbone):
    """(z (B, 1, L, L), level) → the same shape, 0 at first: residual convolutions on a torus."""

    is_smooth = True

    def __init__(self, width: int = 32, dilations: tuple[int, ...] = (1, 2)):
        super().__init__()
        self.embedding = LevelEmbedding(width)
        self.input, self.output = convolution(1, width), zeroed(convolution(width, 1))
        self.blocks = nn.ModuleList(Block(width, dilation) for dilation in dilations)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        embedding, h = self.embedding(level), self.input(z)
        for block in self.blocks:
            h = block(h, embedding)
        return self.output(F.silu(h))


@torch.no_grad()
def log_evidence(field: Field, flow: Flow, draws: int, seed: int) -> tuple[float, float, float]:
    """log Z from draws of a flow with N(0, I) behind it, its error, and the effective share of the
    draws.
    """
    z = torch.randn(draws, 1, SITES, SITES, generator=torch.Generator().manual_seed(seed))
    x = flow.inverse(z)
    again, log_det = flow(x)
    log_q = log_det - 0.5 * (again.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    log_weight = (-field.action(x) - log_q).double()
    weight = (log_weight - log_weight.max()).exp()
    share = (weight.mean() ** 2 / weight.square().mean()).item()
    error = (weight.std() / weight.mean()).item() / math.sqrt(draws)
    return (weight.mean().log() + log_weight.max()).item(), error, share
