"""``indm evaluate``."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from indm.cli.common import DONE, Common
from indm.config.options import Evaluation

EVALUATION = {field.name for field in fields(Evaluation)}


def from_recipe(metavar: str):
    """An option whose default stands in the recipe."""
    return arg(metavar=metavar, help_behavior_hint="(default: the recipe's)")


@dataclass
class Evaluate(Common):
    """Report the likelihood of held-out data under a run's model: NELBO and NLL, with and without reconstruction.

    Prints a table and writes evaluation.json, and per-example nats to evaluation.npz. What is not given here is as in
    the recipe's [evaluate] table.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    split: Annotated[Literal["test", "valid", "train"] | None, from_recipe("SPLIT")] = None
    """Which examples: test, valid or train."""
    examples: Annotated[int | None, from_recipe("N")] = None
    """How many of them, at most, for the NELBO."""
    nll_examples: Annotated[int | None, from_recipe("N")] = None
    """How many of these for the NLL of the probability-flow ODE; 0 skips it."""
    repeats: Annotated[int | None, from_recipe("N")] = None
    """Independent estimates for each example (2 or more), which tell the estimator's noise."""
    times: Annotated[int | None, from_recipe("N")] = None
    """Score evaluations of one NELBO estimate."""
    probes: Annotated[int | None, from_recipe("N")] = None
    """Hutchinson probes of the divergence."""
    rtol: Annotated[float | None, from_recipe("TOLERANCE")] = None
    """Relative tolerance of the ODE solver."""
    atol: Annotated[float | None, from_recipe("TOLERANCE")] = None
    """Absolute tolerance of the ODE solver."""
    steps: Annotated[int | None, from_recipe("N")] = None
    """Solve the ODE in so many equal steps (24 is usual): fast, but without error control; 0 is adaptive."""
    eps: Annotated[float | None, from_recipe("TIME")] = None
    """Truncation of bound and ODE, at or above the model's own; 0 is the model's own."""
    batch_size: Annotated[int | None, from_recipe("N")] = None
    """Examples at a time."""
    seed: Annotated[int | None, from_recipe("N")] = None
    """Of everything random in it."""
    overwrite: bool = False
    """Write over an evaluation that is there."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from accelerate import PartialState

        from indm.evaluation.results import likelihood_table
        from indm.evaluation.runs import evaluate_run
        from indm.runs.folder import check_absent

        check_absent(self.run_folder, ["evaluation.json", "evaluation.npz"], self.overwrite)
        given = {k: v for k, v in vars(self).items() if v is not None and k in EVALUATION}
        result = evaluate_run(self.run_folder, given, progress=not self.quiet)
        if PartialState().is_main_process:  # which alone has the whole of it
            print(likelihood_table(result))
        return DONE
