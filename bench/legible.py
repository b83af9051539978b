"""How many samples of runs on labelled images a classifier is sure of, beside the test images.

    python bench/legible.py runs/demo/indm runs/demo/linear

The classifier is small, trained on the same training split and kept in ``--extractor``; its test accuracy is printed.
It is trained with smoothed labels, so that it is sure of three quarters of the real digits only.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import indm
from indm.data.base import stack
from indm.data.registry import load_data
from indm.evaluation.extractor import Extractor, load_or_train
from indm.runs.folder import open_run

SURE = 0.9


def row(name: str, extractor: Extractor, raw: Tensor) -> str:
    """The share of images that the classifier gives one class with a probability of 0.9, and how many of each class."""
    probability, label = extractor.head(extractor.features(raw)).softmax(1).max(1)
    counts = torch.bincount(label, minlength=extractor.classes).tolist()
    return f"| {name} | {(probability > SURE).double().mean():.3f} | {', '.join(map(str, counts))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="of one data set")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="of the sampler")
    parser.add_argument("--extractor", type=Path, default=Path("runs/extractor"))
    o = parser.parse_args()
    data = load_data(**open_run(o.runs[0])[1]["data"])
    extractor = load_or_train(o.extractor, data)
    print(f"test accuracy {extractor.provenance['test_accuracy']:.3f}\n")
    print(f"| | above {SURE} | of each class |\n|---|---|---|")
    print(row("test images", extractor, stack(data.test)))
    for run in o.runs:
        model = indm.INDM.load(run)
        x = indm.sample(model, o.samples, steps=o.steps, generator=torch.Generator().manual_seed(0))
        print(row(str(run), extractor, model.scaling.to_data(x)))


if __name__ == "__main__":
    main()
