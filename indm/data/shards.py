"""Images in tar files, the shards of webdataset: ``name.png`` beside ``name.cls`` is one example."""

import hashlib
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from indm.data.base import Data, events_of_shape
from indm.data.images import SUFFIXES, Stored
from indm.data.raw import height_and_width
from indm.data.stored import stored_images
from indm.files.plain import check_plain
from indm.messages import brief, reason

LONGEST_LABEL = 256  # bytes


@events_of_shape(lambda options: (options["channels"], *height_and_width(options["size"])))
def load_shards(
    *,
    path: str | Path,
    size: int | str | list[int],
    channels: int | None = None,
    resize: str = "bilinear",
    crop: bool | int = True,
    background: str = "white",
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    centered: bool = True,
    flip: bool = False,
    classes: bool = False,
) -> Data:
    """The images in tar files, which stay where they are: each is read from its place when it is asked for.

    All shards are listed here by the headers in them, and their images are one data set that is split by ``seed``. So
    every example has its place in each epoch, and a run is resumed exactly, as with other data.

    Args:
        path: a .tar file, or a folder whose .tar files are the shards.
        size: side in pixels of the square to which all images are brought, or height x width: "24x48" or [24, 48].
        channels: 1 (grey) or 3 (RGB), by default 3 where any of the first images is in colour.
        resize: how: "bilinear", "bicubic", "lanczos", …; antialiased.
        crop: true cuts out the largest rectangle in the middle with the aspect ratio of ``size``, a number the one with
            that shorter side; false squeezes.
        background: behind transparent pixels: "white", "black", "#rrggbb" or a colour that Pillow's ImageColor knows.
        valid: fraction of the images for validation.
        test: fraction of the images for the test.
        seed: of the split.
        limit: training examples to keep, the first ones; all by default.
        centered: whether the model sees grey levels in [−1, 1]; else in [0, 1].
        flip: whether training flips images horizontally at random.
        classes: whether the .cls file beside each image is its class.

    Raises:
        ValueError: no tar files, a damaged one, no images, or an image without its class.
    """
    place = Path(path).expanduser()
    shards = shards_at(place)
    tables = [_listed(shard, classes) for shard in shards]
    numbers = np.repeat(np.arange(len(shards)), [len(table) for table in tables])
    members = [member for table in tables for member in table]
    spans = np.array([(member.start, member.size) for member in members], np.int64).reshape(-1, 2)
    names = [member.name for member in members]
    fingerprint = hashlib.sha256("\0".join(names).encode() + spans.tobytes()).hexdigest()
    return stored_images(
        ShardImages(shards, numbers, spans, names), [member.label for member in members] if classes else [],
        "webdataset", place, fingerprint, size=size, channels=channels, resize=resize, crop=crop,
        background=background, valid=valid, test=test, seed=seed, limit=limit, centered=centered, flip=flip,
    )  # fmt: skip


def shards_at(place: Path) -> list[Path]:
    """The tar file ``place``, or those in it, in the order of their names.

    Raises:
        ValueError: there are none.
    """
    if place.is_file():
        return [place]
    shards = sorted(place.glob("*.tar")) if place.is_dir() else []
    if not shards:
        what = "has no .tar files in it" if place.is_dir() else "is not there"
        raise ValueError(f"path must be a .tar file or a folder of such, got '{place}', which {what}")
    return shards


@dataclass(frozen=True)
class _Member:
    """An image in a tar file: its name, where its bytes are, and its class, "" without."""

    name: str
    start: int
    size: int
    label: str


def _listed(shard: Path, classes: bool) -> list[_Member]:
    """The images of a tar file, in its order.

    Raises:
        ValueError: it is no tar file or a damaged one, or an image has no class though there are ``classes``.
    """
    try:
        check_plain(shard)
        with tarfile.open(shard, "r:") as tar:
            files = [member for member in tar if member.isreg()]
            labels = {
                _key(member.name): tar.extractfile(member).read(LONGEST_LABEL).decode().strip()  # type: ignore[union-attr]
                for member in files
                if classes and member.name.endswith(".cls")
            }
    except (tarfile.TarError, ValueError, OSError) as error:
        raise ValueError(f"'{shard}' cannot be read as an uncompressed tar file: {reason(error)}") from error
    found = [member for member in files if PurePosixPath(member.name).suffix.lower() in SUFFIXES]
    missing = [member.name for member in found if classes and _key(member.name) not in labels]
    if missing:
        raise ValueError(f"data.classes is true, but {brief(missing[0])} in '{shard}' has no .cls file beside it")
    return [_Member(m.name, m.offset_data, m.size, labels.get(_key(m.name), "")) for m in found]


def _key(name: str) -> str:
    """What the files of one example have in common: up to the first dot of the last part of the path."""
    return re.sub(r"\.[^/]*$", "", name)


class ShardImages(Sequence[Stored]):
    """Images by their places in tar files.

    Args:
        shards: the tar files.
        numbers: (n,), which of them each image is in.
        spans: (n, 2), where its bytes begin, and how many they are.
        names: its name there.
    """

    def __init__(self, shards: list[Path], numbers: np.ndarray, spans: np.ndarray, names: list[str]):
        self.shards, self.numbers, self.spans, self.names = shards, numbers, spans, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        shard = self.shards[self.numbers[index]]
        start, size = self.spans[index].tolist()

        def read() -> bytes:
            with open(shard, "rb") as file:
                file.seek(start)
                return file.read(size)

        return Stored(f"{self.names[index]} in {shard}", read)
