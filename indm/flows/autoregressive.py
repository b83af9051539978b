"""A transformer autoregressive flow: causal attention over the patches of an image or the entries of a vector.

One parallel pass gives z and an exact log-determinant. The inverse is exact too, but works patch by patch.

Source: Zhai et al. 2024, "Normalizing Flows are Capable Generative Models" (TarFlow), https://arxiv.org/abs/2412.06329.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indm.conditions import Conditioned, features_of
from indm.flows.base import Compose, ExactFlow
from indm.flows.coupling import Affine
from indm.tensors import Batch, PerSample, zeroed


class CausalLayer(nn.Module):
    """Pre-normalised causal self-attention and MLP over tokens (B, tokens, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.query_key_value(self.norm1(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        h = h + self.project(mixed.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h))


class AutoregressiveBlock(Conditioned, ExactFlow):
    """Scales and shifts each token by what a transformer computes from the tokens before it; the identity at first.

    Args:
        shape: event shape, (C, H, W) or (D,).
        patch: side of the square patches of an image.
        width, layers: of the transformer.
        flip: take the tokens from the last to the first.
        features: numbers that the transformer sees of a condition.
    """

    def __init__(self, shape: tuple[int, ...], patch: int, width: int, layers: int, flip: bool, features: int = 0):
        super().__init__()
        self.shape, self.patch, self.flip, self.features = shape, patch, flip, features
        entries = shape[0] * patch**2 if len(shape) == 3 else 1
        tokens = shape[1] * shape[2] // patch**2 if len(shape) == 3 else shape[0]
        self.transform = Affine()
        self.embed = nn.Linear(entries, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.layers = nn.Sequential(*(CausalLayer(width, heads=max(1, width // 32)) for _ in range(layers)))
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

    def _conditioned(self, tokens: Tensor) -> Tensor:
        """Raw parameters of each token's transform, (B, size, tokens, entries), from the tokens before it."""
        before = F.pad(tokens[:, :-1], (0, 0, 1, 0))
        h, c = self.embed(before) + self.position[: tokens.shape[1]], self.seen(tokens)
        raw = self.output(self.layers(h if c is None else h + self.condition(c)[:, None]))
        return raw.to(tokens.dtype).unflatten(2, (self.transform.size, -1)).transpose(1, 2)

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        tokens = self._tokens(x)
        z, log_scale = self.transform(tokens, self._conditioned(tokens))
        return self._event(z), log_scale.flatten(1).sum(1)

    def inverse_step(self, z: Batch) -> Batch:
        latents = self._tokens(z)
        decoded = latents[:, :0]
        for i in range(latents.shape[1]):
            raw = self._conditioned(torch.cat([decoded, latents[:, i : i + 1]], dim=1))
            decoded = torch.cat([decoded, self.transform.inverse(latents[:, i : i + 1], raw[:, :, i:])], dim=1)
        return self._event(decoded)


class AutoregressiveFlow(Compose):
    """Autoregressive blocks that take the tokens in alternating directions.

    Args:
        shape: event shape, (C, H, W) with H and W divisible by ``patch``, or (D,).
        blocks: number of blocks.
        patch: side of the square patches of an image; every pixel of a patch is transformed at once.
        width, layers: of each block's transformer; ``width`` is a multiple of 32, or less.
        condition: (features,) that the transformers see of a condition; () for none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        blocks: int = 4,
        patch: int = 2,
        width: int = 64,
        layers: int = 2,
        condition: tuple[int, ...] = (),
    ):
        shape, features = tuple(shape), features_of(condition)
        if len(shape) not in (1, 3) or (len(shape) == 3 and (shape[1] % patch or shape[2] % patch)):
            raise ValueError(
                f"shape must be (C, H, W) with H and W divisible by patch={patch}, or (D,), got {shape}; choose "
                "another patch"
            )
        if min(blocks, layers, width) < 1 or (width > 32 and width % 32):
            raise ValueError(
                f"blocks and layers must be at least 1 and width a multiple of 32, got {blocks}, {layers} and {width}"
            )
        super().__init__(
            [
                AutoregressiveBlock(shape, patch, width, layers, flip=i % 2 == 1, features=features)
                for i in range(blocks)
            ]
        )
        self.shape, self.blocks, self.patch, self.width, self.layers = shape, blocks, patch, width, layers
        self.condition = tuple(condition)
