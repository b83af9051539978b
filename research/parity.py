"""Errors of the scores of converted networks against the original code.

    python -m research.parity tests/fixtures/ddpmpp_vp tests/fixtures/ncsnpp_ve

Each argument names a pair of files: NAME.json, the original's settings, and NAME.npz with ``state/…``, its tensors,
``input/z_t``, ``input/t`` and ``output/score``, computed by it. Printed is the largest error of each sample over its
largest entry, and the largest of these.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from indm.published.network import architecture
from indm.workbench.convert import score_of_checkpoint


def errors(path: Path) -> torch.Tensor:
    """Relative errors of the samples of one fixture, (B,)."""
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    state = {k.removeprefix("state/").removeprefix("module."): v for k, v in arrays.items() if k.startswith("state/")}
    settings = json.loads(path.with_suffix(".json").read_text())
    sde = {"name": settings["sde"].removesuffix("sde")}  # "vpsde", with all else as published
    found = architecture(state, {"sde": sde}, {}, settings["image_size"])
    score = score_of_checkpoint(state, found.sde, found.net, found.shape)
    with torch.no_grad():
        error = score(arrays["input/z_t"], arrays["input/t"]) - arrays["output/score"]
    return error.flatten(1).abs().amax(1) / arrays["output/score"].flatten(1).abs().amax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path, nargs="+")
    for path in parser.parse_args().fixtures:
        found = errors(path.with_suffix(""))
        print(f"{path.stem:20} {found.max():.1e}   of samples: {', '.join(f'{e:.1e}' for e in found)}")


if __name__ == "__main__":
    main()
