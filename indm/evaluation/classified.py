"""The classification of data by a run's model, written into a folder."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from indm.conditions import rows_of_data
from indm.config.options import Classifying
from indm.data.base import stack
from indm.evaluation import classification as by_bayes
from indm.evaluation.image_sources import open_images
from indm.files import atomic
from indm.runs.folder import check_absent, data_of, open_model, recipe_of
from indm.runs.provenance import provenance, weights_hash

FILES = ("classification.json", "classification.npz", "classification.csv", "reliability.png")


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
    recipe_of(run)  # an error where this is no run
    check_absent(out, FILES, overwrite)
    model: Any = open_model(run)
    if getattr(model, "condition", None) is None or not model.condition.is_class:
        raise ValueError(f"{run} holds no model of p(x|class), as classify needs; train one with --condition classes")
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
    found = by_bayes.classify(model, raw, **settings, progress=progress)
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
        from indm.evaluation.plots import figure_into, reliability_diagram  # which load matplotlib

        record |= by_bayes.scores(found, labels)
        writes[out / "reliability.png"] = figure_into(reliability_diagram(*by_bayes.reliability(found, labels)))
        lines += [
            f"accuracy {record['accuracy']:.4f} ± {record['accuracy_standard_error']:.4f}",
            f"−log p(label|x) {record['nats']:.4f} nats (by guessing {math.log(len(names)):.4f})",
            f"expected calibration error {record['calibration_error']:.4f}",
        ]
    atomic.together(writes | {out / "classification.json": atomic.json_into(record)})
    return "\n".join([*lines, str(out / "classification.json")])


def _table(found: by_bayes.Classification, names: Sequence[str]) -> str:
    """The class of each example with its probability, as comma-separated values."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["number", "class", "probability"])
    for i, (number, sure) in enumerate(zip(found.predicted.tolist(), found.confidence.tolist(), strict=True)):
        rows.writerow([i, names[number], f"{sure:.6f}"])
    return text.getvalue()
