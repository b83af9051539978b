"""What an evaluation of a run holds, as it is read, shown and compared."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from indm.config import paths
from indm.config.recipes import literal
from indm.evaluation.statistics import Difference, paired_by_examples
from indm.files import untrusted
from indm.messages import brief, reason
from indm.scaling import DENSITY_COUNTED

KINDS = {"nelbo": "NELBO", "nll": "NLL (ODE)", "iw": "IW-NLL", "ancestral": "NELBO of few steps"}
NUMBERS = {"iw": ("draws", "K = "), "ancestral": ("steps", "N = ")}  # that belong to a kind's name


def read_evaluation(folder: Path) -> dict:
    """What :func:`indm.evaluation.runs.evaluate_run` wrote into ``evaluation.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = folder / "evaluation.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} has not been evaluated: run 'indm evaluate {folder}' first")
    result = untrusted.json_object(file)
    try:
        likelihood_table(result)
        _ = (
            _examples(result),
            result["dims"] + 1,
            result["dequantization"] + "",
            result["weights_sha256"],
            [result["images"][k] + 1 for k in ("nelbo", "nll")],
            [row["nelbo_difference"][number_key(result)] + 1 for row in result.get("baselines", {}).values()],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} is no evaluation: {reason(error)}; run 'indm evaluate {folder} --overwrite'"
        ) from error
    return result


def read_nats(folder: Path) -> dict[str, np.ndarray]:
    """Nats of every example, by name, each (N,)."""
    file = folder / "evaluation.npz"
    nats = untrusted.arrays(file)
    if "nelbo" not in nats:
        raise ValueError(f"{file} must hold an array nelbo, got {brief(', '.join(nats)) or 'none'}")
    for name, values in nats.items():
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"{file} must hold nats (N,), got {brief(name)} of shape {values.shape}")
    return nats


def per_example(folder: Path, kind: str = "nelbo") -> np.ndarray:
    """NELBO or NLL of every example that a run was evaluated on, (n,), in bits/dim or nats as the run reports it."""
    result = untrusted.json_object(folder / "evaluation.json")
    nats = read_nats(folder)[kind]
    return nats / (result["dims"] * math.log(2) if result["unit"] == "bits/dim" else 1.0)


def difference(pairs: Sequence[tuple[Path, Path]], kind: str = "nelbo") -> Difference:
    """The first less the second of each pair of runs, one pair for each seed, all evaluated on the same examples."""
    values = [[per_example(folder, kind) for folder in pair] for pair in pairs]
    groups = read_nats(pairs[0][0]).get("groups")
    first, second = np.stack(values, axis=1)
    return paired_by_examples(first, second, None if groups is None else groups[: first.shape[1]])


def check_same_examples(evaluations: Mapping[Path, dict]) -> None:
    """ValueError where runs were not evaluated on the same examples, or do not count their dequantization alike.

    A likelihood that only one has does not count. Data may have been moved: paths may differ, the examples must not.
    """
    baseline, first = next(iter(evaluations.items()))
    for folder, result in evaluations.items():
        both = [kind for kind in KINDS if kind in result and kind in first]
        if (
            result["split"] != first["split"]
            or not _same_data(result, first)
            or any(result["images"][kind] != first["images"][kind] for kind in both)
        ):
            raise ValueError(
                f"{folder} and {baseline} were evaluated on different examples: {_examples(result)}, and "
                f"{_examples(first)}; only runs of the same data, evaluated with the same options, can be compared"
            )
        if (DENSITY_COUNTED in result["dequantization"]) != (DENSITY_COUNTED in first["dequantization"]):
            older = folder if DENSITY_COUNTED in first["dequantization"] else baseline
            raise ValueError(
                f"{folder} and {baseline} count their dequantization differently: {brief(result['dequantization'])}, "
                f"and {brief(first['dequantization'])}; run 'indm evaluate {older} --overwrite'"
            )
        for kind, (key, _) in NUMBERS.items():
            if kind in both and result[kind][key] != first[kind][key]:
                option, numbers = "draws" if kind == "iw" else kind, (result[kind][key], first[kind][key])
                raise ValueError(
                    f"{folder} and {baseline} have the {KINDS[kind]} of {numbers[0]} and {numbers[1]} {key}: evaluate "
                    f"both with the same --{option}"
                )


def _same_data(one: dict, other: dict) -> bool:
    """Whether two evaluations have the same options of data and, where both say what they read, the same examples."""
    options = [paths.without_paths(result["data"]) for result in (one, other)]
    hashes = [result.get("examples_sha256") for result in (one, other)]
    return options[0] == options[1] and (None in hashes or hashes[0] == hashes[1])


