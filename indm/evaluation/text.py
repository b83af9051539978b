"""The report of :func:`indm.evaluate` as text."""

import math
from collections.abc import Mapping, Sequence

from indm.ode import MOST

KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)", "iw": "IW-NLL", "ancestral": "NELBO of few steps"}
NUMBERS = {"iw": ("draws", "K = "), "ancestral": ("steps", "N = ")}  # numbers that belong to a kind's name
ENDS = ("", "_standard_error", "_estimator_noise")  # endings of the keys of one number
Row = tuple[str, ...]


def likelihood_rows(result: Mapping) -> list[Row]:
    """The table in bits/dim or nats: each likelihood with and without the reconstruction term, and a header.

    ``examples`` is how many examples the mean of a row is of.
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
                error = result[kind].get("solver_error")  # the NELBO has none
                cells = *(shown(values[key + end]) for end in ENDS), f"{error[key]:.1g}" if error else ""
                rows.append((name + remark, str(result["images"][kind]), *cells))
    return rows


def notes(result: Mapping) -> list[str]:
    """The lines below the table: what the numbers are of, and what may be wrong with them."""
    key, lines = number_key(result), [f"ε = {result['eps']:g}"]
    if result.get("groups") == 1:
        lines.append("standard errors are unknown: all examples are of one group, such as one photograph")
    elif result.get("groups"):
        lines.append(f"standard errors are over {result['groups']} groups of examples that are alike")
    lines.append(f"dequantization: {result['dequantization']}")
    both = [result[kind]["with_reconstruction"][key] for kind in ("nelbo", "nll") if kind in result]
    if len(both) == 2 and both[1] > both[0]:
        lines.append("The NELBO bounds the law of the SDE; the NLL is of that of the ODE, and may lie above it.")
    if result.get("interrupted"):
        lines.append("interrupted: these are the examples and measures that were done")
    lines += [f"network: {result['network']}"] if result.get("network") else []
    lines += correction(result) + unconverged(result)
    return lines + ([f"codes: {result['codes']}"] if result.get("codes") else [])


def level_table(result: Mapping) -> list[str]:
    """Lines of text: the NELBO's score term by noise level, and its other terms."""
    keys = [number_key(result) + end for end in ENDS[:2]]
    rows: list[Row] = [("score term of the NELBO, σ/α", result["unit"], "± standard error")]
    for level in result["nelbo"]["by_noise_level"]:
        rows.append((" to ".join(f"{end:.3g}" for end in level["noise"]), *(shown(level[key]) for key in keys)))
    terms = [f"{name} {' ± '.join(shown(row[key]) for key in keys)}" for name, row in result["nelbo"]["terms"].items()]
    return [table(rows), f"terms of the NELBO: {', '.join(terms)}"]


def correction(result: Mapping) -> list[str]:
    """A line on the mean NLL where it is corrected by fine solves of a few estimates; else no line."""
    if "rungs" not in (nll := result.get("nll", {})):
        return []
    first, *finer = nll["rungs"]
    counts = [f"{rung['estimates']} of them in {rung['steps'] or 'as many as nll_error needs'}" for rung in finer]
    counts = [f"{first['estimates']} estimates in {first['steps']} steps", *counts]
    return [f"NLL: {', '.join(counts)}, which adds ± {nll['added_error'][number_key(result)]:.1g} to the mean"]


def unconverged(result: Mapping) -> list[str]:
    """A line for each likelihood whose solver may be wrong by more than was asked for."""
    lines = []
    for kind, name in KINDS.items():
        numbers = result.get(kind, {})
        if count := numbers.get("unconverged", 0):
            n, steps = result["images"][kind], numbers.get("steps") or MOST
            of = f"{numbers['rungs'][-1]['estimates']} estimates" if "rungs" in numbers else f"{n} examples"
            lines.append(
                f"The {name} has not converged: the solver's error may be above {numbers['nll_error']:g} bits/dim in "
                f"{count} of {of}, up to {numbers['solver_error']['largest_bits_per_dim']:.1g} bits/dim, in {steps} "
                f"steps; take more steps, such as {2 * steps}, or a larger nll_error."
            )
    return lines


def shown(number: float | None) -> str:
    """A number with four digits, or "unknown"."""
    return "unknown" if number is None else f"{number:.4f}"


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
