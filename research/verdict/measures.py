"""Effects of a flow on images and on the diffusion: where it moves images, and the coefficients on
the data.

Images are grey levels (N, C, H, W). Numbers are what JSON can hold. One seed gives every model the
same noise.
"""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from indm import NonlinearDiffusion, forward_path
from indm.ode import rademacher
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, double, evaluation_mode, expand_like

PATHS = 64
NOISES = (0.1, 0.5, 1.0, 2.0, 5.0)  # σ/α of the levels at which paths are looked at
BATCH = 256

Images = Num[Tensor, "n c h w"]
Numbers = dict[str, Any]


def behaviour(model, test: Images, seed: int) -> list[Numbers]:
    """The :func:`coefficients` of the data-space diffusion along its paths from test images, at
    each of NOISES.
    """
    # products with J must be exact also where a trained flow is steep
    model = copy.deepcopy(model).double()
    generator = make_generator(model.scaling.scale, seed, 3)
    x = model_units(model, test[:PATHS], generator)
    times = times_at(model.sde, NOISES)
    path = forward_path(model, x, times, generator=generator)
    return [coefficients(model, x_t, t, generator) for x_t, t in zip(path, times, strict=True)]


def coefficients(model, x_t: Batch, t: Float[Tensor, ""], generator: torch.Generator) -> Numbers:
    """The drift f_φ and the volatility G_φ of the data-space diffusion at points x_t of one time.

    Returns:
        ``noise`` σ/α. Of entries, root mean squares in model units: ``drift``,
        ``drift_beyond_linear`` (of f_φ − f x_t) and ``volatility`` (of G v, v white). With e the
        eigenvalues of GᵀG: ``anisotropy``: Var(e)/E[e]² over directions and points, 0 for a
        multiple of a rotation. ``spectrum``: the energy of G v at each spatial frequency relative
        to g v, see :func:`by_frequency`. Drifts are products of two draws of the probes: they have
        no bias.
    """
    diffusion, each = NonlinearDiffusion(model), t.to(x_t).expand(len(x_t))
    drifts = [diffusion.drift(x_t, each, generator=generator) for _ in range(2)]
    linear = expand_like(model.sde.drift(each), x_t) * x_t
    G, v = diffusion.diffusion(x_t, each), rademacher(x_t, 1, generator)[:, 0]
    Gv = G @ v
    mean, square = (double(w).square().mean().item() for w in (Gv, G.mT @ Gv))
    g = expand_like(model.sde.diffusion(each), x_t)
    return {
        "noise": math.exp(-0.5 * model.sde.log_snr(double(t)).item()),
        "drift": root(drifts[0] * drifts[1]),
        "drift_beyond_linear": root((drifts[0] - linear) * (drifts[1] - linear)),
        "volatility": math.sqrt(mean),
        "anisotropy": square / mean**2 - 1,
        "spectrum": (by_frequency(Gv).sum(0) / by_frequency(g * v).sum(0)).tolist(),
    }


def root(product: Batch) -> float:
    """The root of the mean over entries, 0 where noise made that negative."""
    return math.sqrt(max(double(product).mean().item(), 0.0))


def displacement(model, test: Images, seed: int) -> Numbers:
    """The displacement Δ = h(x) − x of test images.

    Returns:
        ``size``: √(E‖Δ‖²/E‖x‖²). ``constant``: the share of E‖Δ‖² that is the same for all images.
        ``frequency``, cycles a pixel, and ``moved`` and ``x``: for each channel the energy of Δ and
        of x at each, see :func:`by_frequency`.
    """
    x = model_units(model, test, make_generator(model.scaling.scale, seed, 4))
    with evaluation_mode(model):
        delta = torch.cat([model.flow.latent(part) for part in x.split(BATCH)]) - x
    moved, energy = by_frequency(delta), by_frequency(x)
    total = moved.sum().item()
    return {
        "size": math.sqrt(total / energy.sum().item()),
        "constant": by_frequency(delta.mean(0, keepdim=True)).sum().item() / total
        if total
        else 0.0,
        "frequency": [band / max(x.shape[2:]) for band in range(moved.shape[1])],
        "moved": moved.tolist(),
        "x": energy.tolist(),
    }


def by_frequency(v: Float[Tensor, "n c h w"]) -> Float[Tensor, "c bands"]:
    """The mean energy of each channel at each spatial frequency, in bands of a cycle an image; the
    sum is E‖v‖².
    """
    power = torch.fft.fft2(double(v), norm="ortho").abs().square().mean(0).flatten(1)
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in v.shape[2:])
    band = (torch.hypot(rows[:, None], columns) * max(v.shape[2:])).round().long().flatten()
    return power.new_zeros(len(power), int(band.max()) + 1).index_add(1, band, power)


def model_units(model, raw: Images, generator: torch.Generator) -> Batch:
    """Images in model units, dequantized."""
    with torch.no_grad():
        return model.from_data(raw, generator=generator)[0]


def times_at(sde: LinearSDE, noises: tuple[float, ...]) -> Float[Tensor, " times"]:
    """The times at which σ/α has these values."""
    return sde.time(-2 * torch.tensor(noises, dtype=torch.float64).log())


def make_generator(like: Tensor, seed: int, stream: int) -> torch.Generator:
    """A generator on the device of ``like``; streams of one seed share no numbers."""
    return torch.Generator(like.device).manual_seed(seed + 1_000_003 * stream)
