"""``indm push``."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli.common import DONE, Common


@dataclass
class Push(Common):
    """Share a run on the Hugging Face hub: model, recipe, samples.png and a model card.

    The card has the data, the budget, the last evaluation with its conventions, the samples and how to load the model.
    Neither checkpoints nor the places of your data are shared. It needs a token: "hf auth login", or HF_TOKEN. Another
    server of that interface: HF_ENDPOINT.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    name: Annotated[Positional[str], arg(metavar="USER/NAME")]
    """What the hub shall call it."""
    license: Annotated[str | None, arg(metavar="ID", help_behavior_hint="(default: the card names none)")] = None
    """Under which licence, as the hub calls it: apache-2.0, cc-by-4.0, …"""
    private: bool = False
    """Let only yourself see it, where it is new."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: push)")] = None
    """Only write what would be pushed, into this folder."""

    def run(self) -> int:
        from indm.files import hub
        from indm.report import card
        from indm.runs.folder import check_empty

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
