"""An evaluation as lines of text."""

import math
from collections.abc import Mapping, Sequence

from indm.ode import MOST

KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)", "iw": "IW-NLL", "ancestral": "NELBO of few steps"}
NUMBERS = {"iw": ("draws", "K = "), "ancestral": ("steps", "N = ")}  # that belong to a kind's name
ENDS = ("", "_standard_error", "_estimator_noise")  # of the keys of one number
Row = tuple[str, ...]


def likelihood_table(result: Mapping) -> str:
    """The report of :func:`indm.evaluate` or of a run's evaluation as text, in bits/dim or nats.

    NELBO and NLL, each with and without the reconstruction term, and the baselines. ``examples`` is how many examples
    the mean of a row is of.
    """
    key = number_key(result)
    rows: list[Row] = [("", "examples", result["unit"], "± standard error", "estimator noise", "solver error")]
    for kind, name in KINDS.items():
        if kind in NUMBERS and kind in result:
            key_of, letter = NUMBERS[kind]
            name += f", {letter}{result[kind][key_of]}"
        for part, remark in (("with", ""), ("without", " without reconstruction (no likelihood)")):
            if f"{part}_reconstruction" in result.get(kind, {}):
                values = result[kind][f"{part}_reconstruction"]
                error = result[kind].get("solver_error")  # which the NELBO has not
                cells = *(_shown(values[key + end]) for end in ENDS), f"{error[key]:.1g}" if error else ""
                rows.append((name + remark, str(result["images"][kind]), *cells))
    for row in result.get("baselines", {}).values():
        numbers = (_shown(row[key + end]) for end in ENDS[:2])
        rows.append((f"baseline: {baseline_name(row)}", str(result["images"]["nelbo"]), *numbers, "", ""))
    if result.get("entropy_nats") is not None:
        rows.append(("entropy of the data", "", f"{result['entropy_nats']:.4f}", "", "", ""))
    split = f"{result['split']} split; " if "split" in result else ""
    lines = [table(rows), f"{split}ε = {result['eps']:g}"]
    if result.get("groups") == 1:
        lines.append("standard errors are unknown: all examples are of one group, such as one photograph")
    elif "groups" in result:
        lines.append(f"standard errors are over {result['groups']} groups of examples that are alike")
    lines.append(f"dequantization: {result['dequantization']}")
    if "condition" in result:
        lines.append(f"condition: {result['condition']}; the model is one of p(x|c), and the baselines do not see c")
    both = [result[kind]["with_reconstruction"][key] for kind in ("nelbo", "nll") if kind in result]
    if len(both) == 2 and both[1] > both[0]:
        lines.append("The NELBO bounds the law of the SDE; the NLL is of that of the ODE, and may lie above it.")
    if result.get("unended"):
        lines.append("weights of a checkpoint: the training has not ended")
    lines += of_levels(result) + of_classes(result) + unconverged(result)
    return "\n".join(lines + ([f"codes: {result['codes']}"] if "codes" in result else []))


def level_table(result: Mapping) -> list[str]:
    """Lines of text: the NELBO's score term by noise level, and its other terms."""
    keys = [number_key(result) + end for end in ENDS[:2]]
    rows: list[Row] = [("score term of the NELBO, σ/α", result["unit"], "± standard error")]
    for level in result["nelbo"]["by_level"]:
        rows.append((" to ".join(f"{end:.3g}" for end in level["noise"]), *(_shown(level[key]) for key in keys)))
    terms = [f"{name} {' ± '.join(_shown(row[key]) for key in keys)}" for name, row in result["nelbo"]["terms"].items()]
    return [table(rows), f"terms of the NELBO: {', '.join(terms)}"]


def _shown(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.4f}"


def of_levels(result: Mapping) -> list[str]:
    """How the mean NLL was made, where it is corrected by fine solves of a few estimates."""
    if "levels" not in (nll := result.get("nll", {})):
        return []
    first, *finer = nll["levels"]
    counts = [f"{level['estimates']} of them in {level['steps'] or 'as many as --nll-error needs'}" for level in finer]
    counts = [f"{first['estimates']} estimates in {first['steps']} steps", *counts]
    return [f"NLL: {', '.join(counts)}, which adds ± {nll['added_error'][number_key(result)]:.1g} to the mean"]


def of_classes(result: Mapping) -> list[str]:
    """The NELBO of each class, where the model is one of p(x|class)."""
    if not result.get("classes"):
        return []
    rows: list[Row] = [("class", "examples", f"NELBO, {result['unit']}", "± standard error")]
    for label, row in result["classes"].items():
        numbers = (row[key] / nats_of_unit(result) for key in ("nats", "nats_standard_error"))
        rows.append((label, str(row["images"]), *map(_shown, numbers)))
    left_out = ["classes of one group have no standard error and are left out"] if "groups" in result else []
    return ["", table(rows), *left_out, ""]


def unconverged(result: Mapping) -> list[str]:
    """A line for each likelihood whose solver may be wrong by more than was asked for."""
    lines = []
    for kind, name in KINDS.items():
        numbers = result.get(kind, {})
        if count := numbers.get("unconverged", 0):
            n, steps = result["images"][kind], numbers.get("steps") or MOST
            of = f"{numbers['levels'][-1]['estimates']} estimates" if "levels" in numbers else f"{n} examples"
            lines.append(
                f"The {name} has not converged: the solver's error may be above {numbers['nll_error']:g} bits/dim in "
                f"{count} of {of}, up to {numbers['solver_error']['largest_bits_per_dim']:.1g}, in {steps} steps; take "
                f"more, such as --steps {2 * steps}, or a larger --nll-error."
            )
    return lines


def baseline_name(row: Mapping) -> str:
    """What a table calls a baseline, see :func:`indm.workbench.evaluation.baselines.baselines`."""
    return f"{row['name']}, {row['detail']}" if "detail" in row else row["name"]


def number_key(result: Mapping) -> str:
    """The key of the numbers in the unit of an evaluation."""
    return "bits_per_dim" if result.get("unit") == "bits/dim" else "nats"


def nats_of_unit(result: Mapping) -> float:
    """Nats in one unit of an evaluation."""
    return result["dims"] * math.log(2) if result["unit"] == "bits/dim" else 1.0


def table(rows: Sequence[Row]) -> str:
    """Rows of cells as lines of text, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
