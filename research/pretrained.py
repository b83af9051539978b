"""The models that come with the package: copies the parts of a finished run that users need to
``indm/pretrained``.

    python -m research.pretrained runs/digits                                              # a
    minute of one core python -m research.pretrained runs/fashion-mnist
    # an hour
    python -m research.pretrained runs/fruits --unseen FOLDER                       # python -m
    research.data.fruits

The run's folder is named as a row of :data:`MODELS`, which has the command that trains it and the
licence of
its data. The weights of the network are rounded to bfloat16; the flow and the noise of grey levels
stay in
single precision. Rounded, the model is evaluated, sampled and checked for copies of training images
in a folder beside the run, where a command that was stopped goes on. Pictures and the check of
copies are of samples at the guidance of the recipe. A model that fails the check is not put there.
Samples of a model of p(x|class) are also classified, at several weights of guidance.

A sample may be as near to a training image as an unseen image is: a test image, or one of
``--unseen``. Where each class is a few films, test images are of other films, and frames between
the training ones say more.
"""

import argparse
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import indm
from indm.files import atomic, untrusted
from indm.model import DESCRIPTION, WEIGHTS
from indm.names import OPTIONAL_KINDS, PART_KINDS
from indm.workbench import hub
from indm.workbench.data.base import Data, stack
from indm.workbench.data.images import ImageFiles
from indm.workbench.evaluation.results import evaluate_run, read_evaluation
from indm.workbench.evaluation.text import likelihood_table
from indm.workbench.figures import plots, sheets
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Drawing
from indm.workbench.runs.folder import RECIPE, data_of, end_of, recipe_of
from indm.workbench.runs.samples import SAMPLES, draw, read_samples
from research import copies
from research.lab import fidelity
from research.lab.extractor import Extractor, load_or_train
from research.lab.statistics import share_error
from research.markdown import in_table, with_error

LICENSE, END = "apache-2.0", "-pretrained"
NUMBERS = "numbers.json"  # file of a shipped model's numbers, for the gallery
CARD, PICTURE, NEIGHBOURS = "README.md", "samples.png", "neighbours.png"
TEST = "test images"
EVALUATED, SOLVED = 2000, 100  # test images for the NELBO and for the NLL, at most
DRAWN, COLUMNS = 1000, 8  # samples; of a row of a picture
REFERENCE = 5000  # training images, at most, from which the distances of classified samples are
GUIDANCE = (1.0, 2.0)


@dataclass(frozen=True)
class Origin:
    """The training of a model, and its data.

    Args:
        command: it trains the model.
        data: what it was trained on, by whom, and under which licence.
        unseen: what the images of ``--unseen`` are called.
        of_test: what the card says about the row of test images.
    """

    command: str
    data: str
    unseen: str = TEST
    of_test: str = ""


MODELS = {
    "digits": Origin(
        "indm train digits --train.objective fid --train.steps 3000 --train.threads 1",
        "Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "
        "CC-BY-4.0, as scikit-learn has them.",
    ),
    "fashion-mnist": Origin(
        "indm train fashion-mnist --net.channels 48 --condition classes --condition.drop 0.1 --train.objective fid "
        "--train.steps 10500 --train.seconds inf --train.ema 0.9995 --train.mixed_precision no --train.threads 1 "
        "--train.validate_every 0.1 --train.validate_examples 1600 --train.final last --train.seed 1 "
        "--sample.guidance 2",
        "Fashion-MNIST by H. Xiao, K. Rasul and R. Vollgraf, Zalando Research, MIT.",
    ),
    "fruits": Origin(
        "indm train research/data/recipes/fruits.toml --data.path FOLDER --train.steps 12500",
        "Fruits-360 by H. Muresan and M. Oltean, MIT: frames of 55 films of single fruits, in 20 classes.",
        "frames between training frames (six classes)",
        "Test images come from other films. Neither the model nor the classifier has seen these fruits, so the row of\n"
        "test images shows how much the films differ. It does not judge the samples.",
    ),
}


# ── The rounded run ───────────────────────────────────────────────────────────────────────────────


def rounded(run: Path) -> Path:
    """A folder beside a finished run with its model in the precision that ships."""
    end_of(run)
    out = run.with_name(f"{run.name}-rounded")
    out.mkdir(exist_ok=True)
    for file in (RECIPE, DESCRIPTION, "summary.json", "versions.json"):
        shutil.copyfile(run / file, out / file)
    model = indm.INDM.load(run)
    network = {f"score.backbone.{name}" for name, _ in model.score.backbone.named_parameters()}
    state = {
        name: value.bfloat16() if name in network else value
        for name, value in model.state_dict().items()
    }
    atomic.whole(out / WEIGHTS, atomic.weights_into(state))
    return out


