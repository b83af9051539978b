"""The search on validation images: axes one after the other, all trainings at equal cost; README.md says why."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import indm
from indm.model import INDM
from indm.workbench.evaluation.statistics import over_seeds, paired
from research.markdown import in_table, with_error
from research.records import RECORDS, Records, made_by
from research.verdict.costs import costs, measure
from research.verdict.images import Images, load
from research.verdict.training import Costs, steps_of, train
from research.verdict.variants import Variant

TABLE = Records(RECORDS / "verdict-search.csv")
BUDGET, SEED = 2_000, 0  # steps of linear diffusion: a third of a final run
INSERTED = Records(RECORDS / "verdict-inserted.csv")
WHEN, SEEDS = (0.0, 2 / 3), (0, 1, 2)  # a coupling flow from the start, or into a trained score


@dataclass(frozen=True)
class Search:
    """What is searched for one method.

    Args:
        name: of the method.
        start: where the search begins.
        axes: changes of the variant, tried one axis after the other; what is best stays. The start is tried, too.
        after: the methods from whose results the start takes some values, by the names of these values.
    """

    name: str
    start: Variant
    axes: tuple[tuple[dict[str, Any], ...], ...]
    after: tuple[tuple[str, tuple[str, ...]], ...] = ()


def values(key: str, *options: Any) -> tuple[dict[str, Any], ...]:
    return tuple({key: option} for option in options)


SEARCHES = (
    Search("linear", Variant(), (values("lr", 1e-3, 4e-3, 5e-4, 8e-3), values("enters", 2 / 3))),
    Search(
        "spline", Variant(spline=True), (values("spline_lr", 3e-3, 3e-2, 1e-1, 1e-3), values("enters", 2 / 3)),
        after=(("linear", ("lr",)),),
    ),
    Search(
        "indm",
        Variant(spline=True, family="coupling", enters=1 / 3),
        (
            values("flow_share", 1 / 20, 1.0, 5.0, 1 / 100),
            values("enters", 0.0, 2 / 3),
            values("mixing", "frozen", "colours"),
            values("family", "two scales", "affine", "thin", "residual"),
            ({"enters": 1 / 3, "frozen": 1 / 3},),
        ),
        after=(("linear", ("lr",)), ("spline", ("spline_lr",))),
    ),
)  # fmt: skip


def bound(model: INDM, images: Any) -> dict[str, Any]:
    """The NELBO of images: bits/dim with its error, the terms, the score term by log-SNR, and the nats of each."""
    found = indm.evaluate(model, images, [indm.Bound()], seed=SEED, progress=False)
    report, nats = found.report, found.nats
    part = report["nelbo"]
    numbers = part["with_reconstruction"]
    return {
        "bits": round(numbers["bits_per_dim"], 5),
        "error": round(numbers["bits_per_dim_standard_error"], 5),
        "terms": part["terms"],
        "by_level": part["by_level"],
        "nelbo_nats": nats["nelbo"].tolist(),
    }


def trial(variant: Variant, images: Images, costs: Costs, seed: int = SEED) -> dict[str, Any]:
    """The record of one training of the search."""
    averaged, last, row = train(variant, images.train, steps_of(variant, BUDGET, costs), seed)
    row |= bound(averaged, images.valid)
    if variant.spline or variant.family:
        row["flow_not_averaged"] = bound(last, images.valid)["bits"]
    return row | made_by(seed)


def keep(root: Path | None, data: str, variant: Variant) -> None:
    """Train one variant and write its row."""
    torch.set_num_threads(1)
    images = load(data, root)
    measure(data, images, [variant])
    TABLE.at(data=data, variant=str(variant)).add(trial(variant, images, costs(data)))


def insertion(data: str, enters: float, seed: int) -> Records:
    """The row of a flow that enters then."""
    return INSERTED.at(data=data, enters=round(enters, 3), seed=seed)


def insert(root: Path | None, data: str, enters: float, seed: int) -> None:
    """Train the coupling flow of the search that enters then, and write its row."""
    torch.set_num_threads(1)
    variant = Variant(spline=True, family="coupling", enters=enters, lr=8e-3, spline_lr=3e-3, flow_share=1 / 20)
    row = trial(variant, load(data, root), costs(data), seed)
    insertion(data, enters, seed).add({k: v for k, v in row.items() if k != "nelbo_nats"})


def inserted_table(table: Records) -> str:
    """The bound of validation images where the flow enters late, and where it is there from the start."""
    bits = {when: [row["bits"] for row in table.at(enters=round(when, 3)).rows()] for when in WHEN}
    late = paired(bits[WHEN[1]], bits[WHEN[0]])
    means = [with_error(*over_seeds(values), ".4f") for values in bits.values()]
    difference = with_error(late.difference, late.standard_error, "+.4f")
    return in_table(
        "from the start", "after two thirds", "difference", "seeds", rows=[(*means, difference, late.seeds)]
    )


def run(tried: Callable[[Sequence[Variant]], list[float]]) -> dict[str, Variant]:
    """The best variant of each method; at last, the controls: a linear map, and the best ones with learned noise.

    Args:
        tried: gives the bits/dim of variants on validation images.
    """
    best: dict[str, Variant] = {}
    for search in SEARCHES:
        found = {key: getattr(best[name], key) for name, keys in search.after for key in keys}
        chosen = replace(search.start, **found)
        for axis in search.axes:
            candidates = [chosen, *(replace(chosen, **change) for change in axis)]
            bits = tried(candidates)
            chosen = candidates[bits.index(min(bits))]
        best[search.name] = chosen
    tried([replace(best["indm"], family="linear map", mixing="trained")])
    tried([replace(variant, noise="variational") for variant in best.values()])
    return best


def in_processes(data: str, pool: Executor, make: Callable[[str, Variant], None]) -> Callable[..., list[float]]:
    """Gives the bits/dim of variants; those that have no row yet are trained by ``make``, several at a time."""

    def tried(variants: Sequence[Variant]) -> list[float]:
        tables = [TABLE.at(data=data, variant=str(variant)) for variant in variants]
        missing = [variant for variant, table in zip(variants, tables, strict=True) if not table.rows()]
        list(pool.map(make, [data] * len(missing), missing))
        return [table.rows()[0]["bits"] for table in tables]

    return tried


def markdown(table: Records) -> str:
    """The trials: the bound of validation images, its reconstruction term, and the bound with the last step's flow."""
    rows = []
    for row in table.rows():
        part = row["terms"]["reconstruction"]["bits_per_dim"]
        last = f"{row['flow_not_averaged']:.4f}" if "flow_not_averaged" in row else ""
        rows.append(
            (row["variant"], row["steps"], f"{row['cpu_seconds']:.0f}", f"{row['bits']:.4f}", f"{part:.4f}", last)
        )
    titles = "variant", "steps", "CPU s", "NELBO, bits/dim", "of it reconstruction", "flow of the last step"
    return in_table(*titles, rows=rows)
