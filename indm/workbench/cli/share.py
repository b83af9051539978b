"""``indm convert`` and ``indm push``."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.workbench.cli.common import DONE, Common
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.options import ConversionOptions, default


@dataclass
class Convert(Common):
    """Make a run of a checkpoint that the paper's authors or score_sde_pytorch released.

    Those of score_sde_pytorch have no flow. Channels, levels, blocks, attention, pyramids and embedding are read from
    the tensors. The rest must be given:

    by --recipe cifar10-vp-nll, which has all of it for that setting of the paper;

    or by --sde vp, subvp or ve and --image-size. The remaining settings are then those published for DDPM++ (vp, subvp)
    or NCSN++ (ve); they are listed, and --net.centered false, --net.fir "[1, 3, 3, 1]", --net.scale_by_sigma,
    --net.rescale, --sde.beta_max and so on change them.

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


@dataclass
class Push(Common):
    """Share a run on the Hugging Face hub: model, recipe, samples.png and a model card.

    The card says what the model is, and has the last evaluation, the samples and how to load the model.
    Neither checkpoints nor the places of your data are shared. It needs a token: "hf auth login", or HF_TOKEN. Another
    server of that interface: HF_ENDPOINT.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    name: Annotated[Positional[str], arg(metavar="USER/NAME")]
    """What the hub shall call it."""
    license: Annotated[str | None, arg(metavar="ID"), default("the card names none")] = None
    """Under which licence, as the hub calls it: apache-2.0, cc-by-4.0, …"""
    private: bool = False
    """Let only yourself see it, where it is new."""
    out: Annotated[Path | None, arg(metavar="FOLDER"), default("push")] = None
    """Only write what would be pushed, into this folder."""

    def run(self) -> int:
        from indm.workbench import hub
        from indm.workbench.evaluation import card
        from indm.workbench.runs.folder import check_empty

        hub.check_name(self.name)
        if self.out is not None:
            check_empty(self.out, "give another --out")
            card.write(self.run_folder, self.out, self.name, self.license)
            print(self.out / card.CARD)
            return DONE
        with tempfile.TemporaryDirectory() as folder:
            card.write(self.run_folder, Path(folder), self.name, self.license)
            print(hub.push(Path(folder), self.name, private=self.private))
        return DONE
