"""Commands on runs: ``indm evaluate``, ``compare``, ``app`` and ``convert``."""

import importlib.util
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.names import GIVEN
from indm.workbench.cli.common import DONE, INTERRUPTED, Common, Computes, RunFolder, ShowsProgress
from indm.workbench.cli.listing import flags_of
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import ConversionOptions, Evaluation, default

EvaluationFlags = flags_of(Evaluation, "the recipe's")


@dataclass
class Evaluate(ShowsProgress):
    """Report the likelihood of held-out data under a run, in bits/dim or nats.

    Prints a table of NELBO and NLL, with and without reconstruction, beside baselines on the same examples: uniform
    noise, a Gaussian, PNG. Also prints the NELBO by noise level. Writes evaluation.json, and per-example nats to
    evaluation.npz. Options that are not given come from the recipe's [evaluate] table. Use --data NAME or
    --data.path my-images to evaluate on data that differ from the recipe's.
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
        options = recipes.checked_options("evaluate", {key: recipes.value_of(text) for key, text in texts.items()})
        run = run_folder(self.run_folder)
        data = recipes.override(recipe_of(run), self.table_values)["data"]
        if data["name"] == GIVEN and "path" in data:
            data["name"] = "folder" if Path(data["path"]).is_dir() else "array"
        check_absent(run, ["evaluation.json", "evaluation.npz"], self.overwrite)
        result = evaluate_run(run, options, data_table=data, progress=self.progress)
        if PartialState().is_main_process:  # it alone has the results of all processes
            print(likelihood_table(result), *level_table(Report.read(result)), sep="\n")
            print("nothing was written" if result["interrupted"] else verdict(result))
        return INTERRUPTED if result["interrupted"] else DONE


@dataclass
class Compare(ShowsProgress):
    """Compare evaluated runs: a table, paired differences from the first, a page.

    The table shows parameters, steps, seconds and likelihoods of each run, and differences from the first run. Their
    error is over the examples, for these trainings. To compare methods, train each with several seeds. With one run,
    the page shows that run.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN…]", help_behavior_hint="(required)")]
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

    With "indm app RUN RUN_B" it also translates between two models, with "indm app PAIR" between both of a pair, and
    with one model of classes between classes. Ctrl-C ends it. It needs Gradio, and no network. Images of up to 10 MB
    are read as "indm translate" reads them, one request is computed at a time, and no file of this machine is served.
    Uploads are deleted after an hour, or when the app ends.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN]", help_behavior_hint="(required)")]
    """One or two run folders of models of images, or models of the hub by their names there, user/name."""
    host: str = "127.0.0.1"
    """The address to listen at; with 0.0.0.0 everybody who reaches this machine may use it."""
    port: Annotated[int | None, arg(metavar="PORT"), default("the first free from 7860")] = None
    """The port to listen at."""
    seconds: float = 120.0
    """The longest that a request may take."""

    def run(self) -> int:
        if importlib.util.find_spec("gradio") is None:
            raise ValueError("indm app needs the library Gradio: pip install gradio")
        from indm.workbench.app import requests
        from indm.workbench.runs.folder import run_folder

        sides = requests.open_sides([run_folder(folder) for folder in self.run_folders])
        from indm.workbench.app.page import LOCAL, serving

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as by Ctrl-C, so that uploads are removed
        with serving(sides, self.host, self.port, self.seconds) as address:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            if self.host not in LOCAL:
                print(f"indm: warning: everybody who reaches {self.host} may use this", file=sys.stderr)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        return DONE


@dataclass
class Convert(Common):
    """Make a run of a checkpoint that the paper's authors or score_sde_pytorch released.

    Checkpoints of score_sde_pytorch have no flow. Channels, levels, blocks, attention, pyramids and embedding are read
    from the tensors. The rest must be given:

    by --recipe cifar10-vp-nll, which has all of it for that setting of the paper;

    or by --sde vp, subvp or ve and --data.size, the side of the images. The remaining settings are then those published
    for DDPM++ (vp, subvp) or NCSN++ (ve); they are listed, and --net.centered false, --net.fir "[1, 3, 3, 1]",
    --net.scale_by_sigma, --net.rescale, --sde.beta_max and so on change them.

    Of a flow the activations and the Lipschitz coefficient are those published; --flow.activation, --flow.coeff,
    --flow.encoder_activation and --flow.prior_activation change them.

    What "indm evaluate" loads is named by --data: --data folder --data.path my-images --data.size 32. Its images must
    have the shape of the checkpoint's. Without --data they are the recipe's, or else assumed by the shape, and listed
    so. A tensor that does not fit is an error that lists it. Nothing pickled in the files is run.
    """

    tables = ("data", "sde", "net", "flow", "evaluate")

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """The score's file, for example checkpoint_26.pth."""
    flow_checkpoint: Annotated[Positional[Path | None], arg(metavar="FLOW_CHECKPOINT")] = None
    """The flow's file, for example flow_checkpoint_26.pth; without one the flow is the identity."""
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/converted")
    """The run folder."""
    options: Annotated[ConversionOptions, arg(name="")] = field(default_factory=ConversionOptions)

    def run(self) -> int:
        from indm.workbench.convert import convert

        flow, options = self.flow_checkpoint, vars(self.options)
        made = convert(self.checkpoint, self.out, flow_checkpoint=flow, changes=self.table_values, **options)
        for name in ("from_the_tensors", "assumed", "data"):
            settings = ", ".join(f"{key} = {recipes.literal(value)}" for key, value in made[name].items())
            print(f"{name.replace('_', ' ')}: {settings or 'nothing'}")
        for file in made["files"]:
            print(f"passed over in {file['name']}: {', '.join(file['passed_over']) or 'nothing'}")
        files = " and ".join(f"{file['name']} ({file['weights']})" for file in made["files"])
        print(f"{self.out}: {files}, step {made['step']}, {made['parameters']['score']:,} parameters of the score")
        return DONE
