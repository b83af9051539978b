r"""Unpaired translation of data of A to data of B, along probability flows.

- *Two models* (:func:`two_models`): x_A → h_A → the probability-flow ODE of A from ε to T → the ODE
  of B back to ε → h_B⁻¹ → x_B. With identity flows it is DDIB, https://arxiv.org/abs/2203.08382. A
  and B may be classes of one model.
- *SDEdit* (:func:`sdedit`): noise up to some t, then the probability flow of a model of B down.
- *One bridge* (:func:`bridge`): an INDM whose diffusion was trained to start in A and end in B.

Each is a :class:`Route`: h at its start, legs on the latent, h⁻¹ at its end. A deterministic route
is invertible up to the solver's error and the learned noise that is removed at its end
(:attr:`Arrival.end`).
"""

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from indm.checks import require
from indm.dequantization import check_raw, from_data
from indm.model import INDM
from indm.objective import flow_nll
from indm.sampling import follow_flow
from indm.sde.linear import LinearSDE
from indm.tensors import evaluation_mode, expand_like, noisy, randn_like

# evaluations one way, with which cycles of grey images were mostly off by less than 0.1 levels
STEPS = 120
# noise of latents at which the slope of log p is taken: at ε a trained score was too inexact
NEAR = 0.1
Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Leg:
    """The probability flow of ``model`` from ``start`` to ``end``; with ``noise``, the forward SDE.

    A model of p(x|c) is taken at ``c``, with ``guidance`` ``away_from`` another c, see
    :meth:`indm.INDM.given`.
    """

    model: INDM
    start: float
    end: float
    noise: bool = False
    c: Any = None
    guidance: float = 1.0
    away_from: Any = None

    def of(self, n: int) -> "Leg":
        """This leg for ``n`` samples, with the model at their conditions."""
        model = self.model.given(self.c, n, guidance=self.guidance, away_from=self.away_from)
        return replace(self, model=model, c=None, guidance=1.0, away_from=None)

    def times(self, frames: int) -> list[float]:
        """``frames`` times with both ends, equally spaced in log SNR."""
        clock = torch.linspace(*self.log_snrs, frames, dtype=torch.float64)
        return [self.start, *self.model.sde.time(clock)[1:-1].tolist(), self.end]

    @property
    def log_snrs(self) -> tuple[float, float]:
        """The log SNR at both ends."""
        ends = torch.tensor([self.start, self.end], dtype=torch.float64)
        start, end = self.model.sde.log_snr(ends).tolist()
        return start, end

    @property
    def length(self) -> float:
        """The length on the clock −log SNR."""
        start, end = self.log_snrs
        return abs(end - start)


@dataclass(frozen=True)
class Arrival:
    """The end of a route.

    Attributes:
        x: (B, *event), in units of the last leg's model.
        end: the start of the way back: x, or for a bridge x before its noise was removed.
        nfe: evaluations of a score, for the sample that took the most.
        frames: h⁻¹(z_t) at times of each leg, (B, frames, *event), in units of the leg's model.
    """

    x: Float[Tensor, "batch *event"]
    end: Float[Tensor, "batch *event"]
    nfe: int
    frames: Float[Tensor, "batch frames *event"]


