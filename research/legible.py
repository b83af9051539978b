"""Share of the samples of runs on labelled images that a classifier is sure of, beside the test images.

    python -m research.legible runs/demo/spline runs/demo/linear --overwrite    # rows of legible.csv
    python -m research.legible                                                # the table of the records

A row is named after the last two folders of its run.

The classifier is small, trained on the same training split and kept in ``--extractor``; its test accuracy is printed.
It is trained with smoothed labels, so that it is sure of three quarters of the real digits only.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

import indm
from indm.workbench.data.base import load_data, stack
from indm.workbench.runs.folder import open_run, read_metrics
from research.lab.extractor import Extractor, load_or_train
from research.markdown import in_table
from research.records import RECORDS, Records

SURE = 0.9


def read(extractor: Extractor, raw: Tensor) -> dict:
    """The share of images that the classifier gives one class with a probability of 0.9, and how many of each class."""
    probability, label = extractor.head(extractor.features(raw)).softmax(1).max(1)
    counts = torch.bincount(label, minlength=extractor.classes).tolist()
    return {"images": len(raw), "sure": round((probability > SURE).double().mean().item(), 4), "classes": counts}


def read_run(run: Path, extractor: Extractor, samples: int, steps: int) -> dict:
    model, recipe = indm.INDM.load(run), open_run(run)[1]
    x = indm.sample(model, samples, steps=steps, generator=torch.Generator().manual_seed(0))
    trained = {key: recipe["train"][key] for key in ("objective", "lr", "seed")}
    log = read_metrics(run)
    about = {"flow": recipe["flow"]["name"], "train": trained, "sampler_steps": steps}
    about["optimizer_steps"] = log[-1]["step"] if log else None
    return read(extractor, model.scaling.to_data(x)) | about | {"extractor": extractor.provenance}


def table(made: Records) -> str:
    rows = []
    for record in made.rows():
        name, steps = record["run"], record.get("optimizer_steps")
        classes = ", ".join(map(str, record["classes"]))
        shown = f"{name}, {steps} steps" if steps else name
        rows.append((record["data"], shown, record["images"], f"{record['sure']:.3f}", classes))
    return in_table("data", "", "images", "sure of", "of each class", rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="of one data set")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="of the sampler")
    parser.add_argument("--extractor", type=Path, default=Path("runs/extractor"))
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the table")
    parser.add_argument("--overwrite", action="store_true", help="read again what has a record")
    o = parser.parse_args()
    made = Records(o.records / "legible.csv")
    if o.runs:
        data = load_data(**open_run(o.runs[0])[1]["data"])
        extractor = load_or_train(o.extractor, data)
        print(f"test accuracy {extractor.provenance['test_accuracy']:.3f}\n")
        made.at(data=data.name, run="test images").add(read(extractor, stack(data.test)))
        for run in o.runs:
            record = made.at(data=data.name, run=f"{run.parent.name}-{run.name}")
            if o.overwrite or not record.rows():
                record.add(read_run(run, extractor, o.samples, o.steps))
    print(table(made))


if __name__ == "__main__":
    main()
