"""Models of p(x|class) beside models of p(x): bits/dim, and their classes beside a classifier's.

    python -m research.conditional train digits fashion-mnist-16   # also samples at guidance 1 and 2
    python -m research.conditional table digits fashion-mnist-16

Both models have the bundled recipe's network, flow and rates, and the same number of steps. One of p(x|class) hides the
class in a tenth of its examples (``condition.drop``), so that its samples can be guided. The classifier is the small
network of :mod:`research.lab.extractor`, trained on the same images for its usual ten epochs, and for the
CPU seconds of the model. A row is made once.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import indm
from indm.evaluation.classification import Classification
from indm.workbench.data.base import Data, load_data, stack
from indm.workbench.figures import sheets
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import make_accelerator
from indm.workbench.training.trainer import Trainer
from research.lab.extractor import train_extractor
from research.markdown import in_table
from research.records import RECORDS, Records, made_by

STEPS = {"digits": 600, "fashion-mnist-16": 300}
SEEDS = {"digits": 2, "fashion-mnist-16": 1}
EXAMPLES = 1000  # test images, at most
DRAWS, TIMES = 2, 8  # draws of the bound of each class; evaluations of each draw
GUIDANCE = (1.0, 2.0)
BINS = 10  # bins of confidence
CONDITION: dict[str, Any] = {"condition": "classes", "condition.drop": 0.1}


def trained(data: Data, name: str, changes: dict[str, Any], seed: int) -> tuple[Any, float]:
    """The averaged model, and the CPU seconds of its training."""
    budget = {"train.steps": STEPS[name], "train.seconds": math.inf, "train.seed": seed}
    recipe = recipes.recipe(name, budget | changes)
    trainer = Trainer(recipe, data, make_accelerator(recipe.train))
    batches, started = trainer.batches(), time.process_time()
    while trainer.step < STEPS[name]:
        trainer.train_step(batches)
    return trainer.ema.model, time.process_time() - started


def bound(model: Any, data: Data, c: torch.Tensor | None) -> list[float]:
    """The NELBO of test images in bits/dim, and its standard error over images."""
    raw = stack(data.test, EXAMPLES)
    return [*indm.evaluate(model, raw, [indm.Bound(times=16)], c=c, progress=False).mean()]


def classifier(data: Data, epochs: int) -> dict[str, float]:
    """Accuracy on the test images of a record, and CPU seconds, of the classifier."""
    started = time.process_time()
    extractor = train_extractor(data, epochs=epochs, most=len(data.train), progress=False)
    seconds = time.process_time() - started
    raw, labels = stack(data.test, EXAMPLES), data.labels["test"][:EXAMPLES]
    right = extractor.head(extractor.features(raw)).argmax(1) == labels
    return {"accuracy": right.double().mean().item(), "cpu_seconds": round(seconds, 1), "epochs": epochs}


def scores(classification: Classification, labels: Tensor) -> dict[str, float]:
    """Accuracy with its standard error, the mean nats of −log p(label|x), and the expected calibration error.

    The last is the mean of |accuracy − confidence| over equal bins of confidence, by their examples.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
    """
    right, n = (classification.predicted == labels).double(), len(labels)
    over = right - classification.confidence.double()
    bins = (classification.confidence.double() * BINS).long().clamp(0, BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, over)  # gap of each bin, times its examples
    return {
        "accuracy": right.mean().item(),
        "accuracy_standard_error": (right.var(correction=0) / n).sqrt().item(),
        "nats": -classification.log_posterior.gather(1, labels[:, None]).mean().item(),
        "calibration_error": gaps.abs().sum().item() / n,
    }


def record_of(data: Data, name: str, seed: int, out: Path) -> dict[str, Any]:
    """Both trainings with one seed, and what came of them."""
    plain, plain_seconds = trained(data, name, {}, seed)
    model, seconds = trained(data, name, CONDITION, seed)
    raw, labels = stack(data.test, EXAMPLES), data.labels["test"][:EXAMPLES]
    found = indm.classify(model, raw, draws=DRAWS, times=TIMES, progress=False)
    if seed == 0:
        for guidance in GUIDANCE:
            c = torch.arange(len(data.classes)).repeat_interleave(12)
            generator = torch.Generator().manual_seed(0)
            x = indm.sample(model, len(c), c=c, guidance=guidance, steps=30, generator=generator)
            images, levels = model.scaling.to_data(x), int(data.scaling.levels or 0)
            sheets.save_classes(images, levels, data.classes, out / f"{name}-guidance-{guidance:g}.png")
    short = classifier(data, 10)
    epochs = max(10, round(10 * seconds / short["cpu_seconds"]))
    return {
        "steps": STEPS[name],
        "p(x)": bound(plain, data, None),
        "p(x|c)": bound(model, data, labels),
        "cpu_seconds": [round(plain_seconds, 1), round(seconds, 1)],
        "bayes": scores(found, labels) | {"evaluations": found.evaluations},
        "classifier": [short, classifier(data, epochs)],
        **made_by(seed),
    }


def summary(made: Records) -> str:
    """A row for each training: bounds ± over images, accuracies ± over images."""
    rows = []
    for record in made.rows():
        bounds = ("{:.3f} ± {:.3f}".format(*record[key]) for key in ("p(x)", "p(x|c)"))
        bayes = record["bayes"]
        short, long = record["classifier"]
        rows.append((
            record["data"], record["seed"], record["steps"], *bounds,
            f"{bayes['accuracy']:.3f} ± {bayes['accuracy_standard_error']:.3f}", f"{bayes['calibration_error']:.3f}",
            *(f"{found['accuracy']:.3f} ({found['cpu_seconds']:.0f} s)" for found in (short, long)),
        ))  # fmt: skip
    bound, judge = ("NELBO of p(x)", "of p(x\\|c)"), ("Bayes: accuracy", "calibration error")
    return in_table("data", "seed", "steps", *bound, *judge, "classifier, 10 epochs", "longer", rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "table"])
    parser.add_argument("data", choices=list(STEPS), nargs="+")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    parser.add_argument("--out", type=Path, default=Path("runs/conditional"), help="of the pictures")
    o = parser.parse_args()
    torch.set_num_threads(1)
    made = Records(o.records / "conditional.csv")
    for name in o.data if o.what == "train" else ():
        data = load_data(**recipes.recipe(name)["data"])
        for seed in range(SEEDS[name]):
            cell = made.at(data=name, seed=seed)
            o.out.mkdir(parents=True, exist_ok=True)
            cell.kept(lambda job=(data, name, seed): record_of(*job, o.out))
    if o.what == "table":
        print(summary(made))


if __name__ == "__main__":
    main()
