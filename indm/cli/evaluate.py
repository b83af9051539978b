"""``indm evaluate`` and ``indm classify``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli.common import DONE, ShowsProgress
from indm.cli.listing import flags_of
from indm.config import recipes
from indm.config.options import Classifying, Evaluation, default

EvaluationFlags = flags_of(Evaluation, "the recipe's")


@dataclass
class Evaluate(ShowsProgress):
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

    def named(self) -> list[str]:
        return [self.table_values.get("data", "")]

    def run(self) -> int:
        from accelerate import PartialState

        from indm.evaluation.diagnosis import conclusion
        from indm.evaluation.results import evaluate_run, likelihood_table
        from indm.runs.folder import check_absent, recipe_of, run_folder

        texts = {key: text for key, text in vars(self.options).items() if text is not None}
        options = recipes.checked("evaluate", {key: recipes.value_of(text) for key, text in texts.items()})
        run = run_folder(self.run_folder)
        data = recipes.override(recipe_of(run), self.table_values)["data"]
        check_absent(run, ["evaluation.json", "evaluation.npz"], self.overwrite)
        result = evaluate_run(run, options, data_table=data, progress=self.progress)
        if PartialState().is_main_process:  # which alone has the results of all processes
            print(likelihood_table(result))
            print(conclusion(run, result))
        return DONE


@dataclass
class Classify(ShowsProgress):
    """Say which class images are of, by the likelihoods of a model of p(x|class).

    Prints accuracy, the nats of the labels, and calibration on the test split of the run's data. Writes
    classification.json, classification.npz (log p(x|class), log p(class|x)) and reliability.png. With a SOURCE,
    a folder of images or a samples.npz, whose classes nobody knows, it writes the class of each into
    classification.csv.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    source: Annotated[Positional[str | None], arg(metavar="SOURCE"), default("the run's test split")] = None
    """What to classify."""
    options: Annotated[Classifying, arg(name="")] = field(default_factory=Classifying, kw_only=True)
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("the run folder")] = None
    """Where to write."""
    overwrite: bool = False
    """Overwrite an existing classification."""

    def run(self) -> int:
        from indm.evaluation.classification import classify_run

        options = {"overwrite": self.overwrite, "progress": self.progress}
        print(classify_run(self.run_folder, self.options, self.source, self.out or self.run_folder, **options))
        return DONE
