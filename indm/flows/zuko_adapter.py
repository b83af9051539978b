"""Flows of the library zuko, for vectors: ``pip install 'indm[zuko]'``.

Source: Rozet et al., "Zuko", https://github.com/probabilists/zuko.
"""

import importlib.util

import torch
from torch import Tensor, nn

from indm.flows.base import ExactFlow
from indm.tensors import Batch, PerSample


class ZukoFlow(ExactFlow):
    """A masked autoregressive flow of zuko that starts at the identity; its inverse goes entry by entry.

    Args:
        shape: event shape, (D,).
        kind: "nsf" (neural spline flow) or "maf" (affine).
        transforms: number of autoregressive transforms.
        width: hidden units of each of the two hidden layers.

    Raises:
        ValueError: without zuko, or for images.
    """

    def __init__(self, shape: tuple[int, ...], kind: str = "nsf", transforms: int = 3, width: int = 64):
        super().__init__()
        self.shape, self.kind, self.transforms, self.width = tuple(shape), kind, transforms, width
        if importlib.util.find_spec("zuko") is None:
            raise ValueError("flow 'zuko' needs the library zuko: pip install 'indm[zuko]'")
        import zuko

        if kind not in ("nsf", "maf"):
            raise ValueError(f'kind must be "nsf" or "maf", got {kind!r}')
        if len(self.shape) != 1:
            raise ValueError(f"shape must be (D,), zuko's flows are for vectors, got {self.shape}; use 'coupling'")
        family = zuko.flows.NSF if kind == "nsf" else zuko.flows.MAF
        self.lazy = family(self.shape[0], transforms=transforms, hidden_features=(width, width)).transform
        for transform in self.lazy.transforms:
            last = [m for m in transform.hyper if isinstance(m, nn.Linear)][-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> tuple[Batch, PerSample]:
        with torch.autocast(x.device.type, enabled=False):
            return self.lazy().call_and_ladj(x)

    def inverse_step(self, z: Tensor) -> Tensor:
        return self.lazy().inv(z)
