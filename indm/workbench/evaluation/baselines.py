"""Baselines: likelihoods without a network, which a model must beat on the same examples.

Each is nats of the raw data, with dequantized grey levels. Uniform noise gives each of L levels the
probability 1/L; vectors of floats have no such baseline. A Gaussian is fitted to the training
split. PNG is the size of Pillow's file, with its 50 to 60 bytes around the pixels.
"""

import io
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from indm.evaluation.statistics import number_of
from indm.gaussian import LARGEST_DENSE
from indm.workbench.data.base import Data, Examples

# most examples of a fit, with flipped ones
MOST_TRAINING, MOST_TRAINING_DIAGONAL = 20_000, 2_000
MOST_VALIDATION = 500
# weights of no correlation, see fit_gaussian
SHRINKAGES = torch.logspace(-6, 0, 25, dtype=torch.float64).tolist()
# floors of the variance of an entry, as fractions of the mean over all entries
VARIANCE_FLOORS = (1e-6, 1e-4, 1e-2)
BATCH_SIZE = 2048  # examples in double precision at a time


@dataclass(frozen=True)
class Gaussian:
    """N(mean, S Q diag(variance) Qᵀ S) in model units with S = diag(std).

    Q is the ``basis`` (d, d), or I if it is None. Likelihoods are averaged over noise of the
    variance ``noise`` (d,), which is 0 for continuous data.
    """

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    basis: Float[Tensor, "d d"] | None
    variance: Float[Tensor, " d"]
    noise: Float[Tensor, " d"]

    def squares(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """E of the squared coordinates Qᵀ S⁻¹ (x + noise − mean)."""
        v, noise = (x - self.mean) / self.std, self.noise / self.std.square()
        if self.basis is None:
            return v.square() + noise
        return (v @ self.basis).square() + noise @ self.basis.square()

    def nats(self, squares: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """E of −log p(x + noise) in model units, from :meth:`squares`; exact."""
        log_det = 2 * self.std.log().sum() + self.variance.log().sum()
        constant = len(self.mean) * math.log(2 * math.pi) + log_det
        return 0.5 * (constant + (squares / self.variance).sum(1))


def fit_gaussian(
    train: Float[Tensor, "n d"],
    valid: Float[Tensor, "m d"],
    noise: Float[Tensor, " d"],
    *,
    full: bool,
) -> tuple[Gaussian, float]:
    """The Gaussian fitted to ``train``, and the weight of its shrinkage.

    With fewer examples than dimensions a sample covariance is singular. So its correlations are
    shrunk towards 0, and variances have a floor; the best for ``valid`` is taken. ``train`` has the
    noise of dequantization, with the variance ``noise``, and ``valid`` has none.
    """
    var, mean = (moment.double() for moment in torch.var_mean(train, dim=0, correction=0))
    basis, values = None, torch.ones_like(var)
    if full:
        parts = ((part - mean) / var.sqrt().clamp_min(1e-12) for part in train.split(BATCH_SIZE))
        gram = sum((v.T @ v for v in parts), torch.zeros(len(var), len(var)).double())
        values, basis = torch.linalg.eigh(gram / len(train))
    fits = []
    for floor in VARIANCE_FLOORS:
        std = ((1 - floor) * var + floor * var.mean()).sqrt()
        squares = Gaussian(mean, std, basis, values, noise).squares(valid).mean(0, keepdim=True)
        for weight in SHRINKAGES if full else [1.0]:
            variance = (1 - weight) * values.clamp_min(0) + weight
            gaussian = Gaussian(mean, std, basis, variance, noise)
            fits.append((gaussian.nats(squares).item(), gaussian, weight))
    return min(fits, key=lambda fit: fit[0])[1:]


def gaussian_nats(data: Data, raw: Tensor, seed: int = 0) -> tuple[Tensor, dict]:
    """Nats of each of ``raw`` under a Gaussian fitted to the training split, and its description."""
    scaling, full = data.scaling, math.prod(data.shape) <= LARGEST_DENSE
    most = MOST_TRAINING if full else MOST_TRAINING_DIAGONAL
    train = evenly_spaced(data.train, most // 2 if data.flip else most)
    train = torch.cat([train, train.flip(-1)]) if data.flip else train
    generator = torch.Generator().manual_seed(seed)
    parts = train.split(BATCH_SIZE)
    x = torch.cat([scaling.to_model(part, generator=generator).flatten(1) for part in parts])
    valid = scaling.centre(evenly_spaced(data.valid, MOST_VALIDATION)).flatten(1).double()
    width = 0.0 if scaling.levels is None else 1 - 2 * scaling.margin
    noise = ((width / scaling.scale.double()) ** 2 / 12).expand(data.shape).flatten()
    gaussian, weight = fit_gaussian(x, valid, noise, full=full)
    batches = [scaling.centre(batch).flatten(1).double() for batch in raw.split(BATCH_SIZE)]
    nats = torch.cat([gaussian.nats(gaussian.squares(batch)) for batch in batches])
    nats = nats - scaling.log_volume(data.shape)
    kind = "full" if full else "diagonal"
    about = {"name": f"a Gaussian with {kind} covariance", "examples": len(train), "weight": weight}
    return nats.float().double(), about  # rounded, as the last digits depend on threads


def evenly_spaced(dataset: Examples, most: int) -> Tensor:
    """At most so many examples."""
    return torch.stack([dataset[i] for i in range(0, len(dataset), math.ceil(len(dataset) / most))])


def png_nats(raw: Tensor, levels: int | None) -> Tensor | None:
    """Nats of the PNG file of each of ``raw`` (N, C, H, W); None if PNG cannot store them."""
    if levels is None or raw.ndim != 4 or raw.shape[1] not in (1, 3):
        return None
    is_grey = raw.shape[1] == 1
    if levels > (2**16 if is_grey else 256):
        return None
    kind = "uint8" if levels <= 256 else "uint16"
    if levels == 2 and is_grey:
        kind = "bool"
    sizes = []
    for pixels in raw.movedim(1, -1).squeeze(-1).numpy().astype(kind):
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG", optimize=True)
        sizes.append(8 * math.log(2) * len(file.getvalue()))
    return torch.tensor(sizes, dtype=torch.float64)


def baselines(
    data: Data,
    fitted: Data | None,
    raw: Tensor,
    nelbo: Tensor,
    seed: int = 0,
    groups: Tensor | None = None,
) -> tuple[dict[str, dict], dict[str, Tensor]]:
    """The baselines of examples of ``data``: by name a row for JSON, and nats by example (N,).

    Rows have a ``name`` (and a ``detail``), mean and error, and ``nelbo_difference``, the NELBO
    minus the baseline, paired.

    Args:
        fitted: data whose training split the Gaussian is fitted to; None leaves it out.
        raw: the examples, (N, *event).
        nelbo: nats of the model's NELBO of them, (N,).
        groups: as in :func:`indm.evaluate`.
    """
    by_name: dict[str, tuple[Tensor, dict]] = {}
    dims, levels = math.prod(data.shape), data.scaling.levels
    if levels is not None:
        uniform = torch.full((len(raw),), dims * math.log(levels), dtype=torch.float64)
        by_name["uniform"] = uniform, {"name": "uniform noise"}
    if fitted is not None:
        by_name["gaussian"] = gaussian_nats(fitted, raw, seed)
    png = png_nats(raw, levels)
    if png is not None:
        by_name["png"] = png, {"name": "PNG", "detail": "header included"}
    rows = {}
    for name, (values, about) in by_name.items():
        number = number_of(values, groups)
        difference = number_of(nelbo.double() - values, groups)
        rows[name] = about | number.content(dims) | {"nelbo_difference": difference.content(dims)}
    return rows, {name: values for name, (values, _) in by_name.items()}
