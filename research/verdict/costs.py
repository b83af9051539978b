"""What a step costs, in steps of linear diffusion: ``python -m research.verdict costs``."""

from collections.abc import Sequence

from research.lab.costs import costs_in_turns
from research.markdown import in_table
from research.records import RECORDS, Records
from research.verdict.images import Images
from research.verdict.training import Costs, Phase, batches, cost_key, shares
from research.verdict.variants import Variant, with_flow, without_flow

TABLE = Records(RECORDS / "verdict-costs.csv")


def costs(data: str) -> Costs:
    """Of the kinds of steps that have been measured, in steps of linear diffusion."""
    return {"linear": 1.0} | {row["step"]: row["cost"] for row in TABLE.at(data=data).rows()}


def phase_of(variant: Variant, kind: str, shape: tuple[int, ...]) -> Phase:
    """A model that makes steps of this kind."""
    model = without_flow(variant, shape)
    phase = Phase(model if kind == "without" else with_flow(model, variant), variant)
    if kind == "frozen":
        phase.freeze()
    return phase


def measure(data: str, images: Images, variants: Sequence[Variant]) -> None:
    """Add the costs that are missing to the table: CPU seconds of one thread, all kinds of steps in turns."""
    known, source = costs(data), batches(images.train, 0)
    kinds = {cost_key(v, kind): (v, kind) for v in variants for kind, share in shares(v).items() if share}
    missing = {key: phase_of(*kinds[key], images.shape) for key in kinds if key not in known}
    if not missing:
        return
    phases = {"linear": phase_of(Variant(), "without", images.shape)} | missing
    steps = {key: lambda phase=phase: phase.train_on(next(source), 0.0) for key, phase in phases.items()}
    rows = costs_in_turns(steps, "linear")
    for key in missing:
        TABLE.at(data=data, step=key).add(rows[key])


def markdown(table: Records) -> str:
    """The costs that were measured."""
    rows = [(row["step"], f"{row['cost']:.3f} ± {row['error']:.3f}") for row in table.rows()]
    return in_table("step", "cost, steps of linear diffusion", rows=rows)
