r"""The conditional residual flow: a residual flow h_u for each value of a code u of the image.

.. math:: \log p(x) \ge E_{u \sim q(u|x)}\big[\log p_z(h_u(x)) + \log|\det \partial h_u/\partial x|\big]
          - \mathrm{KL}\big(q(u|x)\,\|\,p(u)\big)

The code is the latent of a variational autoencoder around the flow. q(u|x) is a Gaussian from a
small residual network; p(u) is a coupling flow of N(0, I).

Sources: Ma et al. 2020, "Decoupling Global and Local Representations via Invertible Generative
Flows", https://arxiv.org/abs/2004.11820 (code, encoder, prior); Kim et al. 2022 (the residual
blocks, and the two together), https://arxiv.org/abs/2205.13699.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from indm import tensors
from indm.checks import check_word
from indm.flows.base import TOLERANCE, ActNorm, Compose, ExactFlow, Flow, Inverse, Mapped
from indm.flows.coupling import Coupling, InvertibleLinear
from indm.flows.residual import (
    ActivationName,
    Norm,
    ResidualBlock,
    Weights,
    check_coeff,
    checked_norm,
    residual_chain,
)
from indm.tensors import Batch, PerSample, full_precision, zeroed

Codes = Float[Tensor, "batch code"]

EncoderActivation = Literal["elu", "relu", "leaky_relu"]
ENCODER_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "leaky_relu": functools.partial(nn.LeakyReLU, 0.1),
}


class ConditionalBlock(ResidualBlock):
    """A residual block x ↦ x + W₃ φ W₂ (φ W₁ (φ) x + A u + a) for each code u, see :meth:`at`.

    The middle map is 1×1, so u only changes its bias W₂(A u + a) + b₂. The Lipschitz constant and
    the cost stay the same.
    """

    u: Tensor  # the codes of a block that :meth:`at` gave

    def __init__(self, shape: tuple[int, ...], width: int, *args: Any, code_dim: int):
        super().__init__(shape, width, *args)
        self.code = nn.Linear(code_dim, width)

    def at(self, code: Tensor) -> ResidualBlock:
        """The flow at ``code`` (B, K), or (1, K) for all samples; it shares the parameters."""
        block = copy.copy(self)
        block.u = code
        return block

    def _weights(self) -> Weights:
        first, (middle, bias), last = super()._weights()
        with full_precision(bias.device):
            bias = bias + self.frequency * F.linear(self.code(self.u.to(bias)), middle.flatten(1))
        return [first, (middle, bias), last]


class AtCodes(Compose):
    """A chain whose blocks are at codes, one for each sample or one for all."""

    def _in_double(self, rows: Tensor, device: torch.device) -> Flow:
        flow: Any = super()._in_double(rows, device)
        for part in flow.flows:
            if isinstance(part, ConditionalBlock) and len(part.u) > 1:
                part.u = part.u[rows.to(part.u.device)]
        return flow


class EncoderBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut, 1×1 if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str):
        super().__init__()

        def convolution(channels: int, kernel: int, stride: int) -> nn.Sequential:
            layer = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs))

        self.activation = ENCODER_ACTIVATIONS[activation]()
        self.first, self.second = convolution(inputs, 3, stride), convolution(outputs, 3, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.activation(self.first(x))) + self.shortcut(x))


class CodeEncoder(nn.Module):
    """x → mean and log-variance of q(u|x), each (B, K); both start at 0.

    Each of ``planes`` is a level of two :class:`EncoderBlock`, the second of which halves the
    sides. The feature map at the end has ``channels`` channels. Vectors (D,) are images of one
    pixel.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        code_dim: int,
        planes: tuple[int, ...],
        channels: int,
        activation: str,
    ):
        super().__init__()
        inputs, *sides = shape if len(shape) == 3 else (shape[0], 1, 1)
        layers: list[nn.Module] = []
        for outputs in planes:
            layers += [
                EncoderBlock(inputs, outputs, 1, activation),
                EncoderBlock(outputs, outputs, 2, activation),
            ]
            inputs, sides = outputs, [-(-side // 2) for side in sides]
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, channels, 1), nn.ELU())
        self.head = zeroed(nn.Linear(channels * math.prod(sides), 2 * code_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image = x if x.ndim == 4 else x[:, :, None, None]
        mean, log_variance = self.head(self.layers(image).flatten(1)).to(x.dtype).chunk(2, dim=1)
        return mean, log_variance


class Interleaved(ExactFlow):
    """A flow of the entries at even places, followed by those at odd places; it restores the order."""

    def __init__(self, flow: ExactFlow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Batch, *, generator: torch.Generator | None = None) -> Mapped:
        z, log_det = self.flow(torch.cat([x[:, 0::2], x[:, 1::2]], dim=1), generator=generator)
        return self._back(z), log_det

    def inverse_step(self, z: Batch) -> Batch:
        return self._back(self.flow.inverse_step(torch.cat([z[:, 0::2], z[:, 1::2]], dim=1)))

    def _back(self, z: Tensor) -> Tensor:
        return torch.stack(z.chunk(2, dim=1), dim=2).flatten(1)


class SigmoidAffine:
    """y ↦ y s + b with s = sigmoid(a + 2) + 0.001 and raw parameters (a, b) of each entry.

    At raw parameters 0, s is ``start``.
    """

    size = 2
    start = 1 / (1 + math.exp(-2.0)) + 1e-3

    def __call__(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scale(raw[:, 0])
        return y * scale + raw[:, 1], scale.log()

    def inverse(self, z: Tensor, raw: Tensor) -> Tensor:
        """y that is mapped to z."""
        return (z - raw[:, 1]) / self._scale(raw[:, 0])

    def _scale(self, a: Tensor) -> Tensor:
        return (a + 2).sigmoid() + 1e-3


class CodePrior(Compose):
    """The flow u → e ~ N(0, I) whose density at u is p(u); p(u) starts as N(0, I).

    A step has an ActNorm, a linear map, two couplings in turn between the halves, an ActNorm, and
    two couplings in turn between the entries at even and at odd places.
    """

    def __init__(self, code_dim: int, steps: int, width: int, activation: str):
        def norm() -> ActNorm:
            layer = ActNorm(code_dim)
            # undone by the couplings after it
            nn.init.constant_(layer.log_scale, -math.log(SigmoidAffine.start))
            return layer

        def coupling(flip: bool) -> Coupling:
            return Coupling(
                (code_dim,), width, SigmoidAffine(), flip, ENCODER_ACTIVATIONS[activation]
            )

        flows: list[Flow] = []
        for _ in range(steps):
            flows += [
                norm(),
                InvertibleLinear(code_dim, "rotation"),
                coupling(False),
                coupling(True),
            ]
            flows += [norm(), Interleaved(coupling(False)), Interleaved(coupling(True))]
        super().__init__(flows)

    def code_of(self, noise: Codes) -> Codes:
        """The code u that is mapped to ``noise``: u ~ p(u) for noise ~ N(0, I)."""
        for flow in reversed(self.flows):
            noise = flow.inverse_step(noise)
        return noise

    def log_prob(self, code: Codes) -> PerSample:
        """log p(u), nats."""
        with full_precision(code.device):
            e, log_det = self(code)
        return log_det - 0.5 * (e.square() + math.log(2 * math.pi)).sum(1)


class ConditionalResidualFlow(Flow):
    """The flow of the paper's code: residual flows h_u with a code u, which gives a lower bound.

    ``flow(x, code)`` is h_u with its log|det|, and ``flow.inverse(z, code=code)`` inverts it.
    ``flow(x)`` draws u ~ q(u|x) and returns log|det| − log q(u|x) + log p(u) in place of log|det|,
    so that every log-likelihood of a model is a draw of a lower bound. ``flow.inverse(z)`` draws
    u ~ p(u) from the global random state, for samples. ``flow.at(code)`` is h_u for one u, an
    ordinary flow.

    Args:
        shape: event shape, (C, H, W) or (D,).
        blocks, width, norm, coeff, activation, squeeze, actnorm: see
            :class:`~indm.flows.ResidualFlow`.
        code_dim: entries K of the code, an even number.
        encoder_planes, encoder_channels, encoder_activation: of q(u|x), see :class:`CodeEncoder`.
            With ``squeeze`` it sees the squeezed image.
        prior_steps, prior_width, prior_activation: of p(u), see :class:`CodePrior`.

    It starts at the identity, where the bound is exact. The published CIFAR-10 flow is
    ``blocks=(16, 16), width=512, encoder_planes=(48, 96, 96), prior_width=256``. In training mode
    batch norm makes q(u|x) depend on the whole batch.

    Example: with a code it is one map with an inverse; without one, each call is another map.

        >>> flow = ConditionalResidualFlow((3,), blocks=(2,), width=8, coeff=0.9, code_dim=2).eval()
        >>> for parameter in flow.chain.parameters():
        ...     _ = nn.init.normal_(parameter)
        >>> x = torch.randn(5, 3)
        >>> code = flow.encode_code(x)
        >>> z, log_det = flow(x, code)
        >>> torch.allclose(flow.inverse(z, code=code), x, atol=1e-2), torch.equal(flow.latent(x), flow.latent(x))
        (True, False)
    """

    has_log_det = False

    def __init__(
        self,
        shape: tuple[int, ...],
        blocks: tuple[int, ...] = (4, 4),
        width: int = 64,
        norm: Norm = "rows",
        coeff: float = 0.98,
        activation: ActivationName = "sin",
        squeeze: bool = False,
        actnorm: bool = False,
        code_dim: int = 64,
        encoder_planes: tuple[int, ...] = (16, 32),
        encoder_channels: int = 8,
        encoder_activation: EncoderActivation = "elu",
        prior_steps: int = 2,
        prior_width: int = 64,
        prior_activation: EncoderActivation = "elu",
    ):
        super().__init__()
        check_coeff(coeff)
        self.shape = tuple(shape)
        self.blocks = tuple(blocks)
        self.width = width
        self.norm = checked_norm(norm)
        self.coeff = coeff
        check_word("encoder_activation", encoder_activation, ENCODER_ACTIVATIONS)
        check_word("prior_activation", prior_activation, ENCODER_ACTIVATIONS)
        self.activation = activation
        self.squeeze = squeeze
        self.actnorm = actnorm
        self.code_dim = code_dim
        self.encoder_planes = tuple(encoder_planes)
        self.encoder_channels = encoder_channels
        self.encoder_activation = encoder_activation
        self.prior_activation = prior_activation
        self.prior_steps = prior_steps
        self.prior_width = prior_width
        self._build()

    def _build(self) -> None:
        """Build the parts of the arguments, which are attributes by now."""

        def block(event: tuple[int, ...], preactivate: bool) -> ConditionalBlock:
            return ConditionalBlock(
                event,
                self.width,
                self.norm,
                self.coeff,
                preactivate,
                self.activation,
                code_dim=self.code_dim,
            )

        self.chain = nn.ModuleList(
            residual_chain(self.shape, self.blocks, block, self.squeeze, self.actnorm)
        )
        encoder_shape = (
            (4 * self.shape[0], self.shape[1] // 2, self.shape[2] // 2)
            if self.squeeze
            else self.shape
        )
        self.encoder = CodeEncoder(
            encoder_shape,
            self.code_dim,
            self.encoder_planes,
            self.encoder_channels,
            self.encoder_activation,
        )
        self.prior = CodePrior(
            self.code_dim, self.prior_steps, self.prior_width, self.prior_activation
        )

    def posterior(self, x: Batch) -> tuple[Codes, Codes]:
        """Mean and log-variance of the Gaussian q(u|x), each (B, K)."""
        return self.encoder(F.pixel_unshuffle(x, 2) if self.squeeze else x)

    def encode_code(self, x: Batch, *, generator: torch.Generator | None = None) -> Codes:
        """A draw of u ~ q(u|x), (B, K)."""
        return self._draw(x, generator)[0]

    def sample_code(self, n: int, *, generator: torch.Generator | None = None) -> Codes:
        """n draws of u ~ p(u), (n, K)."""
        like = self.encoder.head.weight
        noise = torch.randn(
            n, self.code_dim, generator=generator, dtype=like.dtype, device=like.device
        )
        return self.prior.code_of(noise)

    def kl(self, x: Batch, code: Tensor) -> PerSample:
        """log q(u|x) − log p(u) at ``code`` (B, K), nats.

        For u ~ q(u|x) it is an unbiased draw of KL(q(u|x) ‖ p(u)).
        """
        mean, log_variance = self.posterior(x)
        noise = (code - mean) * (-0.5 * log_variance).exp()
        return _normal_log_prob(noise, log_variance) - self.prior.log_prob(code)

    def at(self, code: Float[Tensor, " code"]) -> Compose:
        """h_u for one code u (K,), a flow with a log|det|; it shares the parameters of this flow."""
        return self._at(code[None].detach().clone())

    def forward(
        self, x: Batch, code: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Batch, PerSample]:
        """z = h_u(x) and log|det ∂z/∂x| at ``code`` (B, K).

        Without a code, u is drawn from q(u|x) and :meth:`kl` is subtracted.
        """
        if code is not None:
            return self._at(code)(x, generator=generator)
        code, kl = self._draw(x, generator)
        z, log_det = self._at(code)(x, generator=generator)
        return z, log_det - kl

    def latent(
        self, x: Tensor, code: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        code = self._draw(x, generator)[0] if code is None else code
        return self._at(code).latent(x)

    def inverse(self, z: Tensor, tol: float = TOLERANCE, *, code: Tensor | None = None) -> Tensor:
        """x with h_u(x) = z at ``code`` (B, K), by default drawn from p(u)."""
        return self._at(self._code_of(z, code)).inverse(z, tol)

    def solve_inverse(
        self, z: Tensor, tol: float = TOLERANCE, *, code: Tensor | None = None
    ) -> Inverse:
        return self._at(self._code_of(z, code)).solve_inverse(z, tol=tol)

    def _code_of(self, z: Tensor, code: Tensor | None) -> Tensor:
        return self.sample_code(len(z)).to(z) if code is None else code.detach()

    def _at(self, code: Tensor) -> Compose:
        parts: Iterable[Any] = self.chain
        return AtCodes(
            [part.at(code) if isinstance(part, ConditionalBlock) else part for part in parts]
        )

    def _draw(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """u ~ q(u|x) and log q(u|x) − log p(u)."""
        mean, log_variance = self.posterior(x)
        noise = tensors.randn_like(mean, generator)
        code = mean + (0.5 * log_variance).exp() * noise
        return code, _normal_log_prob(noise, log_variance) - self.prior.log_prob(code)


def _normal_log_prob(noise: Tensor, log_variance: Tensor) -> Tensor:
    """log density of N(m, e^log_variance) at m + e^(log_variance/2) noise, (B,)."""
    return -0.5 * (noise.square() + log_variance + math.log(2 * math.pi)).sum(1)
