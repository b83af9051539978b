"""The mistakes that are most likely, and what ``indm`` says to each: ``python bench/mistakes.py`` writes
docs/mistakes.md.

Each command line is typed in a folder with a few runs, images and numbers (:func:`furnish`); a test types them, too,
and compares with the page.
"""

import contextlib
import io
import os
import shlex
import shutil
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from indm.cli.main import main as indm

PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"
TITLE = """# Mistakes

What was typed on a machine without GPU, and what was said, by `python bench/mistakes.py`; a test holds that it is so.
Each is one line on standard error, with the exit status 2, before anything is computed or written. There are
`runs/digits` (evaluated), `runs/other` (of other digits, evaluated), `runs/new` (not evaluated), `photos` (30
pictures), `few` (5 pictures), `empty`, `texts`, `numbers.npy`, `nan.npy` and `names.csv`.
"""
SMALL = (
    "--dequantization.width=4 --net.channels=4 --net.blocks=1 --net.attention=[] --train.steps=1 "
    "--train.batch_size=16 --train.validate_examples=20 --threads 1 --quiet"
)
MISTAKES = {
    "Commands and options": """
        trian digits
        train
        train digitz
        train digits --rezume
        train digits --steps 500
        train digits --train.setps 500
        train digits --trian.steps 500
        train digits --cycle
        sample runs/digits --flow.width 64
        help flow residaul
        """,
    "Values": """
        train digits --train.steps many
        train digits --train.steps 0
        train digits --train.batch_size 0
        train digits --net.channels
        train digits --flow residaul --out runs/mine
        train digits --flow.bnis 16 --out runs/mine
        train digits --flow.bins many --out runs/mine
        train digits --device cuda:99
        """,
    "Data": """
        train folder
        train folder --data.path photo
        train folder --data.path photos/00.png
        train folder --data.path empty
        train folder --data.path texts
        train folder --data.path photos --data.size 4 --out runs/mine
        train folder --data.path photos --data.size big --out runs/mine
        train photos
        train numbers.npy
        train array --data.path number.npy
        train array --data.path names.csv
        train array --data.path nan.npy
        train-pair photos
        train-pair photos phots
        """,
    "Run folders": """
        train digits --out runs/digits
        train runs/digits
        train digits --resume --out runs/digts
        train digits --flow identity --like runs/digits --train.steps 500
        evaluate photos
        evaluate runs/digts
        evaluate digits
        evaluate runs/digits
        sample photos
        report photos
        inspect
        compare runs/digits
        compare runs/digits photos
        compare runs/digits runs/new
        compare runs/digits runs/other
        """,
    "Samples and translations": """
        sample runs/digits --sampler huen
        sample runs/digits --steps 0
        sample runs/digits -n 0
        fid photos
        fid runs/digits --extractor nowhere.pt
        translate runs/digits --out results
        translate photos --out results
        translate runs/digits photos --out results
        translate runs/digits runs/other empty --out results
        translate runs/digits runs/other phots --out results
        translate runs/digits runs/other few --out results --score
        translate runs/digits runs/other photos --out texts
        """,
}


def furnish(folder: Path) -> None:
    """Make the runs, images and numbers that the mistakes are about, in the current folder."""

    def quietly(line: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert indm(shlex.split(line)) == 0, line

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quietly(f"train digits {SMALL} --out {folder}/runs/digits")
        shutil.copytree(folder / "runs/digits", folder / "runs/new")
        quietly(f"evaluate {folder}/runs/digits --examples 20 --nll-examples 0 --quiet")
        quietly(f"train digits --data.limit 100 {SMALL} --out {folder}/runs/other")
        quietly(f"evaluate {folder}/runs/other --examples 20 --nll-examples 0 --quiet")
    draw = np.random.default_rng(0)
    for name, number in (("photos", 30), ("few", 5), ("empty", 0)):
        (folder / name).mkdir()
        for index in range(number):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").write_text("notes")
    (folder / "names.csv").write_text("name,height\nAnna,1.7\nBert,1.8\n")
    np.save(folder / "numbers.npy", draw.normal(size=(200, 5)))
    np.save(folder / "nan.npy", np.full((200, 5), np.nan))


def said(line: str) -> tuple[int, str]:
    """The exit status of a command line and what it writes to standard error, in the current folder."""
    errors = io.StringIO()
    no_gpu = mock.patch("indm.runs.devices.names", lambda: ["cpu"])
    with no_gpu, contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = indm(shlex.split(line))
    return status, errors.getvalue()


def page() -> str:
    """docs/mistakes.md as it ought to be, typed in the current folder."""
    blocks = [TITLE]
    for title, lines in MISTAKES.items():
        blocks.append(f"\n## {title}\n\n| typed: `indm …` | said: `indm: error: …` |\n|---|---|\n")
        for line in map(str.strip, lines.strip().splitlines()):
            status, complaint = said(line)
            if status != 2 or complaint.count("\n") != 1:
                raise ValueError(f"indm {line} ended with {status}: {complaint}")
            complaint = complaint.removeprefix("indm: error: ").strip().replace("|", "\\|")
            blocks.append(f"| `{line}` | {complaint} |\n")
    return "".join(blocks)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder))
        os.chdir(folder)
        PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
