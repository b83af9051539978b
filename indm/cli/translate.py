"""``indm translate``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from indm.cli.common import DONE, SOME_FAILED, Common
from indm.messages import one_line


@dataclass
class Translate(Common):
    """Translate images of A into images of B, without pairs to learn from.

      indm translate RUN_A RUN_B photos --out results     two models: to T along A's flow of probability, back along B's
      indm translate PAIR photos --out results            the same, with the folder of "indm train-pair"
      indm translate BRIDGE photos --out results          one model of "indm train-bridge"

    Writes NAME.png for each image (NAME.npz for an array), sheet.png with sources and results in turns, and
    translation.json with the distance of each result from its source and the reason for each that failed.
    """

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN] IMAGES…")]
    """One or two run folders, then images: files, folders, patterns like "x/*.png", arrays as .npz or .npy."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where to write; a folder that holds anything is an error without --overwrite."""
    direction: Literal["forward", "backward"] = "forward"
    """From A to B, or from B to A."""
    strength: float = 1.0
    """How far up the diffusion to go, as a share of T; less than 1 keeps more of the source."""
    stochastic: bool = False
    """Go up by random noise in place of the probability flow; what comes out depends on --seed."""
    seed: int = 0
    """Of that noise."""
    steps: int = 200
    """Evaluations of the networks: 50 is four times quicker, and its cycle is less exact."""
    tol: Annotated[float | None, arg(metavar="TOLERANCE", help_behavior_hint="(default: equal steps)")] = None
    """Solve adaptively to this tolerance in place of equal steps; 1e-6 is usual."""
    strip: Annotated[int, arg(metavar="FRAMES")] = 0
    """Also write strips/NAME.png, so many pictures of each leg of the way; 0 for none."""
    cycle: bool = False
    """Also go back to A: cycle/NAME.png, and the largest error of each image in grey levels."""
    score: bool = False
    """Also compare with the data of B (Fréchet and kernel distance, how many a classifier takes for B, diversity)."""
    strict: bool = False
    """An image of another size than the model's, or a file that is no image, is an error."""
    overwrite: bool = False
    """Write into a folder that holds something."""
    batch_size: int = 64
    """Images at a time."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> int:
        from indm.evaluation import file_translation
        from indm.evaluation.translation_runs import is_run_or_pair, open_runs

        count = next((i for i, path in enumerate(self.paths) if not is_run_or_pair(path)), len(self.paths))
        if not count or count == len(self.paths):
            what = "a run folder (with a recipe.toml in it) first" if not count else "images after the run folders"
            raise ValueError(f"translate needs {what}, got {' '.join(map(str, self.paths))}")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())) and not self.overwrite:
            raise ValueError(f"--out {self.out} exists and is not empty: name another, or add --overwrite")
        opened = open_runs(self.paths[:count], self.direction)
        options = file_translation.Options(
            self.strength, self.stochastic, self.steps, self.tol, self.seed, self.strip, self.cycle, self.score,
            self.strict, self.batch_size,
        )  # fmt: skip
        report = file_translation.translate_files(
            opened, self.paths[count:], self.out, options, progress=not self.quiet
        )
        print(file_translation.summary(report))
        for name, reason in report["failed"].items():
            print(f"indm: not translated: {one_line(name)}: {reason}", file=sys.stderr)
        print(f"{self.out / 'sheet.png'}" if report["examples"] else "nothing was translated")
        return SOME_FAILED if report["failed"] else DONE
