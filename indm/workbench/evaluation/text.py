"""The evaluation of a run as text: that of :func:`indm.evaluate` beside baselines and classes."""

from collections.abc import Mapping

from indm.evaluation.text import ENDS, Row, likelihood_rows, nats_of_unit, notes, number_key, shown, table


def likelihood_table(result: Mapping) -> str:
    """The report of :func:`indm.evaluate` or of a run's evaluation as text, in bits/dim or nats.

    NELBO and NLL, each with and without the reconstruction term, and the baselines. ``examples`` is how many examples
    the mean of a row is of.
    """
    key, rows = number_key(result), likelihood_rows(result)
    for row in result.get("baselines", {}).values():
        numbers = (shown(row[key + end]) for end in ENDS[:2])
        rows.append((f"baseline: {baseline_name(row)}", str(result["images"]["nelbo"]), *numbers, "", ""))
    if result.get("entropy_nats") is not None:
        rows.append(("entropy of the data", "", f"{result['entropy_nats']:.4f}", "", "", ""))
    first, *others = notes(result)
    split = f"{result['split']} {'examples' if result['split'] == 'all' else 'split'}; " if "split" in result else ""
    lines = [table(rows), split + first, *others]
    if "condition" in result:
        lines.append(f"condition: {result['condition']}; the model is one of p(x|c), and the baselines do not see c")
    if result.get("unended"):
        lines.append("weights of a checkpoint: the training has not ended")
    return "\n".join(lines + of_classes(result))


def of_classes(result: Mapping) -> list[str]:
    """The NELBO of each class, where the model is one of p(x|class)."""
    if not result.get("classes"):
        return []
    rows: list[Row] = [("class", "examples", f"NELBO, {result['unit']}", "± standard error")]
    for label, row in result["classes"].items():
        numbers = (row[key] / nats_of_unit(result) for key in ("nats", "nats_standard_error"))
        rows.append((label, str(row["images"]), *map(shown, numbers)))
    left_out = ["classes of one group have no standard error and are left out"] if "groups" in result else []
    return ["", table(rows), *left_out, ""]


def baseline_name(row: Mapping) -> str:
    """The name of a baseline in a table, see :func:`indm.workbench.evaluation.baselines.baselines`."""
    return f"{row['name']}, {row['detail']}" if "detail" in row else row["name"]
