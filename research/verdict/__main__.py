"""The study's commands.

    python -m research.verdict joint           # laws of known density, alone; joint.md
    python -m research.verdict heard           # the same with networks that begin anew; joint.md
    python -m research.verdict losses ROOT     # estimators of the bound, alone; losses.md
    python -m research.verdict silenced HOME   # networks behind flows; silenced.md
    python -m research.verdict lattice HOME    # the lattice field at equal seconds; lattice.md
    python -m research.verdict instrument      # a filter, a curve, a filter; instrument.md
    python -m research.verdict recorded        # speech and clothes through instruments; recorded.md

``ROOT`` is the folder of ``cifar10.npz`` and ``emoji``, ``HOME`` the one of the real tables. Killed
and started again, they go on; pays.py and dial.py have commands of their own.
"""

import sys
from pathlib import Path

from research.records import made_by
from research.verdict import heard, instrument, joint, lattice, losses, recorded, silenced


def main() -> None:
    if sys.argv[1:] == ["joint"]:
        for law in joint.jobs():
            joint.run(law)
        for seed in joint.SEEDS:
            joint.DEVIATIONS.at(seed=seed).kept(
                lambda seed=seed: {"deviations": joint.deviations(seed)} | made_by(seed)
            )
    elif sys.argv[1:] == ["heard"]:
        heard.main()
    elif sys.argv[1:2] == ["losses"]:
        root = Path(sys.argv[2])
        for job in losses.jobs():
            losses.run(job, root)
    elif sys.argv[1:2] == ["silenced"]:
        silenced.main(sys.argv[2:])
    elif sys.argv[1:2] == ["lattice"]:
        lattice.main(sys.argv[2:])
    elif sys.argv[1:2] == ["instrument"]:
        instrument.main(sys.argv[2:])
    elif sys.argv[1:2] == ["recorded"]:
        recorded.main()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
