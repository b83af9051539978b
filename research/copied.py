"""Tables of ``records/copied``: printed by a command whose runs were not kept, and copied from the page that had them.

They can be shown and averaged anew, but not checked against a run.
"""

import itertools
import math
from collections.abc import Iterator

from indm.workbench.evaluation.statistics import over_seeds
from research.markdown import in_table
from research.records import RECORDS, Records, Row

FOLDER = RECORDS / "copied"
LAWS = ("N(0, I)", "moments of the data", "eight Gaussians")


def rows(name: str) -> list[Row]:
    return Records(FOLDER / f"{name}.csv").rows()


def error(mean: float, of_it: float | None, form: str = ".4f") -> str:
    return f"{mean:+{form}}" + ("" if of_it is None or math.isnan(of_it) else f" ± {of_it:{form}}")


def grid(name: str, unit: str = "bits/dim") -> str:
    """A grid of ``research.which_flow``: differences from its first variant in pairs of seeds, ± over seeds; of one
    seed ± over test images."""
    found = Records(FOLDER / "which_flow.csv").at(grid=name).rows()
    first = found[0]["nelbo"]
    lines = []
    for row in found:
        mean, over = over_seeds([a - b for a, b in zip(row["nelbo"], first, strict=True)], row.get("error"))
        lines.append((
            row["variant"], f"{over_seeds(row['nelbo'])[0]:.3f}", error(mean, over, ".3f") if row != found[0] else "",
            len(first), f"{row['milliseconds']:.0f}", row["moved"],
        ))  # fmt: skip
    title = f"− {found[0]['variant']}"
    return in_table("variant", f"NELBO, {unit}", title, "seeds", "ms a step", "moved", rows=lines)


def terminal() -> str:
    """What the penalty on the law of x_T costs, and how far x_T is from three laws."""
    lines = [
        (
            row["variant"], f"{row['nelbo']:.3f}",
            error(row["difference"], row["error"], ".3f") if "difference" in row else "",
            *(f"{row[law][0]:.3f}" for law in LAWS),
        )
        for row in rows("which_flow-terminal")
    ]  # fmt: skip
    return in_table("x_T is to have, weight", "NELBO, nats", "− free", *(f"to {law}" for law in LAWS), rows=lines)


def flows_alone() -> str:
    """Flows without a diffusion, by the bound of validation images."""
    lines = [
        (row["data"], row["flow"], row["steps"], f"{row['nelbo']:.3f}", f"{row['parameters']:,}", f"{row['cost']:g}")
        for row in rows("which_flow-alone")
    ]
    return in_table("data", "flow", "steps", "NELBO, bits/dim", "parameters", "CPU time of a step", rows=lines)


def claims() -> str:
    lines = [
        (
            row["claim"], row["quantity"].removesuffix(", for these examples"), f"{row['indm']:.4g}",
            f"{row['linear']:.4g}", error(row["difference"], row["error"]), f"{row['p']:.2g}", f"{row['p_holm']:.2g}",
            row["verdict"],
        )
        for row in rows("claims")
    ]  # fmt: skip
    head = ("claim", "quantity", "INDM", "linear", "INDM − linear", "p", "Holm's p", "verdict")
    return in_table(*head, rows=lines)


def checks() -> str:
    lines = [
        (row["check"], error(row["value"], row.get("error")), row["outcome"], row["by"])
        for row in rows("claims-checks")
    ]
    return in_table("check", "value", "outcome", "by", rows=lines)


def claim(quantity: str) -> str:
    """The difference of a claim's row whose quantity begins with this ("_" for a space)."""
    (row,) = (row for row in rows("claims") if row["quantity"].startswith(quantity.replace("_", " ")))
    return error(row["difference"], row["error"]).replace("-", "−")


def nelbos() -> str:
    found = rows("claims-nelbo")
    return in_table(*(row["variant"] for row in found), rows=[[f"{row['nelbo']:.3f}" for row in found]])


def cycles() -> str:
    """The error of A → B → A, and of B from its converged solution, along the evaluations."""

    def lines() -> Iterator[tuple]:
        for pair, group in itertools.groupby(rows("translation-cycle"), key=lambda row: row["pair"]):
            for place, row in enumerate(group):
                values = (f"{row[f'{what}_median']:g} / {row[f'{what}_largest']:g}" for what in ("cycle", "distance"))
                yield (pair if place == 0 else "", row["evaluations"], *values)

    return in_table("pair", "evaluations", "A → B → A", "B from the converged", rows=list(lines()))


def analysis() -> str:
    found = rows("flow_analysis")
    lines = [(row["quantity"], *(shown(row, name) for name in ("spline", "residual", "data"))) for row in found]
    return in_table("", "spline coupling", "residual", "the data", rows=lines)


def shown(row: Row, name: str) -> str:
    return f"{row[name]:g} {row.get('unit', '')}".strip() if name in row else "–"


def class_information() -> str:
    lines = [(row["model"], f"{row['middle']:.2f} ± {row['error']:.2f}") for row in rows("flow_analysis-class")]
    return in_table("model", "share of the clock at which half of the class is lost", rows=lines)


def known_entropy() -> str:
    lines = [
        (row["density"], f"{row['entropy']:.4f}", *("{:.3f} ± {:.3f}".format(*row[kind]) for kind in ("nll", "nelbo")))
        for row in rows("known_entropy")
    ]
    return in_table("density", "entropy, nats", "NLL (ODE)", "NELBO", rows=lines)


def solver_coverage() -> str:
    keys = ("field", "cases", "covered", "accepted", "wrong", "largest_error", "covered_before", "wrong_before")
    lines = [
        tuple(f"{row[key]:g}" if key == "largest_error" else row[key] for key in keys)
        for row in rows("solver_coverage")
    ]
    return in_table(*(key.replace("_", " ") for key in keys), rows=lines)


def solver_rules() -> str:
    """Smaller stated errors of smooth fields that were tried."""
    keys = ("rule", "model", "part", "covered", "median", "largest", "evaluations")
    named = ("rule", "model", "part", "covered", "stated/true, median", "true/stated, largest", "evaluations")
    return in_table(*named, rows=[tuple(row[key] for key in keys) for row in rows("solver_rules")])


def reconstruction() -> str:
    lines = [
        (row["run"], *("{:+.4f} ± {:.4f}".format(*row[kind]) for kind in ("one", "two")))
        for row in rows("reconstruction")
    ]
    return in_table("run", "one z_ε, bits/dim", "two, bits/dim", rows=lines)


def baselines() -> str:
    lines = [
        (row["data"], f"{row['uniform']:g}", *("{:.3f} ± {:.3f}".format(*row[kind]) for kind in ("gaussian", "png")))
        for row in rows("baselines")
    ]
    return in_table("test split, bits/dim", "uniform noise", "Gaussian", "PNG", rows=lines)
