"""``indm evaluate``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli.common import DONE, Computes, outside
from indm.cli.tables import flags_of, given
from indm.config import recipes
from indm.config.options import Evaluation

EvaluationFlags = flags_of(Evaluation, default="the recipe's")


@dataclass
class Evaluate(Computes):
    """Report the likelihood of held-out data under a run, in bits/dim or nats.

    Prints a table of NELBO and NLL, with and without reconstruction, beside what a model must beat on the same
    examples: uniform noise, a Gaussian, PNG. Writes evaluation.json, and per-example nats to evaluation.npz. An option
    that is not given here is that of the recipe's [evaluate] table. Other data than the recipe's: --data NAME,
    --data.path my-images.
    """

    tables = ("data",)

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or a model of the hub by its name there, user/name."""
    options: Annotated[EvaluationFlags, arg(name="")] = field(default_factory=EvaluationFlags)
    overwrite: bool = False
    """Overwrite an existing evaluation."""
    quiet: bool = False
    """No progress bar."""

    def trusted(self) -> list[str]:
        """Also the package of the data set that this command line itself names."""
        return super().trusted() + outside([self.table_values.get("data", "")])

    def run(self) -> int:
        from accelerate import PartialState

        from indm.evaluation.diagnosis import conclusion
        from indm.evaluation.results import likelihood_table
        from indm.evaluation.runs import evaluate_run
        from indm.runs.folder import check_absent, recipe_of, run_folder

        options = recipes.checked(
            "evaluate", {key: recipes.value_of(text) for key, text in given(self.options).items()}
        )
        run = run_folder(self.run_folder)
        data = recipes.override(recipe_of(run), self.table_values)["data"]
        check_absent(run, ["evaluation.json", "evaluation.npz"], self.overwrite)
        result = evaluate_run(run, options, data_table=data, progress=not self.quiet)
        if PartialState().is_main_process:  # which alone has the results of all processes
            print(likelihood_table(result))
            print(conclusion(run, result))
        return DONE
