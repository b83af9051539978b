"""The models that come with the package: trains, evaluates and samples a run, and puts what others get of it there.

    python -m research.pretrained digits                    # some minutes of one core
    python -m research.pretrained emoji-32 --path PACKAGE   # half an hour; PACKAGE is emoji-datasource-google, unpacked

A run that is there is not trained again. The result lies in ``indm/pretrained``, with its card.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image

from indm.evaluation import card

ROOT = Path(__file__).resolve().parents[1]
RUNS: dict[str, list[str]] = {  # what differs from the recipe: the score is trained for samples, the flow by the bound
    "digits": ["--train.objective", "fid", "--train.steps", "3000"],
    "emoji-32": ["--train.objective", "fid", "--train.steps", "4000"],
}


def indm(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "indm", *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(RUNS))
    parser.add_argument("--path", help="of the images, for emoji-32")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the run is or shall be")
    o = parser.parse_args()
    run, data = o.runs / f"{o.name}-pretrained", ["--data.path", o.path] if o.path else []
    if not (run / "summary.json").exists():
        indm("train", o.name, *data, *RUNS[o.name], "--threads", "1", "--out", run)
    indm("evaluate", run, "--overwrite")
    indm("sample", run, "-n", "32", "--overwrite")
    command = f"python -m research.pretrained {o.name}" + (" --path PACKAGE" if o.path else "")
    ship(run, ROOT / "indm" / "pretrained" / f"{o.name}-pretrained", command)


def ship(run: Path, folder: Path, command: str) -> None:
    """What others get of a run; the picture in 256 colours, as all models together are to stay below 5 MB."""
    card.write(run, folder, folder.name, "apache-2.0", command)
    picture = folder / "samples.png"
    with Image.open(picture) as samples:
        samples.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
    print(folder)


if __name__ == "__main__":
    main()
