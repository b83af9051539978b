"""Folders of emoji by two artists, to translate where the truth is known: google and twitter, and of each a test.

    python -m research.translation.emoji_folders emoji-datasource-google emoji-datasource-twitter --out runs/emoji

Names in ``google-test`` and ``twitter-test`` are the same, and of concepts that the other two folders do not show.
Flags are left out. See :mod:`research.data.emoji` for how to get the packages, and for concepts.
"""

import argparse
from pathlib import Path

from PIL import Image

from research.data.emoji import SIDE, image_folder, is_flag, split_by_concept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("google", type=Path)
    parser.add_argument("twitter", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    folders = {"google": image_folder(o.google), "twitter": image_folder(o.twitter)}
    shared = set.intersection(*({file.stem for file in folder.glob("*.png")} for folder in folders.values()))
    names = sorted(name for name in shared if not is_flag(name))
    parts = split_by_concept(names)
    for artist, folder in folders.items():
        for suffix, positions in (
            ("", parts["train"].tolist() + parts["valid"].tolist()),
            ("-test", parts["test"].tolist()),
        ):
            place = o.out / f"{artist}{suffix}"
            place.mkdir(parents=True, exist_ok=True)
            for i in positions:
                image = (
                    Image.open(folder / f"{names[i]}.png").convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BOX)
                )
                image.save(place / f"{names[i]}.png")
            print(place, len(positions))


if __name__ == "__main__":
    main()
