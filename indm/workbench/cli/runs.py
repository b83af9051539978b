"""Commands on runs: ``indm evaluate``, ``compare``, ``app`` and ``convert``."""

import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from indm.names import GIVEN
from indm.workbench.cli.common import DONE, INTERRUPTED, Common, Computes, RunFolder, ShowsProgress
from indm.workbench.cli.listing import flags_of
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import Evaluation, default

EvaluationFlags = flags_of(Evaluation, "the recipe's")


@dataclass
class Evaluate(ShowsProgress):
    """Report the likelihood of held-out data under a run, in bits/dim or nats.

    Prints a table of NELBO and NLL, with and without reconstruction, with baselines on the same
    examples: uniform noise, a Gaussian, PNG. Also prints the NELBO by noise level. Writes
    evaluation.json, and nats by example to evaluation.npz. Options that are not given come from the
    recipe's [evaluate] table. Use --data NAME or --data.path my-images for other data.
    """

    tables = ("data",)

    run_folder: RunFolder
    options: Annotated[EvaluationFlags, arg(name="")] = field(default_factory=EvaluationFlags)
    overwrite: bool = False
    """Overwrite an existing evaluation."""

    def named(self) -> list[str]:
        return [self.table_values.get("data", "")]

    def run(self) -> int:
        from accelerate import PartialState

        from indm.evaluation.report import Report, level_table
        from indm.workbench.evaluation.results import evaluate_run
        from indm.workbench.evaluation.text import likelihood_table, verdict
        from indm.workbench.runs.folder import check_absent, recipe_of, run_folder

        texts = {key: text for key, text in vars(self.options).items() if text is not None}
        values = {key: recipes.value_of(text) for key, text in texts.items()}
        options = recipes.options_of("evaluate", values)
        run = run_folder(self.run_folder)
        data = recipes.override(recipe_of(run), self.table_values)["data"]
        if data["name"] == GIVEN and "path" in data:
            data["name"] = "folder" if Path(data["path"]).is_dir() else "array"
        check_absent(run, ["evaluation.json", "evaluation.npz"], self.overwrite)
        result = evaluate_run(run, options, data_table=data, progress=self.progress)
        if PartialState().is_main_process:  # only it has the results of all processes
            print(likelihood_table(result), *level_table(Report.read(result)), sep="\n")
            print("nothing was written" if result["interrupted"] else verdict(result))
        return INTERRUPTED if result["interrupted"] else DONE


@dataclass
class Compare(ShowsProgress):
    """Compare evaluated runs: a table, paired differences from the first, a page.

    The table shows parameters, steps, seconds and likelihoods of each run, and differences from the
    first run. Their error is over the examples, for these trainings. To compare methods, train each
    with several seeds. With one run, the page shows that run.
    """

    run_folders: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="RUN [RUN…]", help_behavior_hint="(required)")
    ]
    """One or more run folders, each of them evaluated on the same examples."""
    out: Path = Path(".")
    """Where to write comparison.html, comparison.png and comparison.json."""
    overwrite: bool = False
    """Overwrite an existing comparison."""

    def run(self) -> int:
        from indm.workbench.evaluation.compare import COMPARISON_FILES, compare
        from indm.workbench.runs.folder import check_absent

        check_absent(self.out, COMPARISON_FILES, self.overwrite)
        print(compare(self.run_folders, self.out))
        print(f"{self.out / 'comparison.html'}")
        return DONE


@dataclass
class App(Computes):
    """Try a run in the browser: samples, likelihoods, translation.

    "indm app RUN RUN_B" also translates between two models, "indm app PAIR" between both of a pair,
    and one model of classes between classes. Ctrl-C ends it. It needs Gradio, but no network.
    Images have up to 10 MB, one request is computed at a time, and no file of this machine is
    served. Uploads are deleted after an hour, or when the app ends.
    """

    run_folders: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="RUN [RUN]", help_behavior_hint="(required)")
    ]
    """One or two run folders of models of images, or models of the hub by their names there,
    user/name.
    """
    host: str = "127.0.0.1"
    """The address to listen at; with 0.0.0.0 everybody who reaches this machine may use it."""
    port: Annotated[int | None, arg(metavar="PORT"), default("the first free from 7860")] = None
    """The port to listen at."""
    seconds: float = 120.0
    """The longest that a request may take."""

    def run(self) -> int:
        from indm.workbench.app import requests
        from indm.workbench.runs.folder import run_folder

        sides = requests.open_sides([run_folder(folder) for folder in self.run_folders])
        from indm.workbench.app.page import LOCAL, serving

        # end as by Ctrl-C, so that uploads are removed
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with serving(sides, self.host, self.port, self.seconds) as address:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            if self.host not in LOCAL:
                warning = f"indm: warning: everybody who reaches {self.host} may use this"
                print(warning, file=sys.stderr)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        return DONE


@dataclass
class Convert(Common):
    """Make a run of a checkpoint that the paper's authors or score_sde_pytorch released.

    Checkpoints of score_sde_pytorch have no flow. --recipe describes the networks, such as
    cifar10-vp-nll of the paper. Change it with keys like --net.blocks 8, --sde subvp,
    --flow.activation swish or --data.path my-images. Tensors that do not fit are listed. Nothing
    pickled in the files is run.
    """

    tables = ("data", "sde", "net", "flow", "evaluate")

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """The score's file, for example checkpoint_26.pth."""
    flow_checkpoint: Annotated[Positional[Path | None], arg(metavar="FLOW_CHECKPOINT")] = None
    """The flow's file, for example flow_checkpoint_26.pth; without one the flow is the identity."""
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/converted")
    """The run folder."""
    recipe: Annotated[str, arg(metavar="RECIPE")] = field(kw_only=True)
    """A recipe that describes data, SDE, network and flow."""
    weights: Annotated[
        Literal["ema", "model", None], arg(metavar="ema|model"), default("as published")
    ] = None
    """Moving averages or the last weights. The paper's results are of the score's averages and the
    flow's last ones.
    """

    def run(self) -> int:
        from indm.workbench.convert import convert

        made = convert(
            self.checkpoint,
            self.out,
            recipe=self.recipe,
            flow_checkpoint=self.flow_checkpoint,
            weights=self.weights,
            changes=self.table_values,
        )
        for file in made["files"]:
            print(f"passed over in {file['name']}: {', '.join(file['passed_over']) or 'nothing'}")
        files = " and ".join(f"{file['name']} ({file['weights']})" for file in made["files"])
        count = f"{made['parameters']['score']:,} parameters of the score"
        print(f"{self.out}: {files}, step {made['step']}, {count}")
        return DONE
