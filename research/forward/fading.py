r"""A flow that fades to the identity along the clock: x_t = h_t⁻¹(z_t) with h_ε = h and h_T the identity.

The bound, samples and the likelihood of a model depend on h_ε alone, so that x_t on the way is a choice. With a flow
that fades, x_T is z_T, which is Gaussian. Every drift on the data space has one more term, −J ∂_t h_t(x).

    diffusion = FadingDiffusion(model, Fade(2.0))       # like indm.NonlinearDiffusion(model)
    path = fading_path(model, x, times, Fade(2.0))      # like indm.probability_flow_path(model, x, times)
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

import indm
from indm import flows
from indm.diffusion import TOLERANCE, Point, path_length
from indm.flows.autoregressive import AutoregressiveBlock
from indm.flows.coupling import Conditioner
from indm.flows.residual import ContractiveLinear, ResidualBlock
from indm.sampling import FLOW_TOLERANCE, follow_flow, log_snr_grid
from indm.tensors import evaluation_mode

FADING = {  # parameters that are 0 where a module is the identity
    flows.ActNorm: ("log_scale", "shift"),
    flows.InvertibleLinear: ("log_diagonal", "off_diagonal"),
    flows.ElementwiseFlow: ("raw",),
}
LAST = {Conditioner: "layers", AutoregressiveBlock: "output", ResidualBlock: "maps"}  # whose last layer is 0 there


def fades(flow: nn.Module) -> bool:
    """Whether ``flow`` has a way to the identity."""
    if isinstance(flow, flows.CouplingFlow):
        return flow.start == "identity"
    if isinstance(flow, flows.ResidualFlow):
        return True
    if isinstance(flow, flows.Compose):
        return all(map(fades, flow.flows))
    return isinstance(flow, flows.Identity | flows.ElementwiseFlow | AutoregressiveBlock | ResidualBlock)


def faded(flow: indm.flows.Flow, strength: Tensor | float) -> indm.flows.Flow:
    """``flow`` at ``strength`` a: what is 0 where it is the identity is multiplied by a; all else is shared.

    Raises:
        ValueError: the flow has no way to the identity.
    """
    if not fades(flow):
        raise ValueError(
            f"flow {type(flow).__name__} has no way to the identity; elementwise, residual and autoregressive "
            "flows have, and coupling flows with the option start = identity"
        )
    return _view(flow, strength)


def _view(module: nn.Module, strength: Tensor | float) -> nn.Module:
    parts = {name: part if part is None else _view(part, strength) for name, part in module._modules.items()}
    for kind, name in LAST.items():
        if isinstance(module, kind):
            parts[name] = _with_last_scaled(parts[name], strength)
    own = next((names for kind, names in FADING.items() if isinstance(module, kind)), ())
    if not own and all(part is module._modules[name] for name, part in parts.items()):
        return module
    view = copy.copy(module)
    view._modules, view._parameters = parts, _scaled(module, own, strength)
    return view


def _with_last_scaled(layers: nn.Module, strength: Tensor | float) -> nn.Module:
    """A layer, or layers one after the other, with weight and bias of the last one times ``strength``."""
    view = copy.copy(layers)
    if isinstance(layers, nn.Sequential | nn.ModuleList):
        name = list(layers._modules)[-1]
        view._modules = layers._modules | {name: _with_last_scaled(layers[-1], strength)}
    elif isinstance(layers, ContractiveLinear):  # whose constraint is on the weight that is not scaled
        view._parameters = _scaled(layers, ("bias",), strength)
        view.constrained_weight = lambda: strength * layers.constrained_weight()
    else:
        view._parameters = _scaled(layers, ("weight", "bias"), strength)
    return view


def _scaled(module: nn.Module, names: Sequence[str], strength: Tensor | float) -> dict:
    return {k: strength * v if k in names and v is not None else v for k, v in module._parameters.items()}


@dataclass(frozen=True)
class Fade:
    r"""The strength of h_t along the clock: :math:`a(p) = (1 - p)^k` at the place p, from 1 at ε to 0 at T.

    Args:
        power: k, 1 or more; a flow with a larger one is gone earlier. Below 1 ∂_t h_t would be infinite at T.

    Example:

        >>> Fade(2.0)(indm.VPSDE(), torch.tensor([1e-5, 1.0])).round(decimals=3).tolist()
        [1.0, 0.0]
    """

    power: float = 1.0

    def __post_init__(self):
        if not self.power >= 1:
            raise ValueError(f"power must be at least 1, got {self.power}; 1 fades evenly on the clock")

    def __call__(self, sde: indm.LinearSDE, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """a at times ``t``."""
        place = sde.place(sde.clock(t)).clamp(0, 1)
        return ((1 - place) ** self.power).to(t)


class FadingDiffusion(indm.NonlinearDiffusion):
    """The diffusion of the data behind a flow that fades; all points of a call have one time.

    Args:
        model: an INDM whose flow fades.
        fade: how.
        tol, probes: as of :class:`indm.NonlinearDiffusion`.
    """

    def __init__(self, model, fade: Fade, *, tol: float = TOLERANCE, probes: int = 1):
        super().__init__(model, tol=tol, probes=probes)
        faded(model.flow, 1.0)
        self.fade = fade

    def flow_at(self, t: Tensor) -> indm.flows.Flow:
        """h_t; ``t`` holds one time.

        Raises:
            ValueError: ``t`` holds more times than one.
        """
        return faded(self.model.flow, self.fade(self.model.sde, _one(t)))

    def change(self, x: Tensor, t: Tensor) -> Tensor:
        """∂_t h_t(x)."""
        with evaluation_mode(self.model):
            one = _one(t)
            a, slope = torch.func.jvp(lambda t: self.fade(self.model.sde, t), (one,), (torch.ones_like(one),))
            return torch.func.jvp(lambda a: faded(self.model.flow, a).latent(x), (a,), (slope,))[1]

    def forward_velocity(self, here: Point, generator: torch.Generator | None = None) -> Tensor:
        return super().forward_velocity(here, generator) - self.change(here.x, here.t)

    def generative_velocity(self, here: Point, generator: torch.Generator | None = None) -> Tensor:
        return super().generative_velocity(here, generator) - self.change(here.x, here.t)

    def flow_velocity(self, here: Point) -> Tensor:
        return super().flow_velocity(here) - self.change(here.x, here.t)


def _one(t: Tensor) -> Tensor:
    """The one time of all points."""
    if not bool((t == t[0]).all()):
        raise ValueError(f"t must be one time for all points of a flow that fades, got {t.unique().tolist()[:5]}")
    return t[0]


def fading_path(model, x: Tensor, times: Tensor, fade: Fade, *, tol: float = FLOW_TOLERANCE) -> Tensor:
    """x_t = h_t⁻¹(z_t) along the probability flow from x at times[0], (times, B, *event)."""
    return _decoded(FadingDiffusion(model, fade), _latents(model, fade, x, times, tol), times)


def choose_fade(
    model, x: Tensor, *, by: str = "length", powers: Sequence[float] = (1.0, 2.0, 4.0, 8.0), frames: int = 24
) -> Fade:
    """The :class:`Fade` among ``powers`` with which the data x have the shortest paths.

    Args:
        model: an INDM whose flow fades.
        x: data in model units.
        by: "length", of their paths x_t along the probability flow, or "isometry": the mean square of
            log‖(∂h_t/∂x) v‖² − log‖v‖² along it, which is 0 where h_t keeps lengths. As the identity does, this is
            mostly the largest power.
        powers: that are tried.
        frames: steps of a path.

    Raises:
        ValueError: another ``by``, no ``powers``, no ``frames``, or a flow that does not fade.

    Example: a flow that scales keeps lengths the better the earlier it fades.

        >>> tables = {"flow": {"name": "coupling", "depth": 1}, "sde": {"name": "vp"}, "net": {"name": "zero"}}
        >>> model = indm.build_model(tables, (2,))
        >>> _ = model.flow.flows[0].log_scale.data.fill_(1.0)
        >>> choose_fade(model, torch.randn(5, 2), by="isometry", powers=(1.0, 2.0), frames=6)
        Fade(power=2.0)
    """
    if by not in ("length", "isometry"):
        raise ValueError(f'by must be "length" or "isometry", got {by!r}')
    if not powers:
        raise ValueError(f"powers must be one or more numbers, got {powers!r}; (1.0, 2.0, 4.0) will do")
    if frames < 1:
        raise ValueError(f"frames must be at least 1 step of a path, got {frames}; 24 are usual")
    times = log_snr_grid(model.sde, frames).flip(0)
    latents = _latents(model, Fade(), x, times)  # at ε the flow is whole, so that all powers have these

    def criterion(power: float) -> float:
        diffusion = FadingDiffusion(model, Fade(power))
        path = _decoded(diffusion, latents, times)
        if by == "length":
            return path_length(path).mean().item()
        return sum(_stretch(diffusion, x_t, t).item() for x_t, t in zip(path, times.to(x), strict=True))

    return Fade(min(powers, key=criterion))


def _stretch(diffusion: FadingDiffusion, x: Tensor, t: Tensor) -> Tensor:
    """The mean square of log‖(∂h_t/∂x) v‖²/‖v‖² over x and one normal v for each."""
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    with evaluation_mode(diffusion.model):
        stretched = torch.func.jvp(diffusion.flow_at(t.expand(len(x))).latent, (x,), (v,))[1]
    return (stretched.flatten(1).square().sum(1) / v.flatten(1).square().sum(1)).log().square().mean()


def _latents(model, fade: Fade, x: Tensor, times: Tensor, tol: float = FLOW_TOLERANCE) -> list[Tensor]:
    """z_t along the probability flow from x at times[0]."""
    with evaluation_mode(model):
        path = [FadingDiffusion(model, fade).flow_at(times[:1].to(x)).latent(x)]
        for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            path.append(follow_flow(model.score, path[-1], t, s, tol=tol)[0])
    return path


def _decoded(diffusion: FadingDiffusion, latents: Sequence[Tensor], times: Tensor) -> Tensor:
    """h_t⁻¹ of the latent at each time."""
    return torch.stack([diffusion.decode(z, t.to(z).expand(len(z))) for z, t in zip(latents, times, strict=True)])
