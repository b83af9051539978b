"""The final trainings: three variants, two data sets, five seeds, each measured by the job that trained it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from indm.model import INDM
from research.markdown import in_table
from research.records import RECORDS, Records, made_by
from research.verdict.costs import costs
from research.verdict.images import Images, load
from research.verdict.measures import bound as bound_of_test
from research.verdict.measures import measure
from research.verdict.search import bound
from research.verdict.training import FALL, steps_of, train
from research.verdict.variants import Variant

TABLE = Records(RECORDS / "verdict-final.csv")
BUDGET = 6_000  # steps of linear diffusion, some 15 minutes of a core
DESCRIBED = (1, 2, 3)  # seeds with all measures; the others have the bound alone
SEEDS, STUDIES = (1, 2, 3, 4, 5), ("cifar10-16", "clothes-16")
CURVE, CURVE_IMAGES = 600, 500  # every so many steps while the rate is constant; validation images
FAMILY = tuple((data, "indm", other) for data in STUDIES for other in ("linear", "spline"))  # Holm has these four
FRESH = {"lr": 8e-3, "enters": 2 / 3}  # the optimizer and the average of all three start anew when the flow enters
CHOSEN = {  # by the search
    "linear": Variant(**FRESH),
    "spline": Variant(spline=True, spline_lr=3e-3, **FRESH),
    "indm": Variant(spline=True, spline_lr=3e-3, family="thin", mixing="frozen", flow_share=1 / 20, **FRESH),
}


@dataclass(frozen=True)
class Job:
    """One training and its measures.

    Args:
        data: of :data:`STUDIES`.
        name: of the variant.
        seed: of :data:`SEEDS`.
    """

    data: str
    name: str
    seed: int

    @property
    def table(self) -> Records:
        return TABLE.at(data=self.data, variant=self.name, seed=self.seed)


def jobs() -> Iterator[Job]:
    """All jobs: whole seeds first, so that differences in pairs are there early."""
    for seed in SEEDS:
        for data in STUDIES:
            for name in CHOSEN:
                yield Job(data, name, seed)


def run(job: Job, root: Path | None, models: Path) -> None:
    """Train, save the model in the folder ``models`` and write the row; a saved model is not trained again."""
    torch.set_num_threads(1)
    images, place = load(job.data, root), models / f"{job.data}-{job.name}-{job.seed}.pt"
    if not place.exists():
        models.mkdir(parents=True, exist_ok=True)
        torch.save(trained(job, images), place)
    model, row = torch.load(place, weights_only=False)
    labels = images.classes["train"], images.classes["test"]
    if job.seed in DESCRIBED:
        measured, nats = measure(model, images.train, images.test, labels, job.seed)
    else:
        report, nats = bound_of_test(model, images.test, job.seed)
        measured = {"bound": report}
    job.table.add(row | measured | {name: values.tolist() for name, values in nats.items()})


def trained(job: Job, images: Images) -> tuple[INDM, dict[str, Any]]:
    """The averaged model, and the start of its row with the bound of validation images along the run."""
    variant, curve = CHOSEN[job.name], []
    steps = steps_of(variant, BUDGET, costs(job.data))
    ends = range(CURVE, round(FALL * steps) + 1, CURVE)
    look = {n: lambda model, n=n: curve.append([n, bound(model, images.valid[:CURVE_IMAGES])["bits"]]) for n in ends}
    model, _, row = train(variant, images.train, steps, job.seed, look)
    row |= {"setting": str(variant), "curve": curve, "valid": bound(model, images.valid)["bits"]}
    return model, row | made_by(job.seed)


def level_table(table: Records) -> str:
    """The score term of the chosen variants in the search by level of noise, bits/dim: where they differ."""
    found = [table.at(variant=str(variant)).rows()[0]["by_level"] for variant in CHOSEN.values()]
    rows = [
        (
            f"{parts[0]['noise'][0]:.3g} to {parts[0]['noise'][1]:.3g}",
            *(f"{part['bits_per_dim']:.4f}" for part in parts),
        )
        for parts in zip(*found, strict=True)
    ]
    return in_table("σ/α", *CHOSEN, rows=rows)


def markdown(table: Records) -> str:
    """The trainings so far: the bound of validation and test images, and what NELBO − NLL of the test images is."""
    rows = []
    for row in sorted(table.rows(), key=lambda row: (row["data"], row["seed"], [*CHOSEN].index(row["variant"]))):
        test, gap = row["bound"]["with_reconstruction"]["bits_per_dim"], row.get("gap")
        between = f"{gap['bits_per_dim']:.3f} ± {gap['bits_per_dim_standard_error']:.3f}" if gap else ""
        cells = row["data"], row["seed"], row["variant"], f"{row['steps']:,}", f"{row['cpu_seconds']:.0f}"
        rows.append((*cells, f"{row['valid']:.4f}", f"{test:.4f}", between))
    titles = "data", "seed", "model", "steps", "CPU s", "NELBO of validation", "of test, bits/dim", "NELBO − NLL"
    return in_table(*titles, rows=rows)