def _examples(result: dict) -> str:
    """What a run was evaluated on, in words."""
    options = [f"{key} = {literal(value)}" for key, value in result["data"].items() if key != "name"]
    data = " with ".join([result["data"]["name"], *([", ".join(options)] if options else [])])
    counts = " and ".join(f"{n} for the {KINDS[kind]}" for kind, n in _counts(result) if n)
    content = f" (SHA-256 {sha256[:8]})" if (sha256 := result.get("examples_sha256")) else ""
    return f"{counts} of the {result['split']} split of {brief(data)}{content}"


def _counts(result: dict) -> list[tuple[str, int]]:
    """How many examples each likelihood is of; that of few steps has those of the NELBO."""
    return [(kind, n) for kind, n in result["images"].items() if kind != "ancestral"]


def likelihood_table(result: dict) -> str:
    """An evaluation as text: NELBO and NLL, each with and without the reconstruction term, and the baselines."""
    key = number_key(result)
    rows: list[tuple[str, ...]] = [("", result["unit"], "± standard error", "estimator noise", "solver error")]
    for kind, name in KINDS.items():
        if kind in NUMBERS and kind in result:
            key_of, letter = NUMBERS[kind]
            name += f", {letter}{result[kind][key_of]}"
        for part, remark in (("with", ""), ("without", " without reconstruction (no likelihood)")):
            if f"{part}_reconstruction" in result.get(kind, {}):
                values = result[kind][f"{part}_reconstruction"]
                numbers = (values[key + suffix] for suffix in ("", "_standard_error", "_estimator_noise"))
                error = result[kind].get("solver_error")  # which the NELBO and earlier evaluations have not
                cells = *(f"{number:.4f}" for number in numbers), f"{error[key]:.1g}" if error else ""
                rows.append((name + remark, *cells))
    for row in result.get("baselines", {}).values():  # which earlier evaluations have not
        numbers = (f"{row[key + end]:.4f}" for end in ("", "_standard_error"))
        rows.append((f"baseline: {baseline_name(row)}", *numbers, "", ""))
    if result["entropy_nats"] is not None:
        rows.append(("entropy of the data", f"{result['entropy_nats']:.4f}", "", "", ""))
    counts = ", ".join(f"{n} for the {KINDS[kind].split()[0]}" for kind, n in _counts(result) if n)
    lines = [table(rows), f"{result['split']} split: {counts}; ε = {result['eps']:g}"]
    if "groups" in result:
        lines.append(f"standard errors are over {result['groups']} groups of examples that are alike")
    lines.append(f"dequantization: {result['dequantization']}")
    if "condition" in result:
        lines.append(f"condition: {result['condition']}; the model is one of p(x|c), and the baselines do not see c")
    both = [result[kind]["with_reconstruction"][key] for kind in ("nelbo", "nll") if kind in result]
    if len(both) == 2 and both[1] > both[0]:
        lines.append("The NELBO bounds the law of the SDE; the NLL is of that of the ODE, and may lie above it.")
    lines += of_classes(result)
    lines += unconverged(result)
    return "\n".join(lines + ([f"codes: {result['codes']}"] if "codes" in result else []))


def of_classes(result: dict) -> list[str]:
    """The NELBO of each class, where the model is one of p(x|class)."""
    if not result.get("classes"):
        return []
    unit = result["dims"] * math.log(2) if result["unit"] == "bits/dim" else 1.0
    rows: list[tuple[str, ...]] = [("class", "examples", f"NELBO, {result['unit']}", "± standard error")]
    for label, own in result["classes"].items():
        numbers = (own["nats"] / unit, own["nats_standard_error"] / unit)
        rows.append((label, str(own["images"]), *(f"{number:.4f}" for number in numbers)))
    return ["", table(rows), ""]


def unconverged(result: dict) -> list[str]:
    """A line for each likelihood whose solver may be wrong by more than was asked for."""
    lines = []
    for kind, name in KINDS.items():
        if count := result.get(kind, {}).get("unconverged", 0):
            numbers = result[kind]
            advice = "leave out --steps, or give more" if "steps" in numbers else "allow a larger --nll-error"
            lines.append(
                f"The {name} has not converged: the solver's error may be above {numbers['nll_error']:g} bits/dim in "
                f"{count} of {result['images'][kind]} examples, up to "
                f"{numbers['solver_error']['largest_bits_per_dim']:.1g}; {advice}."
            )
    return lines


def baseline_name(row: dict) -> str:
    """What a table calls a baseline, see :func:`indm.evaluation.baselines.baselines`."""
    return f"{row['name']}, {row['detail']}" if "detail" in row else row["name"]


def number_key(result: dict) -> str:
    return "bits_per_dim" if result["unit"] == "bits/dim" else "nats"


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as lines of text, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
