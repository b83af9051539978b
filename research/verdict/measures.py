r"""Measures of a model of images: bounds, samples, and what its flow does to data and to the diffusion.

A training job calls :func:`measure` right after it trained a model, and keeps the numbers and the nats of each image.
Images are grey levels (N, C, H, W). Numbers are what JSON can hold; ``…_standard_error`` is over images or samples. One
seed gives every model the same noise, so that differences between models are sharper than either error.

The constants set how long :func:`measure` takes: 7 to 10 minutes of one core for 1,000 test images 3×16×16 and a
U-Net of 32 channels.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from indm import NLL, Bound, NonlinearDiffusion, evaluate, forward_path
from indm.flows import ActNorm, Identity
from indm.likelihood import latents_of
from indm.model import INDM
from indm.objective import prior_term
from indm.ode import rademacher
from indm.sampling import default_sampler
from indm.scaling import Scaling
from indm.sde.linear import LinearSDE
from indm.tensors import Batch, double, evaluation_mode, event_sum, expand_like, randn_like
from indm.workbench.data.base import Data
from indm.workbench.data.examples import InMemory
from indm.workbench.evaluation.statistics import in_both_units, mean_and_error
from research.lab.distances import frechet, make_generator, prior_draws, solve
from research.lab.extractor import Extractor, train_extractor
from research.lab.statistics import jackknife, share_error

TIMES, REPEATS = 8, 4  # evaluations of the score in a draw of the bound, and draws for each image
GAP_IMAGES, GAP_REPEATS = 1000, 2
SAMPLES = 1000
EVALUATIONS = (2, 4, 8, 16, 32)  # of the score for one sample, the last denoising included
THEOREM_EVALUATIONS = 16
SHRUNK = 0.7  # the deviation of the spline's latents over that of the images, of CIFAR-10
# In a trial these samples were off the solution of the ODE by a mean square of 1e-9, those in 32 evaluations by 2e-6.
CONVERGED_SAMPLES, CONVERGED_EVALUATIONS = 500, 96
PRIOR_SAMPLES = 5000
PATHS = 64
NOISES = (0.1, 0.5, 1.0, 2.0, 5.0)  # σ/α of the levels at which paths and classes are looked at
PROBE_IMAGES = 5000  # of the training split
PROBE_PENALTY, PROBE_ITERATIONS = 0.1, 300  # C and the most iterations of the logistic regression
EXTRACTOR_IMAGES, EXTRACTOR_EPOCHS = 8000, 4
BATCH = 256

Images = Num[Tensor, "n c h w"]
Labels = Int[Tensor, " n"]
Features = Callable[[Images], Float[Tensor, "n k"]]
Numbers = dict[str, Any]
Arrays = dict[str, Tensor]


def measure(model, train: Images, test: Images, labels: tuple[Labels, Labels], seed: int) -> tuple[Numbers, Arrays]:
    """All measures of a model.

    Args:
        model: an INDM whose flow has one map.
        train, test: images of 256 grey levels, at least 500 of each.
        labels: their classes, from 0.
        seed: of all draws.

    Returns:
        The numbers by measure, with the CPU ``seconds`` of each; and nats of single test images, see :func:`bound` and
        :func:`gap`.
    """
    row: Numbers = {"seconds": {}}

    def timed(name: str, function: Callable, *arguments: Any) -> Any:
        start = time.process_time()
        result = function(*arguments)
        row["seconds"][name] = time.process_time() - start
        return result

    extractor = timed("extractor", feature_network, train, test, labels)
    row["extractor"] = extractor.provenance
    row["bound"], bound_nats = timed("bound", bound, model, test, seed)
    row["gap"], gap_nats = timed("gap", gap, model, test, seed)
    z_T = prior_draws(model, SAMPLES, seed)
    x = timed("converged", default_samples, model, z_T[:CONVERGED_SAMPLES], CONVERGED_EVALUATIONS)
    row["few_steps"] = timed("few_steps", few_steps, model, z_T, x, test, extractor.features, seed)
    if isinstance(model.flow, Identity):
        row["few_steps_shrunk"] = timed("shrunk", few_steps_shrunk, model, z_T, test, extractor.features, seed)
    row["theorem"] = timed("theorem", theorem, model, z_T, x, train, test, extractor.features, seed)
    row["prior_distance"] = timed("prior_distance", prior_distance, model, seed)
    row["behaviour"] = timed("behaviour", behaviour, model, test, seed)
    row["displacement"] = timed("displacement", displacement, model, test, seed)
    row["class_probe"] = timed("class_probe", class_probe, model, train, test, labels, seed)
    row["class_control"] = timed("class_control", class_control, model, train, test, labels, seed)
    return row, bound_nats | gap_nats


# ── Likelihood ───────────────────────────────────────────────────────────────────────────────────────────────────────


def bound(model, test: Images, seed: int) -> tuple[Numbers, Arrays]:
    """The NELBO of the test images.

    Returns:
        ``with_reconstruction``, ``without_reconstruction``, ``terms`` and ``by_level`` (the score term in eight equal
        parts of the log-SNR clock), each in nats and in bits/dim with its standard error over images. Arrays
        ``nelbo_nats`` (N,), ``nelbo_without_reconstruction_nats`` (N,) and ``nelbo_levels_nats`` (N, 8).
    """
    found = evaluate(model, test, [Bound(times=TIMES)], repeats=REPEATS, seed=seed, progress=False)
    report, nats = found.report, found.nats
    return report["nelbo"], {f"{name}_nats": values for name, values in nats.items()}


def gap(model, test: Images, seed: int) -> tuple[Numbers, Arrays]:
    """NELBO − NLL of the first test images; the NLL is that of the probability-flow ODE.

    All images are solved in few steps, and some to 1e-3 bits/dim, which corrects the mean (:mod:`indm.multilevel`).
    It takes at least 96 images.

    Returns:
        ``nats`` and ``bits_per_dim`` with their standard errors, over images and of the correction together;
        ``solver_error_bits_per_dim``, which bounds what is left; ``nll_bits_per_dim``. Array ``nll_coarse_nats`` (N,).
    """
    measures = [Bound(times=TIMES), NLL()]
    found = evaluate(model, test[:GAP_IMAGES], measures, repeats=GAP_REPEATS, seed=seed, progress=False)
    report, nats = found.report, found.nats
    nelbo, nll = (report[kind]["with_reconstruction"] for kind in ("nelbo", "nll"))
    _, over_images = mean_and_error(nats["nelbo"] - nats["nll_coarse"])
    error = math.hypot(over_images, report["nll"]["added_error"]["nats"])
    numbers = in_both_units({"": nelbo["nats"] - nll["nats"], "_standard_error": error}, report["dims"])
    solver = report["nll"]["solver_error"]["bits_per_dim"]
    numbers |= {"solver_error_bits_per_dim": solver, "nll_bits_per_dim": nll["bits_per_dim"]}
    return numbers, {"nll_coarse_nats": nats["nll_coarse"]}


# ── Samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def feature_network(train: Images, test: Images, labels: tuple[Labels, Labels]) -> Extractor:
    """A small classifier of the labels, whose 64 features compare images; the same one in every job."""
    data = Data(
        name="verdict",
        train=InMemory(train),
        valid=InMemory(train[:0]),
        test=InMemory(test),
        scaling=Scaling.images(256),
        shape=tuple(train.shape[1:]),
        labels=dict(zip(("train", "test"), labels, strict=True)),
    )
    return train_extractor(data, epochs=EXTRACTOR_EPOCHS, most=EXTRACTOR_IMAGES, progress=False)


def default_samples(model, z_T: Batch, evaluations: int) -> Batch:
    """Samples in model units from z_T by the default sampler, which ends with a denoising."""
    return solve(model, z_T, default_sampler(model), evaluations - 1)[0]


def few_steps(model, z_T: Batch, x: Batch, test: Images, features: Features, seed: int) -> list[Numbers]:
    """Samples in few evaluations of the score, by the default sampler and by Euler–Maruyama.

    Args:
        z_T: draws of the prior, (n, *event).
        x: converged samples from the first m of them, (m, *event), model units.

    Returns:
        Rows ``sampler``, ``evaluations``, ``frechet`` from as many test images, squared units of the features. Those
        of the default sampler also have ``squared``: the mean squared distance of an entry from that of ``x``.
    """
    reference, default, rows = features(test[: len(z_T)]), default_sampler(model), []
    for sampler in (default, "euler-maruyama"):
        for evaluations in EVALUATIONS:
            row, y = sampled(model, z_T, sampler, evaluations, reference, features, seed)
            rows.append(row | squared("squared", y[: len(x)] - x) if sampler == default else row)
    return rows


def few_steps_shrunk(model, z_T: Batch, test: Images, features: Features, seed: int) -> list[Numbers]:
    """The rows of Euler–Maruyama of :func:`few_steps`, of the model with a latent of :data:`SHRUNK` times the size."""
    reference, model = features(test[: len(z_T)]), shrunken(model, SHRUNK)
    return [sampled(model, z_T, "euler-maruyama", n, reference, features, seed)[0] for n in EVALUATIONS]


def sampled(
    model, z_T: Batch, sampler: str, evaluations: int, reference: Float[Tensor, "m k"], features: Features, seed: int
) -> tuple[Numbers, Batch]:
    """A row of :func:`few_steps` without its squared distance, and the samples in model units."""
    y, spent = solve(model, z_T, sampler, evaluations - 1, generator=make_generator(z_T, seed, 1))
    return {"sampler": sampler, "evaluations": spent} | frechet(features(model.scaling.to_data(y)), reference), y


def shrunken(model, factor: float) -> INDM:
    """The model of the same data whose latent is ``factor`` times that of ``model``, which has no flow."""
    flow = ActNorm(model.shape[0])
    flow.log_scale.data.fill_(math.log(factor))
    return INDM(flow, Shrunk(model.score, factor), model.scaling, model.shape)


class Shrunk(nn.Module):
    """The score of a latent of ``factor`` times the size, by denoising at 1/``factor`` times the noise."""

    def __init__(self, score: nn.Module, factor: float):
        super().__init__()
        self.score, self.factor, self.sde = score, factor, score.sde

    def forward(self, z_t: Batch, t: Tensor) -> Batch:
        sde = self.sde
        own = sde.time(sde.log_snr(t) + 2 * math.log(self.factor)).clamp(sde.eps, sde.T)
        alpha, sigma, a, s = (expand_like(v, z_t) for v in (sde.alpha(t), sde.sigma(t), sde.alpha(own), sde.sigma(own)))
        z = z_t * a / (alpha * self.factor)
        denoised = self.factor * (z + s.square() * self.score(z, own)) / a
        return (alpha * denoised - z_t) / sigma.square()


def squared(name: str, difference: Batch) -> Numbers:
    """The mean square of an entry, with its standard error over samples."""
    mean, error = mean_and_error(double(difference).square().flatten(1).mean(1))
    return {name: mean, f"{name}_standard_error": error}


def theorem(model, z_T: Batch, x: Batch, train: Images, test: Images, features: Features, seed: int) -> Numbers:
    """The three parts of the sampling error: prior, discretization and estimation.

    Samples from the true law of z_T start at α_T h(x) + σ_T n for training images x, with the noise n of ``z_T``.

    Args:
        z_T, x: as in :func:`few_steps`; the first m training and test images are used.

    Returns:
        ``prior_kl``: E KL(q(z_T|z_0) ‖ π), nats. ``prior_squared``: the mean squared distance of an entry of the
        converged samples from π and from the true z_T. ``discretization_squared``: the same of samples in 16
        evaluations and converged ones, from π. ``estimation_frechet``: the distance of converged samples from the true
        z_T to test images, and ``floor_frechet``: that of training images. In nats the estimation error is the NELBO
        less the entropy of the data and the prior's KL, so that two models differ in it as in their NELBO.
    """
    sde, z_T, train, test = model.sde, *(part[: len(x)] for part in (z_T, train, test))
    z = latents_of(model, train, generator=make_generator(z_T, seed, 2))
    noise = (z_T - sde.prior_mean.to(z_T)) / sde.prior_std
    from_data = default_samples(model, sde.perturb(z, sde.endpoints(z)[1], noise), CONVERGED_EVALUATIONS)
    kl, error = mean_and_error(prior_kl(sde, z))
    numbers: Numbers = {"prior_kl": kl, "prior_kl_standard_error": error} | squared("prior_squared", x - from_data)
    numbers |= squared("discretization_squared", default_samples(model, z_T, THEOREM_EVALUATIONS) - x)
    reference = features(test)
    sets = {"estimation": features(model.scaling.to_data(from_data)), "floor": features(train)}
    distances = {part: frechet(own, reference) for part, own in sets.items()}
    return numbers | {f"{part}_{name}": value for part, own in distances.items() for name, value in own.items()}


def prior_kl(sde: LinearSDE, z: Batch) -> Float[Tensor, " n"]:
    """KL(q(z_T|z_0) ‖ π) of each latent z_0, nats."""
    z = double(z)
    sigma = sde.kernel(sde.endpoints(z)[1]).sigma
    return prior_term(sde, z) - event_sum(sigma.log() + 0.5 * math.log(2 * math.pi * math.e), z)


# ── The flow ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def prior_distance(model, seed: int) -> Numbers:
    """How far x_T = h⁻¹(z_T) is from N(0, I), the law of z_T under VP; all numbers are 0 for the identity.

    Each statistic is taken of x_T less that of the z_T behind it, which takes away most of its noise and of its bias.

    Returns:
        ``mean``: root mean square of the entries of the mean. ``variance``: the mean over entries, less 1. ``kl``: of
        the Gaussian with the moments of x_T from N(0, I), nats a dimension. ``kurtosis``: the mean excess kurtosis of
        an entry. Each has a jackknife error. ``exact_kl``: of x_T itself, E[log q(x_T) − log N(x_T)], nats a dimension.
    """
    z = prior_draws(model, PRIOR_SAMPLES, seed)
    with evaluation_mode(model):
        x = torch.cat([model.decode(part) for part in z.split(BATCH)])
        mapped = [model.flow(part) for part in x.split(BATCH)]
    nats = torch.cat([log_det - 0.5 * event_sum(y.square(), y) for y, log_det in mapped])
    kl, error = mean_and_error(double(nats + 0.5 * event_sum(x.square(), x)) / x[0].numel())
    numbers = jackknife(_distance_from_normal, double(x).flatten(1), double(z).flatten(1))
    return numbers | {"exact_kl": kl, "exact_kl_standard_error": error}


def _distance_from_normal(x: Float[Tensor, "n d"], z: Float[Tensor, "n d"]) -> dict[str, float]:
    moved = _normal_statistics(x) - _normal_statistics(z)
    mean = (x - z).mean(0).square().mean().sqrt()
    return dict(zip(("mean", "variance", "kl", "kurtosis"), [mean.item(), *moved.tolist()], strict=True))


def _normal_statistics(x: Float[Tensor, "n d"]) -> Float[Tensor, "3"]:
    """Variance, KL of the fitted Gaussian from N(0, I), nats, and kurtosis; means over entries."""
    mean, covariance = x.mean(0), torch.cov(x.T)
    variance = covariance.diagonal()
    kl = 0.5 * (variance.sum() + mean.square().sum() - len(mean) - covariance.logdet()) / len(mean)
    kurtosis = ((x - mean).pow(4).mean(0) / variance.square()).mean()
    return torch.stack([variance.mean(), kl, kurtosis])


def behaviour(model, test: Images, seed: int) -> list[Numbers]:
    """The :func:`coefficients` of the data-space diffusion along its paths from test images, at each of NOISES."""
    model = copy.deepcopy(model).double()  # products with J must be exact also where a trained flow is steep
    generator = make_generator(model.scaling.scale, seed, 3)
    x = model_units(model, test[:PATHS], generator)
    times = times_at(model.sde, NOISES)
    path = forward_path(model, x, times, generator=generator)
    return [coefficients(model, x_t, t, generator) for x_t, t in zip(path, times, strict=True)]


def coefficients(model, x_t: Batch, t: Float[Tensor, ""], generator: torch.Generator) -> Numbers:
    """The drift f_φ and the volatility G_φ of the data-space diffusion at points x_t of one time.

    Returns:
        ``noise`` σ/α. Of entries, root mean squares in model units: ``drift``, ``drift_beyond_linear`` (of f_φ − f x_t)
        and ``volatility`` (of G v, v white). With e the eigenvalues of GᵀG: ``anisotropy``: Var(e)/E[e]² over
        directions and points, 0 for a multiple of a rotation. ``spectrum``: the energy of G v at each spatial frequency
        over that of g v, see :func:`by_frequency`. Drifts are products of two draws of the probes: they have no bias.
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
    """Where the displacement Δ = h(x) − x of test images lies.

    Returns:
        ``size``: √(E‖Δ‖²/E‖x‖²). ``constant``: the share of E‖Δ‖² that is the same for all images. ``frequency``,
        cycles a pixel, and ``moved`` and ``x``: for each channel the energy of Δ and of x at each, see
        :func:`by_frequency`.
    """
    x = model_units(model, test, make_generator(model.scaling.scale, seed, 4))
    with evaluation_mode(model):
        delta = torch.cat([model.flow.latent(part) for part in x.split(BATCH)]) - x
    moved, energy = by_frequency(delta), by_frequency(x)
    total = moved.sum().item()
    return {
        "size": math.sqrt(total / energy.sum().item()),
        "constant": by_frequency(delta.mean(0, keepdim=True)).sum().item() / total if total else 0.0,
        "frequency": [band / max(x.shape[2:]) for band in range(moved.shape[1])],
        "moved": moved.tolist(),
        "x": energy.tolist(),
    }


