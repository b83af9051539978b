r"""Bayes' classifier of a model of p(x|c): p(c|x) from the likelihoods of all classes, on the same noise.

.. math:: p(c|x) = \frac{p(c)\,p(x|c)}{\sum_k p(k)\,p(x|k)}

Each log p(x|k) is replaced by its bound, the mean of draws of the NELBO. A draw has the same dequantization, times and
noise for all classes, so that most of its error cancels in the differences, which alone decide p(c|x).

Source: Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier", https://arxiv.org/abs/2303.16203.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from indm.conditions import rows_of_data
from indm.dequantization import check_raw, from_data
from indm.files import atomic
from indm.objective import nelbo
from indm.tensors import evaluation_mode
from indm.workbench.data.base import stack
from indm.workbench.evaluation.fid import open_images
from indm.workbench.evaluation.likelihood import SEED_STRIDE
from indm.workbench.recipes.options import Classifying
from indm.workbench.runs.folder import check_absent, data_of, open_model, recipe_of
from indm.workbench.runs.provenance import provenance, weights_hash

BINS = 10  # of confidence
FILES = ("classification.json", "classification.npz", "classification.csv", "reliability.png")


@dataclass(frozen=True)
class Classification:
    """What a model says of the classes of data.

    Attributes:
        log_likelihood: (N, K), the mean bound of log p(x|k) of the raw data, nats.
        noise: (N, K), the standard error over draws of its difference from the mean over classes, nats.
        log_posterior: (N, K), log p(k|x).
        evaluations: of the network, for one example.
    """

    log_likelihood: Float[Tensor, "n classes"]
    noise: Float[Tensor, "n classes"]
    log_posterior: Float[Tensor, "n classes"]
    evaluations: int

    @property
    def predicted(self) -> Int[Tensor, " n"]:
        """The most probable class of each."""
        return self.log_posterior.argmax(1)

    @property
    def confidence(self) -> Float[Tensor, " n"]:
        """Its probability."""
        return self.log_posterior.amax(1).exp()


def classify(
    model,
    raw: Tensor,
    *,
    prior: Float[Tensor, " classes"] | None = None,
    draws: int = 4,
    times: int = 8,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Classification:
    """p(class|x) of raw data under a model of p(x|class).

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

    Example: for a network that has learned nothing all classes are alike, and p(class|x) is the prior.

        >>> import indm
        >>> tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "mlp", "width": 8}}
        >>> tables["condition"] = {"name": "classes", "labels": ["left", "right"]}
        >>> model, prior = indm.build_model(tables, (2,)), torch.tensor([0.25, 0.75])
        >>> found = classify(model, torch.randn(3, 2), prior=prior, progress=False)
        >>> found.predicted.tolist(), [round(p, 4) for p in found.confidence.tolist()]
        ([1, 1, 1], [0.75, 0.75, 0.75])
    """
    condition = getattr(model, "condition", None)
    if condition is None or not condition.is_class:
        raise ValueError("model must be one of p(x|class) to classify; train one with --condition classes")
    check_raw(model, raw)
    if draws < 2 or times < 1:
        raise ValueError(f"draws must be at least 2 and times at least 1, got {draws} and {times}")
    classes = len(condition.labels)
    log_prior = _log_prior(prior, classes)
    device = model.scaling.scale.device
    generator, values = torch.Generator(device), torch.empty(draws, len(raw), classes, dtype=torch.float64)
    batches = torch.arange(len(raw)).split(batch_size)
    with evaluation_mode(model), tqdm(total=len(batches) * draws, desc="classes", disable=not progress) as bar:
        model.flow.check()
        for job, rows in enumerate(batches):
            for draw in range(draws):
                for number in range(classes):
                    generator.manual_seed(seed + SEED_STRIDE * (job * draws + draw))
                    x, log_q = from_data(model, raw[rows].to(device), generator=generator)
                    bound = nelbo(model, x, c=number, times=times, log_q=log_q, generator=generator)
                    values[draw, rows, number] = -bound.nats().cpu().double()
                bar.update()
    mean = values.mean(0)
    relative = values - values.mean(2, keepdim=True)
    noise = relative.std(0) / math.sqrt(draws)
    return Classification(mean, noise, (mean + log_prior).log_softmax(1), classes * draws * (times + 1))


def _log_prior(prior: Tensor | None, classes: int) -> Tensor:
    prior = torch.full((classes,), 1 / classes) if prior is None else torch.as_tensor(prior)
    if tuple(prior.shape) != (classes,) or not bool((prior > 0).all()) or abs(float(prior.sum()) - 1) > 1e-4:
        raise ValueError(f"prior must be {classes} positive probabilities that sum to 1, got {prior.tolist()}")
    return prior.double().log()


def scores(classification: Classification, labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Accuracy with its standard error, the mean nats of −log p(label|x), and the expected calibration error.

    The last is the mean of |accuracy − confidence| over :data:`BINS` equal bins of confidence, by their examples.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
    """
    right = (classification.predicted == labels).double()
    counts, confidence, accuracy = reliability(classification, labels)
    gaps = (accuracy - confidence).abs().nan_to_num(0.0)
    n = len(labels)
    return {
        "accuracy": right.mean().item(),
        "accuracy_standard_error": (right.var(correction=0) / n).sqrt().item(),
        "nats": -classification.log_posterior.gather(1, labels[:, None]).mean().item(),
        "calibration_error": (gaps * counts).sum().item() / n,
    }