@dataclass(frozen=True)
class Route:
    """A way from A to B: h of the first leg's model, the legs, and h⁻¹ of the last leg's model.

    Attributes:
        legs: each begins at the time at which the one before ends.
        steps: equal steps in −log SNR over all legs, one evaluation each.
        tol: take as many steps as an error of this size needs instead, see
            :func:`indm.sampling.follow_flow`.
        noise: deviations of the noise in x_0 and x_T with which a bridge was trained. A route that
            begins there adds the noise, see :meth:`translate`; one that ends there removes it by
            :func:`without_noise`.
    """

    legs: tuple[Leg, ...]
    steps: int = STEPS
    tol: float | None = None
    noise: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        legs = len(self.legs)
        require(self.steps >= legs, "steps", self.steps, f"at least {legs}, one a leg")
        fits = self.tol is None or 0 < self.tol < math.inf
        require(fits, "tol", self.tol, "positive and finite, or None for equal steps")
        for leg in self.legs:
            if leg.c is None:
                leg.of(1)  # an error if its model needs c
            leg.model.flow.check_density("a translation")

    @property
    def models(self) -> tuple[INDM, INDM]:
        """The models of the data at the start and at the end."""
        return self.legs[0].model, self.legs[-1].model

    @torch.no_grad()
    def source(
        self, raw: Shaped[Tensor, "batch *event"], seed: int = 0
    ) -> Float[Tensor, "batch *event"]:
        """``raw`` data at the start of the route, in units of the first model.

        With two models they are the middles of grey levels. With a bridge they have its noise,
        which depends on ``seed`` and on the pixels of the image alone, and not on the batch.
        """
        model = self.models[0]
        check_raw(model, raw)
        raw = raw.to(model.scaling.scale.device)
        middles = model.scaling.centre(raw)
        if not self.is_bridge:
            return middles
        noise = self.noise_at(self.legs[0].start)
        rows = []
        for row, middle in zip(raw.split(1), middles.split(1), strict=True):
            own = zlib.crc32(middle.float().cpu().contiguous().numpy().data, seed)
            generator = torch.Generator(raw.device).manual_seed(own)
            x, _ = from_data(model, row, generator=generator)
            rows.append(noisy(x, noise, generator))
        return torch.cat(rows) if rows else middles

    @torch.no_grad()
    def translate(
        self,
        raw: Shaped[Tensor, "batch *event"],
        seed: int = 0,
        *,
        frames: int = 0,
        generator: torch.Generator | None = None,
    ) -> Arrival:
        """Translate ``raw`` data: :meth:`follow` from :meth:`source` on.

        A bridge that begins with noise n is followed twice, with n and −n, because most of n would
        be left at the end. x and frames are the means of both, ``nfe`` counts both, and ``end`` is
        the end with n.

        Example: N(0, I) is not changed, and the noise is gone.

            >>> import indm
            >>> way = bridge(indm.build_model({"flow": "identity", "sde": "vp", "net": "zero"}, (2,)), noise=(0.5, 0.0))
            >>> there = way.translate(torch.ones(1, 2))
            >>> torch.allclose(there.x, torch.ones(1, 2), atol=1e-3), torch.allclose(there.end, there.x, atol=1e-3)
            (True, False)
        """
        x = self.source(raw, seed)
        there = self.follow(x, frames=frames, generator=generator)
        if not self.noise_at(self.legs[0].start) or any(leg.noise for leg in self.legs):
            return there
        middles = self.models[0].scaling.centre(raw.to(x.device)).to(x)
        other = self.follow(2 * middles - x, frames=frames)
        means = {"x": (there.x + other.x) / 2, "frames": (there.frames + other.frames) / 2}
        return replace(there, nfe=there.nfe + other.nfe, **means)

    @property
    def is_bridge(self) -> bool:
        """Whether it leads from one end of the diffusion of a model to the other."""
        return len(self.legs) == 1

    def noise_at(self, t: float) -> float:
        """The deviation of the noise in x_t; 0 between the ends."""
        sde = self.models[0].sde
        return {sde.eps: self.noise[0], sde.T: self.noise[1]}.get(t, 0.0)

    def back(self) -> "Route":
        """The reverse route, along the probability flows; ValueError if a leg has noise."""
        if any(leg.noise for leg in self.legs):
            raise ValueError("there is no way back along noise: a stochastic route has no cycle")
        legs = tuple(replace(leg, start=leg.end, end=leg.start) for leg in reversed(self.legs))
        return replace(self, legs=legs)

    def follow(
        self,
        x: Float[Tensor, "batch *event"],
        *,
        frames: int = 0,
        generator: torch.Generator | None = None,
    ) -> Arrival:
        """Take ``x`` along the route.

        Args:
            x: in units of the first model.
            frames: pictures of each leg, including its ends: 0 for none, else at least 2.
            generator: for legs with noise.

        Raises:
            ValueError: another shape.
            RuntimeError: an inverse of a flow did not converge, or the solver did not arrive.
        """
        first, last = self.models
        if tuple(x.shape[1:]) != first.shape:
            raise ValueError(
                f"x must be a batch of events of shape {first.shape}, got {tuple(x.shape)}"
            )
        with evaluation_mode(first), evaluation_mode(last):
            at_c = replace(self, legs=tuple(leg.of(len(x)) for leg in self.legs))
            start = at_c.models[0].encode(x)[0] * _rest(first.sde, self.legs[0].start, x)
            first_state = None if generator is None else generator.clone_state()
            z, nfe = start, 0
            for leg in at_c.legs:
                z, evaluations = at_c._advance(leg, z, generator)
                nfe += evaluations
            end = arrived = at_c.models[1].decode(z / _rest(last.sde, self.legs[-1].end, z))
            noise = self.noise_at(self.legs[-1].end)
            if noise:
                arrived = without_noise(at_c.models[1], end, noise, self.legs[-1].end)
            pictures = list(at_c._frames(start, frames, first_state)) if frames else []
        if pictures:
            pictures[-1] = arrived
        empty = x.new_zeros(len(x), 0, *x.shape[1:])
        return Arrival(arrived, end, nfe, torch.stack(pictures, 1) if pictures else empty)

    def _frames(
        self, z: Tensor, frames: int, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """h⁻¹(z_t) at the :meth:`Leg.times` of every leg.

        They are solved apart from the route, which is more exact without stops.
        """
        for leg in self.legs:
            yield leg.model.decode(z)
            for start, end in itertools.pairwise(leg.times(frames)):
                z, _ = self._advance(replace(leg, start=start, end=end), z, generator)
                yield leg.model.decode(z)

    def _advance(
        self, leg: Leg, z: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, int]:
        if leg.noise:
            return forward_step(leg.model.sde, z, leg.start, leg.end, generator), 0
        if self.tol is not None:
            return follow_flow(leg.model.score, z, leg.start, leg.end, tol=self.tol)
        length = sum(part.length for part in self.legs if not part.noise)
        steps = max(1, round(self.steps * leg.length / length))
        return follow_flow(leg.model.score, z, leg.start, leg.end, steps=steps)


def without_noise(
    model: INDM, x: Float[Tensor, "batch *event"], deviation: float, t: float | None = None
) -> Float[Tensor, "batch *event"]:
    r"""The mean E[x_t | x_t + σn] = x + σ² ∇ log p(x) of x without its noise of ``deviation`` σ.

    p is the law of x_t + σn, which the model has learned at an end. By default t is T, and p is
    h⁻¹#π. For smaller t it is the law of x_0 + σn, and its slope comes from the score at latents
    with a little more noise (:data:`NEAR`).

    Example: N(0, I) is N(0, (1 − σ²) I) with noise σ.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": "zero"}
        >>> without_noise(indm.build_model(tables, (2,)), torch.ones(1, 2), 0.5)
        tensor([[0.7500, 0.7500]])

    Source: Zhai et al. 2024, section 2.5, https://arxiv.org/abs/2412.06329.
    """
    at_data = t is not None and t < model.sde.T
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log_p = _log_prob_near(model, x) if at_data else -flow_nll(model, x)
        (slope,) = torch.autograd.grad(log_p.sum(), x)
    return x.detach() + deviation**2 * slope


def _log_prob_near(model: INDM, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """log p_t(α_t h(x)) + log|det ∂h/∂x| up to a constant, at the noise σ_t/α_t = :data:`NEAR`."""
    sde = model.sde
    near = sde.time(torch.tensor(-2 * math.log(NEAR), dtype=torch.float64))
    t = near.clamp(sde.eps, sde.T).expand(len(x)).to(x)
    z, log_det = model.encode(x)
    alpha = expand_like(sde.alpha(t), z)
    with torch.no_grad():
        slope = alpha * model.score(alpha * z, t)
    return log_det + (slope * z).flatten(1).sum(1)


def two_models(
    source: INDM,
    target: INDM,
    *,
    c: tuple[Any, Any] = (None, None),
    strength: float = 1.0,
    stochastic: bool = False,
    guidance: float = 1.0,
    steps: int = STEPS,
    tol: float | None = None,
) -> Route:
    """The route from data of ``source`` to data of ``target``.

    Both may be the same model, with two conditions.

    Args:
        c: the conditions of the data of ``source`` and ``target``, for models of p(x|c), such as
            ``("cat", "dog")``.
        guidance: w of the way down of one model with c = (a, b), which follows s(·|a) + w (s(·|b) −
            s(·|a)). Above 1 it leads farther away from a, at two evaluations of the score in place
            of one. There is still a way back.
        strength: the time at which it turns, as a fraction of T; below 1, more of the source is
            kept.
        stochastic: go up by the forward SDE of ``source``, and not by its probability flow. The
            result is then random (with identity flows: SDEdit, https://arxiv.org/abs/2108.01073),
            and there is no cycle.

    Raises:
        ValueError: the models differ in shape, grey levels or SDE; guidance between two models.
    """
    check_pair(source, target)
    if guidance != 1:
        is_one = source is target and all(part is not None for part in c)
        require(is_one, "guidance", guidance, "1 unless one model has two conditions c = (a, b)")
        target.check_guidance(guidance, c[0])
    sde = source.sde
    turn = _way(strength, sde)
    up = Leg(source, sde.eps, turn, noise=stochastic, c=c[0])
    away_from = None if guidance == 1 else c[0]
    down = Leg(target, turn, sde.eps, c=c[1], guidance=guidance, away_from=away_from)
    return Route((up, down), steps, tol)


def sdedit(
    model: INDM,
    *,
    c: Any = None,
    strength: float = 0.5,
    steps: int = STEPS,
    tol: float | None = None,
) -> Route:
    """The route from anything to data of ``model``: noise up to ``strength``, then its flow down.

    It needs no model of the source, and has no way back. In the original SDEdit the way down is the
    reverse SDE. ``c`` is the condition of the result; ``strength`` is the time at which it turns, as
    a fraction of T.

    Source: Meng et al. 2022, "SDEdit", https://arxiv.org/abs/2108.01073.
    """
    hint = "1 leaves nothing of the source, take 0.5"
    require(strength != 1, "strength", strength, "below 1 for sdedit", hint)
    turn = _way(strength, model.sde)
    legs = (Leg(model, model.sde.eps, turn, noise=True, c=c), Leg(model, turn, model.sde.eps, c=c))
    return Route(legs, steps, tol)


def bridge(
    model: INDM,
    direction: Direction = "forward",
    *,
    strength: float = 1.0,
    stochastic: bool = False,
    steps: int = STEPS,
    tol: float | None = None,
    noise: tuple[float, float] = (0.0, 0.0),
) -> Route:
    """The route through one INDM from its data at t = 0 to those at t = T, or "backward".

    Args:
        strength: fraction of the way from one end to the other.
        stochastic: by the forward SDE, so "forward" only; at strength 1 nothing of the source is
            left.
        noise: deviations of the noise with which x_0 and x_T were learned, see :class:`Route`.
    """
    if stochastic and direction == "backward":
        raise ValueError(
            "stochastic must be false for direction 'backward': the forward SDE leads away from t = 0"
        )
    sde = model.sde
    way = _way(strength, sde)
    ends = {"forward": (sde.eps, way), "backward": (sde.T, max(sde.eps, sde.T - way))}
    return Route((Leg(model, *ends[direction], noise=stochastic),), steps, tol, noise)


def translate(
    source: INDM,
    target: INDM,
    x: Float[Tensor, "batch *event"],
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Float[Tensor, "batch *event"]:
    """Data of A as data of B, by :func:`two_models` with ``options``.

    ``x`` is in units of ``source`` (``source.scaling.centre(raw)``). Convert the result back with
    ``target.scaling.to_data``.

    Source: §5 of Kim et al. 2022, https://arxiv.org/abs/2205.13699; Su et al. 2023,
    https://arxiv.org/abs/2203.08382.

    Example: two models with latents N(0, I), one with a flow that doubles its data.

        >>> import indm
        >>> tables = {"flow": {"name": "actnorm", "channels": 2}, "sde": "vp", "net": "zero"}
        >>> a, b = (indm.build_model(tables, (2,)) for _ in range(2))
        >>> _ = b.flow.log_scale.data.fill_(math.log(2.0))
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> translate(a, b, x)
        tensor([[ 0.5000, -1.0000]])
    """
    return two_models(source, target, **options).follow(x, generator=generator).x


def translate_bridge(
    model: INDM,
    x: Float[Tensor, "batch *event"],
    direction: Direction = "forward",
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Float[Tensor, "batch *event"]:
    """Data at one end of a bridge as data at its other end, by :func:`bridge` with ``options``.

    Use :meth:`Route.translate` for raw data of a model trained with noise.

    Example: for latents N(0, 4 I) with their exact score, x_T is x/2, and the way back ends at x.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": {"name": "mixture", "width": 8}}
        >>> model, x = indm.build_model(tables, (2,)), torch.randn(5, 2)
        >>> model.score.backbone.set_mixture(torch.ones(1), torch.zeros(1, 2), 4 * torch.eye(2)[None])
        >>> x_T = translate_bridge(model, x)
        >>> torch.allclose(x_T, x / 2, atol=1e-2)
        True
        >>> torch.allclose(translate_bridge(model, x_T, "backward"), x, atol=1e-2)
        True
    """
    return bridge(model, direction, **options).follow(x, generator=generator).x


def check_pair(source: INDM, target: INDM) -> None:
    """ValueError unless both models have the same shape, grey levels and SDE."""
    same, wanted = source.shape == target.shape, f"that of source, {source.shape}"
    require(same, "the shape of target", target.shape, wanted)
    if source.scaling.levels != target.scaling.levels:
        levels = f"{source.scaling.levels} and {target.scaling.levels}"
        raise ValueError(f"source and target must have the same grey levels, got {levels}")
    a, b = source.sde, target.sde
    t = torch.linspace(a.eps, a.T, 7, dtype=torch.float64)
    same = type(a) is type(b) and (a.eps, a.T) == (b.eps, b.T)
    if not (
        same
        and torch.equal(a.alpha(t).cpu(), b.alpha(t).cpu())
        and torch.equal(a.sigma(t).cpu(), b.sigma(t).cpu())
    ):
        raise ValueError(
            f"source and target must have the same SDE, got {_named(a)} and {_named(b)}"
        )


def forward_step(
    sde: LinearSDE, z: Tensor, t: float, s: float, generator: torch.Generator | None = None
) -> Tensor:
    """A draw of z_s given z_t for s ≥ t: (α_s/α_t) z_t + √(σ_s² − (α_s/α_t)² σ_t²) n."""
    before, after = z.new_full((len(z),), t), z.new_full((len(z),), s)
    ratio, std = (expand_like(v, z) for v in sde.transition(before, after))
    return ratio * z + std * randn_like(z, generator)


def _rest(sde: LinearSDE, time: float, z: Tensor) -> Tensor | float:
    """The factor from the encoded or decoded latent to z_t: α_ε at ε, and 1 elsewhere."""
    return expand_like(sde.alpha(z.new_full((len(z),), time)), z) if time == sde.eps else 1.0


def _way(strength: float, sde: LinearSDE) -> float:
    """``strength`` as a time after ε."""
    fits = sde.eps < strength * sde.T <= sde.T
    require(fits, "strength", strength, f"in ({sde.eps / sde.T:.2g}, 1]", "1 goes all the way")
    return strength * sde.T


def _named(sde: LinearSDE) -> str:
    t = torch.tensor([sde.T], dtype=torch.float64)
    end = (f"{of(t).mean().item():.3g}" for of in (sde.alpha, sde.sigma))
    return f"{type(sde).__name__} (ε = {sde.eps:g}, α_T = {next(end)}, σ_T = {next(end)})"
