"""Images in tar files, the shards of webdataset: ``name.png`` beside ``name.cls`` is one example."""

import contextlib
import hashlib
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from indm.data.base import Data
from indm.data.image_files import WholeImages, image_loader
from indm.data.images import SUFFIXES, Stored, read_kind
from indm.files.plain import check_plain
from indm.messages import brief, reason

LOOKED_AT = 32  # images whose headers decide on colour
LONGEST_LABEL = 256  # bytes


@image_loader(WholeImages)
def load_shards(options: WholeImages, *, path: str | Path, classes: bool = False) -> Data:
    """The images in tar files, which stay where they are: each is read from its place when it is asked for.

    All shards are listed here by the headers in them, and their images are one data set that is split by ``seed``. So
    every example has its place in each epoch, and a run is resumed exactly, as with other data. The headers of some
    images decide whether any is in colour.

    Args:
        path: a .tar file, or a folder whose .tar files are the shards.
        classes: whether the .cls file beside each image is its class.

    Raises:
        ValueError: no tar files, a damaged one, no images, or an image without its class.
    """
    place = Path(path).expanduser()
    members = [member for shard in shards_at(place) for member in _listed(shard, classes)]
    labels = [member.label for member in members] if classes else []
    return stored_images("webdataset", place, ShardImages(members), labels, options)


def shards_at(place: Path) -> list[Path]:
    """The tar file ``place``, or those in it, in the order of their names."""
    if place.is_file():
        return [place]
    shards = sorted(place.glob("*.tar")) if place.is_dir() else []
    if not shards:
        what = "has no .tar files in it" if place.is_dir() else "is not there"
        raise ValueError(f"path must be a .tar file or a folder of such, got '{place}', which {what}")
    return shards


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a tar file ``shard``: its name, where its bytes are, and its class, "" without."""

    shard: Path
    name: str
    start: int
    size: int
    label: str

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def _listed(shard: Path, classes: bool) -> list[Member]:
    """The images of a tar file, in its order."""
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
    return [Member(shard, m.name, m.offset_data, m.size, labels.get(_key(m.name), "")) for m in found]


def _key(name: str) -> str:
    """What the files of one example have in common: up to the first dot of the last part of the path."""
    return re.sub(r"\.[^/]*$", "", name)


class ShardImages(Sequence[Stored]):
    """Images by their places in tar files."""

    def __init__(self, members: Sequence[Member]):
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index):
        member = self.members[index]
        return Stored(f"{member.name} in {member.shard}", member.read)

    def select(self, index: np.ndarray) -> "ShardImages":
        """Those at the positions ``index``."""
        return ShardImages([self.members[i] for i in index])

    def fingerprint(self) -> str:
        """SHA-256 of the names and places of all images."""
        names = "\0".join(member.name for member in self.members)
        spans = np.array([(member.start, member.size) for member in self.members], np.int64)
        return hashlib.sha256(names.encode() + spans.tobytes()).hexdigest()


def stored_images(
    name: str, where: str | Path, images: Any, labels: Sequence[str] | np.ndarray, options: WholeImages
) -> Data:
    """The data set ``name`` of images that lie inside other files, with a class for each where there are ``labels``."""
    if not len(images):
        raise ValueError(f"{where} holds no images")
    looked_at = np.linspace(0, len(images) - 1, min(len(images), LOOKED_AT)).astype(int)
    colour = options.channels is None and "RGB" in _kinds(images[i] for i in looked_at.tolist())
    return options.data_of(name, where, images, colour, [f"{len(images)} images of {where}, {options.note}"], labels)


def _kinds(images: Iterable[Stored]) -> set[str]:
    """The kinds of the images, see :func:`read_kind`; :class:`ImageFiles` reports those that cannot be read."""
    kinds = set()
    for image in images:
        with contextlib.suppress(ValueError, OSError):
            kinds.add(read_kind(image))
    return kinds