def by_frequency(v: Float[Tensor, "n c h w"]) -> Float[Tensor, "c bands"]:
    """The mean energy of each channel at each spatial frequency, in bands of a cycle an image; the sum is E‖v‖²."""
    power = torch.fft.fft2(double(v), norm="ortho").abs().square().mean(0).flatten(1)
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in v.shape[2:])
    band = (torch.hypot(rows[:, None], columns) * max(v.shape[2:])).round().long().flatten()
    return power.new_zeros(len(power), int(band.max()) + 1).index_add(1, band, power)


# ── The class ────────────────────────────────────────────────────────────────────────────────────────────────────────


def class_probe(
    model, train: Images, test: Images, labels: tuple[Labels, Labels], seed: int, unit: float = 1.0
) -> list[dict[str, float]]:
    """The test accuracy of a linear classifier of the class from z_t = α_t h(x) + σ_t n.

    Returns:
        For each of :data:`NOISES`, in ``unit`` of σ/α: ``noise``, ``accuracy`` and its ``standard_error`` over test
        images.
    """
    generator = make_generator(model.scaling.scale, seed, 5)
    z = [latents_of(model, raw, generator=generator) for raw in (train[:PROBE_IMAGES], test)]
    of_train, of_test = labels[0][:PROBE_IMAGES].numpy(), labels[1].numpy()
    rows = []
    for noise, t in zip(NOISES, times_at(model.sde, tuple(unit * n for n in NOISES)), strict=True):
        z_t = [model.sde.perturb(v, t.to(v).expand(len(v)), randn_like(v, generator)).flatten(1) for v in z]
        of_scale = [(v / z_t[0].std()).numpy() for v in z_t]
        probe = LogisticRegression(C=PROBE_PENALTY, max_iter=PROBE_ITERATIONS).fit(of_scale[0], of_train)
        accuracy = float(probe.score(of_scale[1], of_test))
        rows.append({"noise": noise, "accuracy": accuracy, "standard_error": share_error(accuracy, len(of_test))})
    return rows


def class_control(
    model, train: Images, test: Images, labels: tuple[Labels, Labels], seed: int
) -> list[dict[str, float]]:
    """The :func:`class_probe` with noise in units of the latent's deviation over that of x: scale cannot win it."""
    x = model_units(model, train[:PROBE_IMAGES], make_generator(model.scaling.scale, seed, 6))
    with evaluation_mode(model):
        z = torch.cat([model.flow.latent(part) for part in x.split(BATCH)])
    return class_probe(model, train, test, labels, seed, deviation(z) / deviation(x))


def deviation(v: Batch) -> float:
    """The root mean square of entries less their means over images."""
    return (double(v) - double(v).mean(0)).square().mean().sqrt().item()


def model_units(model, raw: Images, generator: torch.Generator) -> Batch:
    """Images in model units, dequantized."""
    with torch.no_grad():
        return model.from_data(raw, generator=generator)[0]


def times_at(sde: LinearSDE, noises: tuple[float, ...]) -> Float[Tensor, " times"]:
    """The times at which σ/α has these values."""
    return sde.time(-2 * torch.tensor(noises, dtype=torch.float64).log())
