"""Three small trainings and their likelihoods, as hashes: what moves code must not change a bit of
them.

    python .ci/golden.py golden.json    # writes it where it is missing, else compares: before a
    move, and after it

Digits behind the spline with learned noise; a residual flow whose score is trained for samples; a
model of classes. Hashes hold on one machine, with one version of PyTorch.
"""

import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path

import torch

import indm

ALIKE = {"train.steps": 30, "train.seconds": math.inf, "train.threads": 1, "train.batch_size": 32}
TRAININGS = {
    "spline": {},
    "residual-fid": {
        "flow": "residual",
        "flow.blocks": [1, 1],
        "flow.width": 16,
        "train.objective": "fid",
    },
    "classes": {"flow": "coupling", "condition": "classes", "condition.drop": 0.1},
}


def main() -> None:
    torch.set_num_threads(1)
    made = {name: hashes(changes) for name, changes in TRAININGS.items()}
    file = Path(sys.argv[1])
    if not file.exists():
        file.write_text(json.dumps(made, indent=1))
        print(f"written: {file}")
        return
    before = json.loads(file.read_text())
    changed = [
        f"{name} {what}"
        for name, row in made.items()
        for what in row
        if before[name][what] != row[what]
    ]
    print("\n".join(f"changed: {line}" for line in changed) or "all equal to the last bit")
    sys.exit(bool(changed))


def hashes(changes: dict) -> dict[str, str]:
    """Of the weights, the likelihoods and samples of one training."""
    with tempfile.TemporaryDirectory() as folder:
        indm.train(indm.recipe("digits", ALIKE | changes), folder, progress=False)
        model = indm.INDM.load(folder)
        raw = torch.randint(17, (16, 1, 8, 8), generator=torch.Generator().manual_seed(1))
        c = ["3"] * 16 if "condition" in changes else None
        nats = indm.evaluate(
            model, raw, [indm.Bound(), indm.NLL(examples=4)], c=c, progress=False
        ).nats
        given = model if c is None else model.given(c)
        drawn = indm.sample(given, 16, steps=8, generator=torch.Generator().manual_seed(2))
    weights = b"".join(value.numpy().tobytes() for _, value in sorted(model.state_dict().items()))
    rows = {kind: nats[kind].numpy().tobytes() for kind in ("nelbo", "nll")}
    parts = {"weights": weights, "samples": drawn.numpy().tobytes()} | rows
    return {what: hashlib.sha256(content).hexdigest()[:16] for what, content in parts.items()}


if __name__ == "__main__":
    main()
