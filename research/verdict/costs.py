"""What a step costs, in steps of linear diffusion: ``python -m research.verdict costs``."""

from collections.abc import Sequence

import torch

from research.lab.costs import relative_cost, seconds_a_step
from research.markdown import in_table
from research.records import RECORDS, Records
from research.verdict.images import Images
from research.verdict.training import Costs, Phase, batches, cost_key, shares
from research.verdict.variants import Variant, with_flow, without_flow

TABLE = Records(RECORDS / "verdict-costs.csv")
ROUNDS, STEPS = 9, 3  # of the medians; the first round warms up


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
    torch.set_num_threads(1)
    known, source = costs(data), batches(images.train, 0)
    kinds = {cost_key(v, kind): (v, kind) for v in variants for kind, share in shares(v).items() if share}
    missing = {key: phase_of(*kinds[key], images.shape) for key in kinds if key not in known}
    if not missing:
        return
    unit = phase_of(Variant(), "without", images.shape)
    ratios: dict[str, list[float]] = {key: [] for key in missing}
    for _ in range(ROUNDS):
        for key, phase in missing.items():
            one, own = (seconds_a_step(lambda _, p=p: p.step(next(source), 0.1), STEPS) for p in (unit, phase))
            ratios[key].append(own / one)
    for key, values in ratios.items():
        TABLE.at(data=data, step=key).add(relative_cost(values[1:]))


def markdown(table: Records) -> str:
    """The costs that were measured."""
    rows = [(row["step"], f"{row['cost']:.3f} ± {row['error']:.3f}") for row in table.rows()]
    return in_table("step", "cost, steps of linear diffusion", rows=rows)
