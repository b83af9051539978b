"""``indm translate``."""

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from indm.checks import one_line
from indm.workbench.cli.common import DONE, SOME_FAILED, ShowsProgress
from indm.workbench.recipes.options import TranslationOptions, default


@dataclass
class Translate(ShowsProgress):
    """Translate images of A into images of B by trained runs.

    "indm translate RUN_A RUN_B photos --out results" takes two models: to T along A's probability flow, back along B's.

    "indm translate PAIR photos --out results" does the same, with the folder of "indm train-pair".

    "indm translate BRIDGE photos --out results" takes one model of "indm train-bridge".

    "indm translate RUN photos --condition cat dog --out results" takes one model of classes: up as cat, down as dog.

    With --method sdedit --strength 0.5 all of these take the model of B alone: noise up, then down along its flow. Then
    "indm translate RUN_B photos" does, too.

    Writes NAME.png for each image (NAME.npz for an array), sheet.png with sources and results interleaved, and
    translation.json with the distance of each result from its source and the reason for each that failed.
    """

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN] IMAGES…", help_behavior_hint="(required)")]
    """One or two run folders or models of the hub, user/name; then images: files, folders, patterns like "x/*.png",
    arrays as .npz or .npy."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where to write; a folder that is not empty is an error without --overwrite."""
    direction: Literal["forward", "backward"] = "forward"
    """From A to B, or from B to A."""
    condition: Annotated[tuple[str, str] | None, arg(metavar="CLASS CLASS"), default("two data sets")] = None
    """Of one model of classes: the class of the images, and the one that they become, by name, or by number (from 0)
    where no name has a digit."""
    options: Annotated[TranslationOptions, arg(name="")] = field(default_factory=TranslationOptions)
    overwrite: bool = False
    """Write into a folder that is not empty."""

    def run(self) -> int:
        from indm.workbench.runs.folder import check_empty, is_run, run_folder
        from indm.workbench.training.pairs import is_pair
        from indm.workbench.translation.routes import found_in, open_runs
        from indm.workbench.translation.translate import sentences, translate_files

        if not self.overwrite:
            check_empty(self.out, "name another --out, or add --overwrite")
        first, *others = self.paths
        given = (run_folder(first), *map(_run_folder, others[:1]), *others[1:])
        count = len([*itertools.takewhile(lambda path: is_run(path) or is_pair(path), given)])
        if not count or count == len(given):
            what = "a run folder (with a recipe.toml in it) first" if not count else "images after the run folders"
            raise ValueError(f"translate needs {what}, got {' '.join(map(str, self.paths))}")
        sources = given[count:]
        found_in(sources)
        opened = open_runs(given[:count], self.direction, self.condition, method=self.options.method)
        report = translate_files(opened, sources, self.out, self.options, progress=self.progress)
        print("\n".join(sentences(report)))
        for name, reason in report["failed"].items():
            print(f"indm: not translated: {one_line(name)}: {reason}", file=sys.stderr)
        written = ["sheet.png", "index.html"] if self.options.page else ["sheet.png"]
        print("\n".join(str(self.out / name) for name in written) if report["examples"] else "nothing was translated")
        return SOME_FAILED if report["failed"] else DONE


def _run_folder(path: Path) -> Path:
    """Where the run is that is called ``path``; with a suffix it is an image."""
    from indm.workbench.runs.folder import run_folder

    return path if path.suffix else run_folder(path)
