"""The evaluation of a run as text."""

from collections.abc import Mapping

from indm.evaluation.report import Report, Row, likelihood_rows, notes, number_key, table
from indm.number import Number, shown


def likelihood_table(result: Mapping) -> str:
    """The evaluation of a run as text: the report of :func:`indm.evaluate`, baselines and classes."""
    report = Report.read(result)
    rows = likelihood_rows(report)
    for row in result.get("baselines", {}).values():
        cells = Number.read(row, report.key).cells()
        rows.append((f"baseline: {baseline_name(row)}", str(report.images["nelbo"]), *cells))
    if result.get("entropy_nats") is not None:
        rows.append(("entropy of the data", "", f"{result['entropy_nats']:.4f}", "", "", ""))
    first, *others = notes(report)
    split = f"{result['split']} {'examples' if result['split'] == 'all' else 'split'}; "
    lines = [table(rows), split + first, *others]
    if "condition" in result:
        lines.append(
            f"condition: {result['condition']}; the model is one of p(x|c), and the baselines do not see c"
        )
    if result.get("unended"):
        lines.append("weights of a checkpoint: the training has not ended")
    return "\n".join(lines + of_classes(report, result.get("classes")))


def verdict(result: Mapping) -> str:
    """A sentence on which baselines the model beats by two standard errors; "" without errors.

    >>> row = {"name": "a Gaussian", "nats": 5.0, "nelbo_difference": {"nats": -3.0, "nats_standard_error": 0.1}}
    >>> verdict({"unit": "nats", "nelbo": {"with_reconstruction": {"nats": 2.0}}, "baselines": {"gaussian": row}})
    'The model (2.00 nats) is better than a Gaussian (5.00).'
    """
    key, found = number_key(result["unit"]), dict[str, list[str]]()
    for row in sorted(result.get("baselines", {}).values(), key=lambda row: row[key]):
        difference = Number.read(row["nelbo_difference"], key)
        if difference.standard_error is not None:
            is_better = difference.mean < -2 * difference.standard_error
            words = "better than" if is_better else "not better than"
            found.setdefault(words, []).append(f"{row['name']} ({row[key]:.2f})")
    parts = [f"{words} {' and '.join(found[words])}" for words in sorted(found)]
    if not parts:
        return ""
    nelbo = f"{result['nelbo']['with_reconstruction'][key]:.2f} {result['unit']}"
    return f"The model ({nelbo}) is {', but '.join(parts)}."


def of_classes(report: Report, classes: Mapping | None) -> list[str]:
    """The NELBO of each class, for a model of p(x|class)."""
    if not classes:
        return []
    rows: list[Row] = [("class", "examples", f"NELBO, {report.unit}", "± standard error")]
    for label, row in classes.items():
        numbers = (row[key] / report.nats_of_unit for key in ("nats", "nats_standard_error"))
        rows.append((label, str(row["images"]), *map(shown, numbers)))
    note = "classes of one group have no standard error and are left out"
    return ["", table(rows), *([note] if report.groups else []), ""]


def baseline_name(row: Mapping) -> str:
    """The name of a baseline in a table, see :func:`indm.workbench.evaluation.baselines.baselines`."""
    return f"{row['name']}, {row['detail']}" if "detail" in row else row["name"]