def evaluated(run: Path) -> dict[str, Any]:
    """The evaluation of a run, which is made where there is none."""
    if not (run / "evaluation.json").exists():
        own = recipe_of(run).evaluate
        evaluate_run(
            run,
            {
                "examples": min(EVALUATED, own.examples),
                "nll_examples": min(SOLVED, own.nll_examples),
            },
        )
    return read_evaluation(run)


def unseen(data: Data, folder: Path | None) -> tuple[Tensor, Tensor]:
    """Test images; or images ``folder/CLASS/GROUP/FILE`` of groups that were trained on. And the
    classes of each.
    """
    if folder is None:
        images = stack(data.test, DRAWN)
        return images, data.labels.get("test", torch.zeros(len(images)))[: len(images)]
    trained = {file.parent.name for file in data.train.files}
    files = [file for file in sorted(folder.rglob("*.png")) if file.parent.name in trained]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:DRAWN].tolist()
    classes = [data.classes.index(files[i].parent.parent.name) for i in order]
    return stack(ImageFiles([files[i] for i in order], data.shape)), torch.tensor(classes)


# ── Copies ────────────────────────────────────────────────────────────────────────────────────────


def check_of_copies(raw: Tensor, data: Data, others: Tensor, picture: Path) -> dict[str, Any]:
    """The numbers of :mod:`research.copies` for samples; and a picture of images above their
    nearest training images: the first samples, the most similar ones, and the first of ``others``,
    which are unseen. Pairs are sorted by their similarity, which is above each.

    Raises:
        ValueError: too many are near a training image.
    """
    train = stack(data.train)
    found, of_others = (copies.nearest(images, train) for images in (raw, others))
    numbers = copies.check(found, of_others) | {"images": len(raw), "test_images": len(others)}
    most = found.similarity.argsort(descending=True)
    panels = []
    for title, word, images, nearest, rows in (
        ("The first samples", "sample", raw, found, torch.arange(len(raw))),
        (f"The nearest of {len(raw)} samples", "sample", raw, found, most),
        ("Images that were not trained on", "unseen", others, of_others, torch.arange(len(others))),
    ):
        chosen = rows[: 2 * COLUMNS]
        chosen = chosen[nearest.similarity[chosen].argsort(descending=True)]
        similarity = [f"{value:.3f}" for value in nearest.similarity[chosen].tolist()]
        pair = torch.cat(
            [images[chosen].to(raw.dtype), train[nearest.number[chosen]].to(raw.dtype)]
        )
        panels.append(
            sheets.Panel(pair, len(chosen), title, (word, "nearest training image"), similarity)
        )
    plots.save_pixels(sheets.sheet(panels, int(data.scaling.levels or 0), across=1), picture)
    if numbers["near"] > copies.MOST:
        raise ValueError(
            f"{100 * numbers['near']:.1f} % of the samples are near a training image: look at {picture}"
        )
    return numbers


def about_copies(numbers: dict[str, Any], others: str) -> str:
    rows = [
        (name, *(f"{numbers[f'{of}_{what}']:.3f}" for what in copies.SHOWN))
        for name, of in (("samples", "samples"), (others, "test"))
    ]
    return f"""## Copies of training images

{100 * numbers["near"]:.1f} % of {numbers["images"]} samples are as similar to a training image as the most similar 1 %
of {numbers["test_images"]} {others} are. Similarity is the correlation of the differences of neighbouring pixels,
the largest over mirror images and shifts by a pixel; a copy has 1.

{in_table("similarity to the nearest training image", "median", "most similar 1 %", "largest", rows=rows)}

The number above each pair is its similarity.

![Samples above their nearest training images]({NEIGHBOURS})"""


# ── Classes ───────────────────────────────────────────────────────────────────────────────────────


def agreement(raw: Tensor, c: Tensor, extractor: Extractor, reference: Tensor) -> dict[str, float]:
    """The share of images whose class by the classifier is ``c``, and their distance from the
    reference.
    """
    share = (extractor.head(extractor.features(raw)).argmax(1) == c).double().mean().item()
    found = fidelity.scores(raw.to(reference.dtype), reference, extractor.features)
    scores = {"frechet_distance": found["frechet_inception_distance"]}
    scores |= {key: found[key] for key in ("precision", "recall")}
    return {"agreement": share, "agreement_standard_error": share_error(share, len(raw))} | scores


