"""TarFlow: a transformer autoregressive flow over the patches of an image or the entries of a vector.

One parallel pass gives z and an exact log-determinant. The inverse is exact too, but goes patch by patch.

Source: Zhai et al. 2024, "Normalizing Flows are Capable Generative Models" (TarFlow), https://arxiv.org/abs/2412.06329.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm.checks import require
from indm.conditions import Conditioned, features_of
from indm.flows.base import Compose, ExactFlow
from indm.flows.coupling import Transform, transform_of, usual_bound
from indm.tensors import Batch, PerSample, zeroed

Queries = Float[Tensor, "batch heads tokens entries"]
Seen = Float[Tensor, "batch heads seen entries"]
Past = tuple[Tensor, Tensor]  # keys and values of the tokens so far, each Seen


def causal_attention(query: Queries, key: Seen, value: Seen) -> Queries:
    """Attention of the last tokens to all up to their own. (PyTorch's fused one has no derivative in forward mode.)"""
    tokens, seen = query.shape[2], key.shape[2]
    later = query.new_full((tokens, seen), -math.inf).triu(1 + seen - tokens)
    return (query / math.sqrt(query.shape[3]) @ key.mT + later).softmax(3) @ value


class CausalLayer(nn.Module):
    """Pre-normalised causal self-attention and MLP over tokens (B, tokens, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """The layer's output at tokens h, which follow ``past``, and the keys and values of all tokens so far."""
        query, key, value = self.query_key_value(self.norm1(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        h = h + self.project(causal_attention(query, key, value).transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h)), (key, value)


class AutoregressiveBlock(Conditioned, ExactFlow):
    """Transforms each token by what a transformer computes from the tokens before it; the identity at first.

    ``flip`` takes the tokens from the last to the first; ``features`` are the numbers seen of a condition.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int,
        width: int,
        layers: int,
        heads: int,
        flip: bool,
        transform: Transform,
        features: int = 0,
    ):
        super().__init__()
        self.shape, self.patch, self.flip, self.transform, self.features = shape, patch, flip, transform, features
        entries = shape[0] * patch**2 if len(shape) == 3 else 1
        tokens = shape[1] * shape[2] // patch**2 if len(shape) == 3 else shape[0]
        self.embed = nn.Linear(entries, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.layers = nn.ModuleList(CausalLayer(width, heads) for _ in range(layers))
        self.output = zeroed(nn.Linear(width, self.transform.size * entries))
        if features:
            self.condition = nn.Linear(features, width, bias=False)

    def _tokens(self, x: Tensor) -> Tensor:
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).mT if len(self.shape) == 3 else x.unsqueeze(2)
        return tokens.flip(1) if self.flip else tokens

    def _event(self, tokens: Tensor) -> Tensor:
        tokens = tokens.flip(1) if self.flip else tokens
        if len(self.shape) == 1:
            return tokens.squeeze(2)
        side = (self.shape[1] // self.patch, self.shape[2] // self.patch)
        return F.pixel_shuffle(tokens.mT.unflatten(2, side), self.patch)

    def _conditioned(self, before: Tensor, past: Sequence[Past] = ()) -> tuple[Tensor, list[Past]]:
        """Raw parameters of tokens, (B, size, tokens, entries), from the token before each; they follow ``past``."""
        first = past[0][0].shape[2] if past else 0
        h, c = self.embed(before) + self.position[first : first + before.shape[1]], self.seen(before)
        h = h if c is None else h + self.condition(c)[:, None]
        kept = []
        for layer, layer_past in zip_longest(self.layers, past):
            h, layer_past = layer(h, layer_past)
            kept.append(layer_past)
        return self.output(h).to(before.dtype).unflatten(2, (self.transform.size, -1)).transpose(1, 2), kept

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        tokens = self._tokens(x)
        raw, _ = self._conditioned(F.pad(tokens[:, :-1], (0, 0, 1, 0)))
        z, log_slope = self.transform(tokens, raw)
        return self._event(z), log_slope.flatten(1).sum(1)

    def inverse_step(self, z: Batch) -> Batch:
        latents = self._tokens(z)
        past: list[Past] = []
        token, decoded = torch.zeros_like(latents[:, :1]), []
        for latent in latents.split(1, dim=1):
            raw, past = self._conditioned(token, past)
            token = self.transform.inverse(latent, raw)
            decoded.append(token)
        return self._event(torch.cat(decoded, dim=1))


class AutoregressiveFlow(Compose):
    """TarFlow: blocks of causal transformers over the patches of an image, in alternating directions.

    Args:
        shape: event shape, (C, H, W) with H and W divisible by ``patch``, or (D,), whose entries are the patches.
        blocks: number of blocks.
        patch: side of the square patches of an image: 2 suits images up to 16×16, and 4 of 32×32.
        width, layers: of each block's transformer; ``width`` is a multiple of ``head_width``, or less.
        head_width: entries of each head of the attention.
        transform: "affine", as published and smooth, or "spline" (rational-quadratic), which can spread out values that
            many entries share.
        bins, bound, max_log_scale, condition: as of :class:`~indm.flows.CouplingFlow`.

    It starts at the identity.

    Example:

        >>> flow = AutoregressiveFlow((1, 8, 8), blocks=2, patch=4)
        >>> x = torch.rand(5, 1, 8, 8)
        >>> z, log_det = flow(x)
        >>> torch.equal(z, x), log_det.tolist()
        (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        blocks: int = 4,
        patch: int = 2,
        width: int = 64,
        layers: int = 2,
        head_width: int = 32,
        transform: str = "affine",
        bins: int = 8,
        bound: float | None = None,
        max_log_scale: float | str = 1.0,
        condition: tuple[int, ...] = (),
    ):
        shape, max_log_scale, features = tuple(shape), float(max_log_scale), features_of(condition)
        bound = usual_bound(shape) if bound is None else bound
        kind = transform_of(transform, bins, bound, max_log_scale)
        counts = {"blocks": blocks, "patch": patch, "width": width, "layers": layers, "head_width": head_width}
        for name, count in counts.items():
            require(count >= 1, name, count, "at least 1")
        if len(shape) not in (1, 3) or (len(shape) == 3 and (shape[1] % patch or shape[2] % patch)):
            raise ValueError(f"shape must be (C, H, W) with H and W divisible by patch={patch}, or (D,), got {shape}")
        if width > head_width and width % head_width:
            raise ValueError(f"width must be a multiple of head_width={head_width}, or less, got {width}")
        heads = max(1, width // head_width)
        super().__init__(
            [AutoregressiveBlock(shape, patch, width, layers, heads, i % 2 == 1, kind, features) for i in range(blocks)]
        )
        self.shape, self.blocks, self.patch, self.width, self.layers = shape, blocks, patch, width, layers
        self.head_width, self.transform, self.bins, self.bound = head_width, transform, bins, bound
        self.max_log_scale, self.condition = max_log_scale, tuple(condition)