def reliability(
    classification: Classification, labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """Of each bin of confidence: its examples, their mean confidence and accuracy (NaN without any)."""
    confidence = classification.confidence.double()
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    right = (classification.predicted == labels).double()
    values = torch.stack([torch.ones_like(right), confidence, right])
    counts, of_confidence, of_right = torch.zeros(3, BINS, dtype=torch.float64).index_add(1, bins, values)
    return counts, of_confidence / counts, of_right / counts


def classify_run(
    run: Path,
    options: Classifying,
    source: str | None = None,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> str:
    """Classify the test split of a run's data, or ``source``; write it into ``out`` and say what came of it.

    Raises:
        ValueError: the model has no classes, or the images do not fit it.
    """
    out = out or run
    recipe_of(run)  # an error where this is not a run
    check_absent(out, FILES, overwrite)
    model: Any = open_model(run)
    labels: Tensor | None = None
    if source is None:
        data = data_of(run, model)
        raw = stack(getattr(data, options.split), options.examples)
        labels = rows_of_data(model, data, options.split, len(raw))
    else:
        size = model.shape[1:] if len(model.shape) == 3 else None
        raw = open_images(source, size=size if Path(source).is_dir() else None).raw[: options.examples]
        if tuple(raw.shape[1:]) != tuple(model.shape):
            raise ValueError(f"{source} must hold images of shape {tuple(model.shape)}, got {tuple(raw.shape[1:])}")
    settings = {name: getattr(options, name) for name in ("draws", "times", "batch_size", "seed")}
    found = classify(model, raw, **settings, progress=progress)
    names = model.condition.labels
    weights = weights_hash(run)
    record: dict[str, Any] = {
        "examples": len(raw),
        "source": source or options.split,
        "classes": list(names),
        **settings,
        "evaluations": found.evaluations,
        "largest_noise_nats": found.noise.max().item(),
        "weights_sha256": weights,
        "provenance": provenance(options.seed, {str(run): weights}),
    }
    arrays = {name: getattr(found, name).numpy() for name in ("log_likelihood", "noise", "log_posterior")}
    writes = {out / "classification.npz": atomic.arrays_into(arrays)}
    lines = [f"{len(raw)} examples, {found.evaluations} evaluations of the network for each"]
    if labels is None:
        atomic.text(out / "classification.csv", _table(found, names))
        lines.append(str(out / "classification.csv"))
    else:
        from indm.workbench.evaluation.plots import figure_into, reliability_diagram  # which loads matplotlib

        record |= scores(found, labels)
        writes[out / "reliability.png"] = figure_into(reliability_diagram(*reliability(found, labels)))
        lines += [
            f"accuracy {record['accuracy']:.4f} ± {record['accuracy_standard_error']:.4f}",
            f"−log p(label|x) {record['nats']:.4f} nats (by guessing {math.log(len(names)):.4f})",
            f"expected calibration error {record['calibration_error']:.4f}",
        ]
    atomic.together(writes | {out / "classification.json": atomic.json_into(record)})
    return "\n".join([*lines, str(out / "classification.json")])


def _table(found: Classification, names: Sequence[str]) -> str:
    """The class of each example with its probability, as comma-separated values."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["number", "class", "probability"])
    for i, (number, sure) in enumerate(zip(found.predicted.tolist(), found.confidence.tolist(), strict=True)):
        rows.writerow([i, names[number], f"{sure:.6f}"])
    return text.getvalue()