@torch.no_grad()
def classes(
    run: Path, data: Data, known: Mapping[str, tuple[Tensor, Tensor]], extractor: Extractor
) -> dict[str, Any]:
    """:func:`agreement` of samples at each guidance, and of images whose classes are ``known``."""
    reference = stack(data.train, REFERENCE)
    images = {f"samples, w = {guidance:g}": drawn(run, guidance) for guidance in GUIDANCE} | known
    rows = {name: agreement(*of, extractor, reference) for name, of in images.items()}
    return {"rows": rows, "images": DRAWN, "training_images": len(reference)}


def about_classes(numbers: dict[str, Any], of_test: str) -> str:
    rows = [
        (
            name,
            with_error(100 * row["agreement"], 100 * row["agreement_standard_error"], ".1f"),
            *(f"{row[key]:.2f}" for key in ("frechet_distance", "precision", "recall")),
        )
        for name, row in numbers["rows"].items()
    ]
    columns = (
        f"{numbers['images']} images",
        "the right class, %",
        "Fréchet distance",
        "precision",
        "recall",
    )
    return f"""## Classes

A small classifier of the training images says which class each image has. w is the weight of guidance; 1 is the model.
Fréchet distance, precision and recall are of the classifier's features, against {numbers["training_images"]} training
images; the distance is not an FID.

{in_table(*columns, rows=rows)}

{of_test}""".rstrip()


# ── Samples and what ships ────────────────────────────────────────────────────────────────────────


def drawn(run: Path, guidance: float | None = None) -> tuple[Tensor, Tensor | None]:
    """Samples, by default at the guidance of the recipe, and their classes, or None."""
    recipe = recipe_of(run)
    own = recipe.sample.guidance
    guidance = own if guidance is None else guidance
    out = run if guidance == own else run / f"guidance-{guidance:g}"
    file = out / SAMPLES
    raw, _, _ = (
        read_samples(file) if file.exists() else draw(run, Drawing(n=DRAWN, guidance=guidance), out)
    )
    c = torch.from_numpy(untrusted.array(out / SAMPLES, "c")) if recipe.labels else None
    return raw, c


def of_each(raw: Tensor, c: Tensor, classes: int, count: int) -> Tensor:
    """The first ``count`` samples of each class, (classes, count, C, H, W)."""
    return torch.stack([raw[c == number][:count] for number in range(classes)])


def picture(raw: Tensor, c: Tensor | None, data: Data, path: Path) -> None:
    """The first samples; with classes, a row of each class."""
    levels = int(data.scaling.levels or 0)
    if c is None:
        return sheets.save_grid(raw[: 4 * COLUMNS], levels, path, COLUMNS)
    count = min(COLUMNS, int(c.bincount(minlength=len(data.classes)).min()))
    rows = of_each(raw, c, len(data.classes), count)
    sheets.save_classes(rows.flatten(0, 1), levels, data.classes, path)


def banner(run: Path, out: Path, each: int = 3) -> None:
    """The first samples of each class, a column for each, at the guidance of the recipe."""
    (raw, c), levels, count = (
        drawn(run),
        indm.INDM.load(run).scaling.levels,
        len(recipe_of(run).labels),
    )
    rows = of_each(raw, c, count, each).transpose(0, 1)
    plots.save_pixels(
        sheets.grid(rows.flatten(0, 1), int(levels or 0), columns=count, factor=2), out
    )


def in_few_colours(picture: bytes) -> bytes:
    """A PNG of 256 colours, which takes a third of the bytes."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as full:
        full.convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE).save(
            small, "png", optimize=True
        )
    return small.getvalue()


def card(run: Path, name: str, sections: Sequence[str]) -> str:
    """The README of a shipped model: its parts, its likelihood, its samples, ``sections``, and how
    it is loaded.
    """
    recipe = recipe_of(run)
    kinds = {kind: getattr(recipe, kind) for kind in (*PART_KINDS, *OPTIONAL_KINDS)}
    parts = ", ".join(f"{kind} `{part.name}`" for kind, part in kinds.items() if part is not None)
    classes = f", classes {', '.join(recipe.labels)}" if recipe.labels else ""
    given = "" if recipe.condition is None else ", c=0"
    more = "\n\n".join(sections)
    return f"""---
library_name: indm
tags:
- diffusion
- normalizing-flow
- density-estimation
- indm
license: {LICENSE}
---

# {name}

- model: {parts}
- data: `{recipe.data.name}`{classes}
- training: {end_of(run)["steps"]:,} steps

## Likelihood

