r"""Networks trained elsewhere as INDMs with the identity flow.

A network f(x_τ, τ) with a path x_τ = α(τ) x_0 + σ(τ) n gives E[n|x_τ] at each noise level log(σ/α).
A score needs nothing else, so the linear SDE is free: at its time t the network is called at the τ
with the same noise level, with x_τ = (α(τ)/α_t) z_t.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from indm.checks import check_call, check_word, require
from indm.conditions import Condition
from indm.dequantization import Dequantization, GreyLevels
from indm.flows.base import Identity
from indm.foreign.check import check_denoiser
from indm.foreign.paths import PATH_POINTS, PREDICTIONS, Coefficients, Path, path_of
from indm.model import INDM, describe
from indm.names import find
from indm.nets.base import Backbone
from indm.ode import rademacher
from indm.protocols import Smooth
from indm.scaling import Scaling
from indm.score import ScoreModel
from indm.sde.linear import LogLinearSDE
from indm.tensors import (
    Batch,
    PerSample,
    check_shape,
    double,
    evaluation_mode,
    expand_like,
    randn_like,
)

TIMES_OF_SIGMA: Mapping[str, Callable[[Tensor], Tensor]] = {
    "log": lambda sigma: 0.25 * sigma.log(),
    "atan": lambda sigma: (2 / math.pi) * sigma.atan(),
}
SDE_EPS = 1e-5  # the time of the SDE at which the path begins
# ratio of the noise's error to the velocity's: refused from the first on, harmless below the second
MOST_NOISE_GAIN, USUAL_GAIN = 1e3, 10.0
LARGE = 20.0  # |x| of data in model units that no usual scaling gives
WHOLE = "the network takes no fractions of a step, so it is asked at the two steps around each: steps='whole'"
# errors of a network of whole steps that is called at a fraction
OF_EMBEDDINGS = (IndexError, RuntimeError, TypeError)
# where a network of a table of steps is called: at fractions of steps, or at whole steps
ASKED = ("between", "whole")
# largest deviation of a rounding, in units of the noise; it costs 4.5e-4 nats a dimension
MOST_ROUNDING = 0.03
# numbers at which it is measured, and their distance from the least log(σ/α)
ROUNDED_NUMBERS, NEAR = 1024, 0.01
MOST_TIMES = 2.0**20  # ratio to the least noise, up to which a harmless noise is looked for
# variances of a K-step model's steps: β_k, the posterior's, or between them
STEP_VARIANCES = ("large", "small", "learned")


class Denoiser(Backbone):
    """A network of another library as a backbone, see :mod:`indm.nets`.

    Args:
        factory: the network, or ``"package.module:function"``, which makes it.
        predicts, path, variance, steps: see :func:`from_denoiser`.
        options: arguments of the factory.
    """

    takes_condition = True
    examine = staticmethod(check_denoiser)

    def __init__(
        self,
        factory: Any,
        predicts: str,
        path: Any,
        options: Mapping[str, Any] | None = None,
        variance: str = "large",
        steps: str | None = None,
    ):
        super().__init__()
        check_word("predicts", predicts, PREDICTIONS)
        check_word("variance", variance, STEP_VARIANCES)
        check_word("steps", steps or ASKED[0], ASKED)
        self.noises, self.given_path = path_of(path), path
        self.least = self.level_at(self.noises.range[0])  # log(σ/α) at which likelihoods begin
        # the network's own time for τ, see :meth:`asking`
        self.asked_at: Callable[[Tensor], Tensor] = torch.clone
        fits = steps != "whole" or self.noises.is_table
        require(fits, "steps", steps, "'between', as the path has no steps")
        self.made_by = factory if isinstance(factory, str) else None
        self.network = find("net", factory)(**(options or {})) if self.made_by else factory
        self.predicts, self.given_options, self.variance = predicts, dict(options or {}), variance
        self._ask_at(steps)

    @property
    def _made_by(self) -> tuple[str, dict[str, Any]]:
        """The name and the arguments that make the network again; ValueError if nothing does."""
        if self.made_by is not None:
            return self.made_by, self.given_options
        try:
            options = describe(self.network, "net")
            return options.pop("name"), options
        except (ValueError, AttributeError) as error:
            raise ValueError(
                "this model cannot be saved, because its network was given as an object: give "
                "from_denoiser factory='package.module:function' with its options={…} instead"
            ) from error

    @property
    def factory(self) -> str:
        """The name of what makes the network again."""
        return self._made_by[0]

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of :attr:`factory`."""
        return self._made_by[1]

    @property
    def path(self) -> Any:
        """The path as it is saved; ValueError if it is an object."""
        path = self.given_path
        if isinstance(path, Mapping):
            return {
                name: torch.as_tensor(numbers, dtype=torch.float64).tolist()
                for name, numbers in path.items()
            }
        if not isinstance(path, str):
            raise ValueError("this model cannot be saved, because its path was given as an object")
        return path

    def _ask_at(self, steps: str | None) -> None:
        """Call the network at ``steps``; between whole ones its output is linear, with kinks."""
        self.steps = steps
        self.has_kinks = steps == "whole"
        says_so = isinstance(self.network, Smooth) and self.network.is_smooth
        self.is_smooth = says_so and not self.has_kinks

    def level_at(self, tau: float) -> float:
        """log(σ/α) of the path."""
        return self.noises.level(torch.tensor([tau], dtype=torch.float64)).item()

    def asking(self, time: Callable[[Tensor], Tensor], path: Path | None = None) -> "Denoiser":
        """The same network, called at time(τ) in place of τ, on another ``path`` if there is one."""
        other = copy.copy(self)
        other.asked_at = time
        other.noises = self.noises if path is None else path
        return other

    def predicting(self, kind: str) -> "Denoiser":
        """The same network with its output read as a prediction of that kind."""
        other = copy.copy(self)
        other.predicts = kind
        return other

    @property
    def sigma_data(self) -> float | None:
        """The deviation of the data in EDM's preconditioning; None for other networks."""
        return self.network.sigma_data if isinstance(self.network, Preconditioned) else None

    def preconditioned(self, sigma_data: float) -> "Denoiser":
        """The same network with another :attr:`sigma_data`."""
        other, network = copy.copy(self), copy.copy(self.network)
        network.sigma_data = sigma_data
        other._modules = {**self._modules, "network": network}
        return other

    def forward(self, y: Batch, level: PerSample, c: Tensor | None = None) -> Batch:
        """n̂ minus the noise of a standard normal latent, at y = x_τ/√(α² + σ²) and level log(σ/α)."""
        return self.noise(y, level, c) - expand_like((2 * level).sigmoid().sqrt(), y) * y

    def noise(self, y: Batch, level: PerSample, c: Tensor | None = None) -> Batch:
        """n̂ = E[n|x_τ]."""
        x, tau, f = self.output(y, level, c)
        return self.noise_from(self.predicts, f, x, tau)

    def noise_from(self, predicts: str, f: Tensor, x: Batch, tau: PerSample) -> Batch:
        """n̂ if the output ``f`` at x_τ is a prediction of that kind."""
        values = [self.noises.alpha(tau), self.noises.sigma(tau)]
        if predicts == "velocity":
            values += self.noises.slopes(tau)
        coefficients = Coefficients(*(expand_like(value.to(x), x) for value in values))
        return PREDICTIONS[predicts](f[:, : x.shape[1]], x, coefficients)

    def output(
        self, y: Batch, level: PerSample, c: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_τ, τ, and the output of the network, which has twice the channels if it learned variances.

        Raises:
            ValueError: the network returns something else, or what is not finite.
        """
        x, tau, f = self._called(y, level, c)
        if not isinstance(f, Tensor):
            hint = "a function can take it out: lambda x, tau: network(x, tau).sample"
            raise ValueError(f"network must return a tensor, got {type(f).__name__}; {hint}")
        if f.shape not in (x.shape, (len(x), 2 * x.shape[1], *x.shape[2:])):
            raise ValueError(
                f"network must return {tuple(x.shape)}, or twice the channels, got {tuple(f.shape)}"
            )
        finite = f.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            ordinary = y.flatten(1).abs().amax(1) < LARGE  # it may overflow elsewhere
            for row in (~finite & ordinary).nonzero()[:1]:
                noise = level[row].exp().item()
                raise ValueError(f"network must be finite, got NaN or infinity at σ/α {noise:.3g}")
        if self.predicts == "data":
            self._check_rounding(y, level, c)
        return x, tau, f.to(y.dtype)

    @torch.no_grad()
    def _check_rounding(self, y: Batch, level: PerSample, c: Tensor | None) -> None:
        """ValueError if predicted data are rounded too much for the least noise, which divides them."""
        rows = (level <= self.least + NEAR).nonzero()[:, 0]
        if not len(rows):
            return
        n = max(2, -(-ROUNDED_NUMBERS // y[0].numel()))
        rows = rows[torch.arange(n, device=rows.device) % len(rows)]
        some = y[rows].detach(), level[rows], None if c is None else c[rows]
        std = math.exp(level[rows[0]].item())  # σ/α
        rounding = self._rounding(*some, 1.0)
        if rounding <= MOST_ROUNDING * std:
            return
        times = 2.0
        while times < MOST_TIMES and self._rounding(*some, times) > MOST_ROUNDING * times * std:
            times *= 2
        tau = self.noises.time(torch.tensor([math.log(times * std)], dtype=torch.float64)).item()
        raise ValueError(
            f"eps must be a τ with more noise, such as {tau:.2g}, or the network in float32: it rounds "
            f"the data by {rounding:.2g}, which is divided by σ/α = {std:.2g}"
        )

    def _rounding(self, y: Batch, level: PerSample, c: Tensor | None, times: float) -> float:
        """The deviation of the rounding, from second differences over ``times`` σ and an eighth.

        Second differences of a smooth output fall with the square of the width. Those of rounding
        steps do not fall, or with the root of the width if the steps are wider than it.
        """
        generator = torch.Generator(y.device).manual_seed(0)
        sigma = expand_like((2 * double(level)).sigmoid().sqrt().to(y), y)
        y, side = y + sigma * randn_like(y, generator), rademacher(y, 1, generator)[:, 0]
        middle, found = self._called(y, level, c)[2].to(y), []
        for width in (times, times / 8):
            shift = width * sigma * side
            above, below = (self._called(at, level, c)[2].to(y) for at in (y + shift, y - shift))
            second = (above + below - 2 * middle)[:, : y.shape[1]]
            found.append((second.square().mean() * times / (6 * width)).sqrt().item())
        return min(found)

    def _called(self, y: Batch, level: PerSample, c: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        tau = self.noises.time(double(level)).clamp(min(self.noises.range), max(self.noises.range))
        x = expand_like(torch.hypot(self.noises.alpha(tau), self.noises.sigma(tau)).to(y), y) * y
        time = self.asked_at(tau)
        if self.steps != "whole":
            return x, tau, self._asked(x, time.to(x), c)
        below, share = time.floor().long(), expand_like(time.frac().to(x), x)
        f = self._asked(x, below, c)
        if bool(share.any()):
            f = torch.lerp(f, self._asked(x, time.ceil().long(), c), share)
        return x, tau, f

    def find_steps(self, x: Batch, c: Tensor | None = None) -> None:
        """Find out whether a network of a table of steps takes fractions of a step.

        It is called at one row, unless the user has given ``steps``. A network of whole steps, such
        as one with ``nn.Embedding``, refuses the float each time and takes the integer. All other
        errors are left to the calls that meet them.
        """
        if self.steps is not None or not self.noises.is_table:
            return
        fraction = x.new_full((len(x),), 0.5)
        refused = isinstance(self._error(x, fraction, c), OF_EMBEDDINGS)
        takes_whole = refused and self._error(x, fraction.long(), c) is None
        # again, as the error may have been a passing one
        if takes_whole and isinstance(self._error(x, fraction, c), OF_EMBEDDINGS):
            self._ask_at("whole")
            warnings.warn(WHOLE, RuntimeWarning, stacklevel=3)

    def _error(self, x: Batch, tau: Tensor, c: Tensor | None) -> Exception | None:
        """The error that the network raises at these steps, if any."""
        try:
            self._asked(x, tau, c)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return error
        return None

    def _asked(self, x: Batch, tau: Tensor, c: Tensor | None) -> Any:
        # it may change its arguments
        return self.network(x.clone(), tau, *(() if c is None else (c.clone(),)))


def from_denoiser(
    network: Callable[..., Tensor] | None = None,
    *,
    predicts: str,
    path: Any,
    shape: tuple[int, ...],
    scaling: Scaling | None = None,
    condition: Condition | None = None,
    dequantization: Dequantization | None = None,
    eps: float | None = None,
    variance: str = "large",
    steps: str | None = None,
    factory: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> INDM:
    """An INDM with the identity flow from a diffusion or flow-matching model trained elsewhere.

    The likelihood is N(0, prior_std² I), the start of the path, pulled back by the probability
    flow. Grey levels, if ``scaling`` has them, get no noise (see :class:`indm.GreyLevels`).

    Args:
        network: network(x, τ) or, with a condition, network(x, τ, c): x (B, *shape), τ (B,) in the
            units of the path. An output with twice the channels has a learned variance. A module
            is called in evaluation mode, on its device and in its precision. If you give a
            function, do so inside it, with gradients on.
        predicts: "noise", "data", "v" = α n − σ x_0, "score", or "velocity" = dx_τ/dτ.
        path: "edm" (σ from 0.002 to 80), "linear" (flow matching with noise at τ = 1),
            "linear-reversed" (data at 1), "trigonometric", "trigonometric-reversed",
            ``{"sigmas": (low, high)}``, ``{"betas": …}`` or ``{"alphas_bar": …}`` of K steps (τ = 0
            … K − 1), or an object with ``alpha(τ)``, ``sigma(τ)`` and ``range``, from the least
            noise to the start of sampling.
        shape: event shape, positive sizes.
        scaling: how raw data become the network's x; ``Scaling.between(-1, 1)`` for images of 256
            levels in [−1, 1]. By default data are x.
        condition: what c is. From :class:`indm.Classes` the network gets one number for each class:
            1 for the class of the row, and all 0 if it is hidden.
        dequantization: the noise of grey levels that the network was trained with; by default none.
        eps: τ at which likelihoods begin; by default where the path has the least noise. Each gives
            a bound of log P of grey levels; the best is where the network has learned best. A
            network that predicts data in half precision needs more noise: σ/α must be some 30 times
            its rounding, else an error names a better τ.
        variance: "large", "small" or "learned", of the steps of a K-step model, see
            :func:`indm.discrete_nelbo`.
        steps: "whole" for a network of a table of steps that takes only whole k, such as one with
            ``nn.Embedding``: it is called at the two k around a fraction, in int64, and its output
            is linear between them. "between" calls it at fractions. By default one row is tried: if
            the network refuses a float and takes an integer, "whole" is used, with a warning. Give
            "whole" yourself if a function works on another device only.
        factory: ``"package.module:function"`` in place of ``network``, so that the model can be
            saved, and read again inside :func:`indm.trust`. A module that keeps its arguments as
            attributes can be saved, too.
        options: arguments of the factory.

    Raises:
        ValueError: an unknown word, "whole" steps of a continuous path, a path that is not
            monotone, ``eps`` outside of it or where a velocity does not determine the noise, or a
            module in half precision.

    Example: the velocity of N(0, I), E[n − x_0|x], in flow matching.

        >>> import math
        >>> def velocity(x, tau):
        ...     tau = tau[:, None]
        ...     return (2 * tau - 1) / ((1 - tau) ** 2 + tau**2) * x
        >>> model = from_denoiser(velocity, predicts="velocity", path="linear", shape=(2,))
        >>> x = torch.randn(3, 2)
        >>> torch.allclose(model.log_prob(x), -0.5 * x.square().sum(1) - math.log(2 * math.pi), atol=1e-3)
        True
    """
    if (network is None) == (factory is None):
        raise ValueError("network or factory must be given, and not both")
    denoiser = Denoiser(
        network if factory is None else factory, predicts, path, options, variance, steps
    )
    noises = denoiser.noises
    scaling, condition, dequantization = copy.deepcopy(
        (scaling or Scaling(), condition, dequantization)
    )
    check_call(denoiser.network, "network", "x", "τ", *(() if condition is None else ("c",)))
    if dequantization is None and scaling.levels is not None:
        dequantization = GreyLevels()
    check_shape(shape)
    eps = noises.range[0] if eps is None else eps
    sde = sde_of(noises, eps)
    denoiser.least = denoiser.level_at(eps)
    if predicts == "velocity":
        check_velocity(noises, eps)
    model = INDM(Identity(), ScoreModel(denoiser, sde), scaling, shape, dequantization, condition)
    weight = next(denoiser.parameters(), model.scaling.scale)
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"network must be in float32 or float64, got {weight.dtype}; network.float() makes it so"
        )
    model.to(weight.device, weight.dtype)
    x, c = model.scaling.scale.new_zeros(1, *shape), None
    if condition is not None:
        c = condition.absent(1)
        c[:, 0] = 1  # not a hidden one, which the network may not know
    with evaluation_mode(model):
        denoiser.find_steps(x, c)
    return model


def sde_of(path: Path, eps: float) -> LogLinearSDE:
    """The SDE with the clock of the path from ``eps`` on, and with its prior.

    Raises:
        ValueError: ``eps`` is outside of the path.
    """
    first, last = path.range
    is_inside = first <= eps < last or last < eps <= first
    require(is_inside, "eps", eps, f"a τ from {first:g} to {last:g}, the path's own")
    ends = torch.tensor([eps, last], dtype=torch.float64)
    at_eps, at_end = (-2 * path.level(ends)).tolist()
    at_zero = at_end + (at_eps - at_end) / (1 - SDE_EPS)
    size = torch.hypot(path.alpha(ends[1]), path.sigma(ends[1])).item()
    return LogLinearSDE(at_zero, at_end, path.prior_std / size, SDE_EPS)


def check_velocity(path: Path, eps: float) -> None:
    """ValueError if a velocity does not determine the noise at ``eps``, because α and σ stand still."""
    tau = torch.linspace(eps, path.range[1], PATH_POINTS, dtype=torch.float64)
    alpha, sigma = path.alpha(tau), path.sigma(tau)
    alpha_slope, sigma_slope = path.slopes(tau)
    gain = alpha / (alpha * sigma_slope - sigma * alpha_slope).abs()
    if not bool(gain[0] < MOST_NOISE_GAIN):
        later = tau[gain < USUAL_GAIN][:1].tolist()
        advice = "one where log(σ/α) changes with τ"
        if later:
            advice = f"a τ nearer to the noise, such as {later[0]:.4g}"
        raise ValueError(
            f"eps must be {advice}: at {eps:g} a velocity does not say what the noise is"
        )


class Preconditioned(nn.Module):
    r"""EDM's network F(c_in x, ¼ log σ, …) as one that predicts data, D = c_skip x + c_out F.

    Args:
        network: F.
        sigma_data: deviation of the data that it was trained on.
        noise: what F sees of σ: "log" is ¼ log σ, "atan" is (2/π) arctan σ.

    Source: Karras et al. 2022, "Elucidating the Design Space", table 1,
    https://arxiv.org/abs/2206.00364.

    Example: F = 0 is exact for data N(0, σ² I) with σ = ``sigma_data``.

        >>> D = Preconditioned(lambda x, t: torch.zeros_like(x), sigma_data=0.5)
        >>> torch.allclose(D(torch.ones(1, 2), torch.tensor([0.5])), torch.tensor(0.5))
        True
    """

    sigma_data: float | None

    def __init__(self, network: Callable[..., Tensor], sigma_data: float = 0.5, noise: str = "log"):
        super().__init__()
        self.network, self.sigma_data, self.noise = network, sigma_data, noise

    def output(self, x: Batch, time: Tensor, *c: Tensor) -> Tensor:
        """F."""
        return self.network(x, time, *c)

    def forward(self, x: Batch, sigma: PerSample, *c: Tensor) -> Batch:
        assert self.sigma_data is not None
        s = expand_like(sigma, x)
        std = (s**2 + self.sigma_data**2).sqrt()
        f = self.output(x / std, TIMES_OF_SIGMA[self.noise](sigma), *c)
        return (self.sigma_data / std) ** 2 * x + s * self.sigma_data / std * f
