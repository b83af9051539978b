r"""Bayes' classifier of a model of p(x|c): p(c|x) from the likelihoods of all classes.

.. math:: p(c|x) = \frac{p(c)\,p(x|c)}{\sum_k p(k)\,p(x|k)}

Each log p(x|k) is replaced by its bound, the mean of draws of the NELBO. A draw has the same
dequantization, times and noise for all classes, so that most of its error cancels in the
differences, which alone decide p(c|x).

Source: Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier",
https://arxiv.org/abs/2303.16203.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from indm.checks import require
from indm.dequantization import check_raw, from_data
from indm.objective import nelbo
from indm.protocols import Model
from indm.tensors import SEED_STRIDE, evaluation_mode


@dataclass(frozen=True)
class Classification:
    """Likelihoods and probabilities that a model gives the classes of data.

    Attributes:
        log_likelihood: (N, K), the mean bound of log p(x|k) of the raw data, nats.
        noise: (N, K), the standard error over draws of its difference from the mean over classes,
            nats.
        log_posterior: (N, K), log p(k|x).
        evaluations: of the network, for one example.
    """

    log_likelihood: Float[Tensor, "n classes"]
    noise: Float[Tensor, "n classes"]
    log_posterior: Float[Tensor, "n classes"]
    evaluations: int

    @property
    def predicted(self) -> Int[Tensor, " n"]:
        """The most probable class of each example."""
        return self.log_posterior.argmax(1)

    @property
    def confidence(self) -> Float[Tensor, " n"]:
        """The probability of the predicted class."""
        return self.log_posterior.amax(1).exp()


def classify(
    model: Model,
    raw: Tensor,
    *,
    prior: Float[Tensor, " classes"] | None = None,
    draws: int = 4,
    times: int = 8,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Classification:
    """Compute p(class|x) of raw data under a model of p(x|class).

    Args:
        model: an INDM whose condition is :class:`indm.conditions.Classes`.
        raw: (N, *event) in data units.
        prior: p(class); uniform by default.
        draws: of the NELBO for each class, all with their own noise; at least 2.
        times: score evaluations of a draw, in equal strata of the log-SNR clock.
        batch_size: examples at a time.
        seed: of all noise.
        progress: show a bar.

    Raises:
        ValueError: the model has no classes, an option is out of range, or raw data are wrong.

    Example: for a network that has learned nothing all classes are alike, and p(class|x) is the
    prior.

        >>> import indm
        >>> tables = {"flow": "identity", "sde": "vp", "net": {"name": "mlp", "width": 8}}
        >>> tables["condition"] = {"name": "classes", "labels": ["left", "right"]}
        >>> model, prior = indm.build_model(tables, (2,)), torch.tensor([0.25, 0.75])
        >>> found = classify(model, torch.randn(3, 2), prior=prior, progress=False)
        >>> found.predicted.tolist(), [round(p, 4) for p in found.confidence.tolist()]
        ([1, 1, 1], [0.75, 0.75, 0.75])
    """
    if not model.condition.is_class:
        raise ValueError("model must be one of p(x|class) to classify, with the condition classes")
    check_raw(model, raw)
    require(draws >= 2, "draws", draws, "at least 2")
    log_prior = _log_prior(prior, len(model.condition.labels))
    values = torch.empty(draws, len(raw), len(log_prior), dtype=torch.float64)
    batches = torch.arange(len(raw)).split(batch_size)
    with (
        evaluation_mode(model),
        tqdm(total=len(batches) * draws, desc="classes", disable=not progress) as bar,
    ):
        model.flow.check()
        for job, rows in enumerate(batches):
            for draw in range(draws):
                own_seed = seed + SEED_STRIDE * (job * draws + draw)
                values[draw, rows] = _drawn_bounds(model, raw[rows], times, own_seed)
                bar.update()
    mean = values.mean(0)
    noise = (values - values.mean(2, keepdim=True)).std(0) / math.sqrt(draws)
    evaluations = len(log_prior) * draws * (times + 1)
    return Classification(mean, noise, (mean + log_prior).log_softmax(1), evaluations)


def _log_prior(prior: Float[Tensor, " classes"] | None, classes: int) -> Tensor:
    """log p(class), uniform without a ``prior``."""
    prior = torch.full((classes,), 1 / classes) if prior is None else torch.as_tensor(prior)
    is_law = prior.shape == (classes,) and prior.min() > 0 and abs(float(prior.sum()) - 1) <= 1e-4
    wanted = f"{classes} positive probabilities that sum to 1"
    require(bool(is_law), "prior", prior.tolist(), wanted)
    return prior.double().log()


def _drawn_bounds(model: Model, raw: Tensor, times: int, seed: int) -> Tensor:
    """A draw of the bound of log p(x|k) for each class k, all with the same noise, nats (B, K)."""
    device = model.scaling.scale.device
    generator, bounds = torch.Generator(device), []
    for number in range(len(model.condition.labels)):
        generator.manual_seed(seed)
        x, log_q = from_data(model, raw.to(device), generator=generator)
        bound = nelbo(model, x, c=number, times=times, log_q=log_q, generator=generator)
        bounds.append(-bound.nats.cpu().double())
    return torch.stack(bounds, 1)