−log p of the raw data, lower is better.

```
{likelihood_table(read_evaluation(run))}
```

## Samples

![Samples of the model]({PICTURE})

{more}

## How to load

```python
import indm

model = indm.from_pretrained("{name}")
raw = model.scaling.to_data(indm.sample(model, 16{given}))
```
"""


def ship(
    finished: Path, extractors: Path, home: Path = hub.SHIPPED, folder_of_unseen: Path | None = None
) -> Path:
    """Write what others get of a finished run into a folder below ``home``.

    Raises:
        ValueError: a model without an :class:`Origin`, a run that has not ended, or too many
            copies.
    """
    origin = MODELS.get(finished.name)
    if origin is None:
        raise ValueError(
            f"the folder of the run must be called {', '.join(MODELS)}, got {finished.name}"
        )
    run = rounded(finished)
    result, data = evaluated(run), data_of(run, indm.INDM.load(run))
    (others, of), (raw, c) = unseen(data, folder_of_unseen), drawn(run)
    name = origin.unseen if folder_of_unseen else TEST
    compared = raw if c is None else raw[torch.isin(c, of)]
    numbers: dict[str, Any] = {"copies": check_of_copies(compared, data, others, run / NEIGHBOURS)}
    sections = [f"Made by `{origin.command}`.", f"## Licence of the data\n\n{origin.data}"]
    picture(raw, c, data, run / PICTURE)
    if c is not None:
        extractor = load_or_train(
            extractors / f"{data.name}-{'x'.join(map(str, data.shape))}", data
        )
        numbers["classes"] = classes(
            run, data, {TEST: unseen(data, None), name: (others, of)}, extractor
        )
        sections.append(about_classes(numbers["classes"], origin.of_test))
    sections.append(about_copies(numbers["copies"], name))
    folder = home / f"{finished.name}{END}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (DESCRIPTION, WEIGHTS):
        shutil.copyfile(run / file, folder / file)
    for picture_file in (PICTURE, NEIGHBOURS):
        (folder / picture_file).write_bytes(in_few_colours((run / picture_file).read_bytes()))
    tables = recipes.load(run)
    for key in {"path", "root"} & {*tables["data"]}:  # not where the data were
        tables["data"][key] = Path(tables["data"][key]).name
    atomic.text(folder / RECIPE, recipes.to_toml(tables))
    atomic.text(folder / CARD, card(run, folder.name, sections))
    bits = {kind: result[kind]["with_reconstruction"] for kind in ("nelbo", "nll")}
    numbers |= {key: value for key, value in end_of(run).items() if key in ("steps", "seconds")}
    atomic.json_object(folder / NUMBERS, numbers | bits)
    return folder


def gallery() -> str:
    """The numbers of all shipped models, a row for each."""
    rows = []
    for folder in (hub.SHIPPED / name for name in hub.shipped_names()):
        numbers = json.loads((folder / NUMBERS).read_text("utf-8"))
        bits = [numbers[k] for k in ("nelbo", "nll")]
        shown = [
            with_error(b["bits_per_dim"], b["bits_per_dim_standard_error"], ".2f") for b in bits
        ]
        near, size = (
            numbers["copies"]["near"],
            sum(file.stat().st_size for file in folder.iterdir()),
        )
        budget = f"{numbers['steps']:,}, {numbers['seconds'] / 60:.0f} min"
        found = numbers.get("classes", {"rows": {}})["rows"]
        asked = [
            f"{100 * found[f'samples, w = {w:g}']['agreement']:.0f}" for w in GUIDANCE if found
        ]
        right = f"{' / '.join(asked)} %" if asked else "–"
        rows.append(
            (f"`{folder.name}`", *shown, budget, f"{100 * near:.1f} %", right, f"{size / 1e6:.1f}")
        )
    guidance = f"right class at w = {' / '.join(f'{w:g}' for w in GUIDANCE)}"
    return in_table(
        "model", "NELBO, bits/dim", "NLL", "steps, time", "near", guidance, "MB", rows=rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "--extractors", type=Path, default=Path("runs/extractors"), help="folder of classifiers"
    )
    parser.add_argument(
        "--unseen",
        type=Path,
        help="folder of images to compare samples with; test images by default",
    )
    parser.add_argument(
        "--banner", type=Path, help="draw samples of each class side by side into this file instead"
    )
    o = parser.parse_args()
    if o.banner:
        return banner(rounded(o.run), o.banner)
    print(ship(o.run, o.extractors, folder_of_unseen=o.unseen))


if __name__ == "__main__":
    main()
