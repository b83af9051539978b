"""The study's commands.

    python -m research.verdict joint           # laws of known density, alone; joint.md
    python -m research.verdict heard           # the same with networks that begin anew; joint.md
    python -m research.verdict losses ROOT     # estimators of the bound, alone; losses.md
    python -m research.verdict silenced HOME   # networks behind flows; silenced.md
    python -m research.verdict silenced figure
    python -m research.verdict lattice HOME    # the lattice field at equal seconds; lattice.md
    python -m research.verdict lattice HOME weights
    python -m research.verdict instrument      # a filter, a curve, a filter; instrument.md
    python -m research.verdict instrument VARIANT        # "60 s", "300 s", "1,000 rows", "weak", …
    python -m research.verdict instrument figure
    python -m research.verdict recorded        # speech and clothes through instruments; recorded.md

``ROOT`` is the folder of ``cifar10.npz`` and ``emoji``, ``HOME`` the one of the real tables. Killed
and started again, they go on; pays.py and dial.py have commands of their own.
"""

import sys
from pathlib import Path

from research.verdict import heard, instrument, joint, lattice, losses, recorded, silenced


def main() -> None:
    words = sys.argv[1:]
    match ["--help"] if any(word.startswith("-") for word in words) else words:
        case ["joint"]:
            joint.main()
        case ["heard"]:
            heard.main()
        case ["losses", root]:
            losses.main(Path(root))
        case ["silenced", "figure"]:
            silenced.draw(silenced.TABLE)
        case ["silenced", home]:
            silenced.main(Path(home))
        case ["lattice", home]:
            lattice.main(Path(home))
        case ["lattice", home, "weights"]:
            lattice.weigh_all(Path(home))
        case ["instrument", "figure"]:
            instrument.draw(instrument.TABLE)
        case ["instrument"]:
            instrument.main("20 s")
        case ["instrument", variant] if variant in instrument.VARIANTS:
            instrument.main(variant)
        case ["recorded"]:
            recorded.main()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
