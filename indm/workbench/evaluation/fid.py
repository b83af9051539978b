"""Scores of images against reference images by torch-fidelity: FID, Inception score, KID, precision and recall.

Rounding, a dropped last batch, the resizing, the split and the number of images all change such scores, so none is
returned or kept without its provenance: which pixels, how they were made, and which extractor saw them.

Source: Obukhov et al. 2020, "torch-fidelity", https://github.com/toshas/torch-fidelity.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

import indm
from indm.files import atomic, untrusted
from indm.files.plain import cache_folder
from indm.messages import nearest
from indm.names import BUILT_IN
from indm.tensors import double
from indm.workbench.data.base import Data, InMemory, stack
from indm.workbench.data.folder import find_images
from indm.workbench.data.image_files import ImageFiles
from indm.workbench.data.images import RESIZE_MODES, read_size
from indm.workbench.data.raw import Size, height_and_width
from indm.workbench.data.registry import load_data, without_download
from indm.workbench.evaluation.extractor import DESCRIPTION, Extractor, FeatureNetwork, general_features, load_or_train
from indm.workbench.recipes import recipe as recipes
from indm.workbench.runs.devices import device
from indm.workbench.runs.folder import is_run
from indm.workbench.runs.provenance import provenance
from indm.workbench.runs.samples import read_samples

INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of the original FID, with its weights
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BATCH = 64
REFERENCE = "reference"  # torch-fidelity's name for the second set of images
SCORES = {  # by the names of torch-fidelity's keys
    "frechet_distance": "FID",
    "inception_score": "ISC_MEAN",
    "inception_score_std": "ISC_STD",
    "kernel_distance": "KID_MEAN",
    "kernel_distance_std": "KID_STD",
    "precision": "PRECISION",
    "recall": "RECALL",
}
SETTINGS = {"isc_splits": 10, "kid_subsets": 100, "prc_neighborhood": 3, "rng_seed": 2020}
FEWEST = 20  # images, at least, whose scores mean something
MOST = 50_000  # samples drawn of a run by default, as published scores have them; fewer where the reference has fewer


@dataclass(frozen=True)
class Images:
    """Images to be scored, or scored against.

    Attributes:
        raw: (n, C, H, W), grey levels 0 … ``levels`` − 1.
        levels: number of grey levels.
        provenance: where they are from and what was done to them, as JSON can hold it.
        data: the data set that they are of, if they are of one.
    """

    raw: Num[Tensor, "n c h w"]
    levels: int
    provenance: dict
    data: Data | None = None

    def first(self, n: int | None) -> "Images":
        """The first ``n``, all for None; a ValueError where there are fewer."""
        if n is not None and n > len(self.raw):
            raise ValueError(f"n must be at most the {len(self.raw)} images that there are, got {n}")
        return replace(self, raw=self.raw[:n])


def check_number(name: str, n: int) -> None:
    """ValueError where ``n`` images are too few to be scored."""
    if n < FEWEST:
        raise ValueError(f"{name} must be at least {FEWEST} images, of which scores can be made, got {n}")


def open_images(
    source: str | Path, *, split: str = "train+valid", size: Size | None = None, resize: str = "bilinear"
) -> Images:
    """Images that exist: of a data set, a folder, or a file of samples.

    Args:
        source: a recipe by name or TOML file, a run folder (both stand for their data), a name in
            :data:`indm.names.BUILT_IN`, a folder of images (searched recursively), or a ``samples.npz``.
        split: of a data set; "train+valid" is all that is not for testing, as published scores have it.
        size, resize: side of a square, or height x width as "24x48", to which the largest centred part of that aspect
            ratio of each image of a folder is resized, and how; without a size the files must be of one size, and stay
            as they are.

    Raises:
        ValueError: a source that is unknown or holds no images.
    """
    path = Path(source)
    if path.suffix == ".npz":
        samples, levels, made_by = read_samples(path)
        return grey(samples, levels, {"file": str(path), "drawn": made_by})
    if str(source) in recipes.bundled() or is_run(path) or path.suffix == ".toml":
        table = recipes.resolve(recipes.load(source)).data.table()
        return of_data(without_download(table) if is_run(path) else table, split)
    if path.is_dir():
        return of_folder(path, size, resize)
    if str(source) in BUILT_IN["data"]:
        return of_data({"name": str(source)}, split)
    known = [*recipes.bundled(), *BUILT_IN["data"]]
    raise ValueError(
        f"no images are found by the name {str(source)!r}{nearest(str(source), known)}; a run or image folder, a "
        "samples.npz, a recipe or a data set would do"
    )


def of_data(table: dict, split: str = "train+valid") -> Images:
    """A split of the data set of a recipe's ``[data]``."""
    data = load_data(**table)
    raw = torch.cat([stack(getattr(data, part)) for part in split.split("+")])
    images = grey(raw, data.scaling.levels or 0, {"data": table, "split": split, "notes": data.notes})
    return replace(images, data=data)


def of_folder(folder: Path, size: Size | None = None, resize: str = "bilinear") -> Images:
    """All images of a folder, in sorted order; RGB where one of them is. Damaged ones are left out."""
    if resize not in RESIZE_MODES:
        raise ValueError(f"unknown resize {resize!r}{nearest(resize, RESIZE_MODES)}")
    files, (_, colour), notes = find_images(folder, whole=True)
    sizes = {read_size(file) for file in files} if size is None else {height_and_width(size)}
    if len(sizes) > 1:
        sides = [side for pair in sizes for side in pair]
        raise ValueError(f"size must be given for {folder}: its images have sides of {min(sides)} to {max(sides)}")
    ((height, width),) = sizes
    crop = f"the largest centred {'square' if height == width else 'rectangle of that aspect ratio'}"
    how = {"size": [height, width], "mode": resize, "crop": crop, "by": "Pillow"}
    raw = stack(ImageFiles(files, (3 if colour else 1, height, width), resize))
    return grey(raw, 256, {"folder": str(folder), "resize": None if size is None else how, "notes": notes})


def grey(raw: Tensor, levels: int, provenance: dict) -> Images:
    """Images in grey levels (0: none); a ValueError where they are something else."""
    if raw.ndim != 4 or not levels:
        raise ValueError(f"only images with grey levels can be scored, got events of shape {tuple(raw.shape[1:])}")
    return Images(raw, levels, provenance)


# ── Scores ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Features:
    """An extractor under torch-fidelity's name.

    Attributes:
        name: in torch-fidelity's registry.
        channels, levels: of the images that it takes.
        provenance: which it is, with the SHA-256 of its weights.
        weights: the file of Inception's weights.
        network: one of indm's own.
    """

    name: str
    channels: int
    levels: int
    provenance: dict
    weights: Path | None = None
    network: FeatureNetwork | None = None


def find_features(extractor: str | Path, data: Data | None = None, *, progress: bool = True) -> Features:
    """The features called "inception" or "general", those of a file of Inception's weights (.pth), or of the extractor
    in a folder, which is trained on ``data`` with labels where there is none.
    """
    path = Path(extractor)
    if str(extractor) == "general":
        return features_of(general_features())
    if str(extractor) == "inception":
        return inception_features()
    if path.is_file() or path.suffix in (".pth", ".pt"):
        return inception_features(path)
    if (path / DESCRIPTION).exists() or data is None or not data.labels:
        return features_of(Extractor.load(path))
    return features_of(load_or_train(path, data, progress=progress))


def features_of(network: FeatureNetwork) -> Features:
    """The features of one of indm's own networks."""
    made_by = {"name": network.name, **network.provenance, "input": network.input}
    return Features(network.name, network.channels, network.levels, made_by, network=network)


def inception_features(weights: Path | None = None) -> Features:
    """The Inception network of published scores, from a file of weights; None: where torch-fidelity keeps it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE if weights is None else weights
    if not path.is_file():
        raise ValueError(
            f"no Inception weights: fetch {INCEPTION_URL} (96 MB, SHA-256 {INCEPTION_SHA256}) and put it in {path}; or "
            "take another extractor: a folder has a small classifier of the reference's own labels"
        )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != INCEPTION_SHA256:
        raise ValueError(f"{path} is not {INCEPTION_URL}: its SHA-256 is {sha256}, not {INCEPTION_SHA256}")
    made_by = {
        "name": INCEPTION,
        "weights_sha256": sha256,
        "layers": {"inception_score": "logits_unbiased", "others": "2048"},
        "input": "RGB of 256 levels, resized to 299×299 by the bilinear rule of TensorFlow 1",
    }
    return Features(INCEPTION, 3, 256, made_by, weights=path)


def fit(images: Images, features: Features) -> Num[Tensor, "n c h w"]:
    """The pixels as the extractor takes them: grey levels to the nearest of its own, grey to RGB or back."""
    raw, channels = images.raw, images.raw.shape[1]
    if features.channels == 1 and channels == 3 and bool((raw == raw[:, :1]).all()):
        raw = raw[:, :1]
    elif features.channels == 3 and channels == 1:
        raw = raw.expand(-1, 3, -1, -1)
    elif channels != features.channels:
        raise ValueError(f"images must have {features.channels} channel(s) for the extractor, got {channels}")
    if images.levels == features.levels:
        return raw
    moved = (raw.float() * ((features.levels - 1) / (images.levels - 1))).round()
    return moved.to(torch.uint8 if features.levels <= 256 else torch.int32)


class Pixels(InMemory):
    """Images in memory whose batches are lists, which the loader of torch-fidelity stacks."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(self.tensor[indices])


def score(samples: Images, reference: Images, features: Features, *, progress: bool = True) -> dict:
    """The scores of samples against a reference, with their provenance. The features of the reference are kept.

    Returns:
        ``scores``: ``frechet_distance`` (squared units of the features; the FID where the extractor is Inception),
        ``inception_score`` (mean and ``…_std`` over 10 parts), ``kernel_distance`` (KID: mean and ``…_std`` over
        100 subsets), ``precision`` and ``recall`` (3 nearest neighbours, in the features of the other scores).
        ``samples``, ``reference``: their provenance, ``images``, ``shape``, ``levels`` and the SHA-256 of the pixels
        that the extractor saw. ``extractor``, ``settings``, ``versions``. ``provenance``: what all files of numbers
        have, see :func:`indm.workbench.runs.provenance.provenance`.

    Raises:
        ValueError: fewer than 20 images, or images of different shapes.

    Source: Heusel et al. 2017, https://arxiv.org/abs/1706.08500; Salimans et al. 2016,
    https://arxiv.org/abs/1606.03498; Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401; Kynkäänniemi et al. 2019,
    https://arxiv.org/abs/1904.06991.
    """
    import torch_fidelity

    pixels, about = {}, {}
    for name, images in {"samples": samples, REFERENCE: reference}.items():
        check_number(name, len(images.raw))
        pixels[name] = fit(images, features).contiguous()
        about[name] = images.provenance | {
            "images": len(images.raw),
            "shape": list(images.raw.shape[1:]),
            "levels": images.levels,
            "pixels_sha256": hashlib.sha256(pixels[name].numpy().data).hexdigest(),
        }
    shapes = [tuple(raw.shape[1:]) for raw in pixels.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"samples and reference must be of one shape, got {shapes[0]} and {shapes[1]}; resize a folder"
        )
    settings = SETTINGS | {"kid_subset_size": min(1000, *map(len, pixels.values()))}
    version = torch_fidelity.__version__
    made_by = [about[REFERENCE]["pixels_sha256"], shapes[1], features.provenance, version]
    with _kept_features(made_by) as cache:
        scores = _calculate(pixels["samples"], pixels[REFERENCE], features, settings, cache, progress)
    versions = {"indm": indm.__version__, "torch": torch.__version__, "torch_fidelity": version}
    how = {"extractor": features.provenance, "settings": settings, "versions": versions}
    return {"scores": scores, **about, **how, "provenance": _provenance(about)}


def _calculate(
    samples: Tensor, reference: Tensor, features: Features, settings: dict, cache: Path, progress: bool
) -> dict[str, float]:
    """The scores by their names in a record."""
    import torch_fidelity

    if features.network is not None:
        _register(features.network)
    metrics = torch_fidelity.calculate_metrics(
        input1=Pixels(samples),
        input2=Pixels(reference),
        input2_cache_name=REFERENCE,
        cache_root=str(cache),
        feature_extractor=features.name,
        feature_extractor_weights_path=str(features.weights),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        cuda=device().startswith("cuda"),
        batch_size=BATCH,
        save_cpu_ram=True,  # no worker processes: the images are in memory
        verbose=progress and features.name == INCEPTION,  # it calls every Fréchet distance a FID
        **settings,
    )
    return {name: metrics[getattr(torch_fidelity, f"KEY_METRIC_{key}")] for name, key in SCORES.items()}


def _register(network: FeatureNetwork) -> None:
    """Make ``network`` known to torch-fidelity by its name, in place of an earlier one."""
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class OurFeatures(torch_fidelity.FeatureExtractorBase):
        """Features in float64, so that torch-fidelity takes their mean in that precision; and logits."""

        def __init__(self, name: str, features_list: list[str], **options):
            super().__init__(name, features_list)
            self.network = network

        def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
            features = self.network.features(raw).to(raw.device)
            provided = {"features": double(features), "logits": double(self.network.head(features))}
            return tuple(provided[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

    FEATURE_EXTRACTORS_REGISTRY[network.name] = OurFeatures


@contextlib.contextmanager
def _kept_features(made_by: list) -> Iterator[Path]:
    """A temporary folder as torch-fidelity's cache, which holds the features of the reference that are kept.

    torch-fidelity's own cache is pickles, which are run when they are read; what is kept here is safetensors.
    """
    name = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / "features" / f"{name}.safetensors"
    stored = untrusted.weights(file) if file.exists() else {}
    with tempfile.TemporaryDirectory(prefix="indm-") as folder:
        for name, values in stored.items():
            torch.save(values, Path(folder) / f"{name}.pt")
        yield Path(folder)
        if not stored:
            made = Path(folder).glob(f"{REFERENCE}-*-features-*.pt")
            new = {path.stem: torch.load(path, weights_only=True) for path in made}
            with contextlib.suppress(OSError):  # without a cache it only takes longer
                atomic.whole(file, atomic.weights_into(new))


def _provenance(about: dict[str, dict]) -> dict:
    """The provenance of scores: the seed of the samples, and the weights of all that was drawn of a run."""
    drawn: dict[Any, Any] = {source.get("run", source.get("file")): source.get("drawn") for source in about.values()}
    weights = {source: made_by["weights_sha256"] for source, made_by in drawn.items() if made_by}
    return provenance((about["samples"].get("drawn") or {}).get("seed"), weights)


def read_records(file: Path) -> list[dict]:
    """The records of scores in a JSON file, none where there is no such file; a ValueError where there is anything
    else."""
    if not file.exists():
        return []
    records = untrusted.json_object(file).get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f'{file} holds no list of "records" of scores, to which others could be added; move it away')
    return records


def add_record(record: dict, file: Path) -> None:
    """Add what :func:`score` returned to the ``records`` of a JSON file, in place of one of the same images and
    settings."""
    records = read_records(file)
    record = json.loads(json.dumps(record))  # as it will be read
    ignored = {"scores": None, "provenance": None}  # another command may have asked for the same scores
    others = [old for old in records if old | ignored != record | ignored]
    atomic.json_object(file, {"records": [*others, record]})


def score_table(record: dict) -> str:
    """The scores as text, by their names: only features of Inception make a FID."""
    scores, extractor = record["scores"], record["extractor"]
    inception = extractor["name"] == INCEPTION
    counts = ", ".join(f"{record[name]['images']} {name}" for name in ("samples", REFERENCE))
    lines = [f"{counts}; features of {extractor['name']}{'' if inception else ', which make no FID'}"]
    for name in (name for name in scores if not name.endswith("_std")):
        std = scores.get(f"{name}_std")
        label = {"frechet_distance": "FID", "kernel_distance": "KID"}.get(name, name) if inception else name
        lines.append(f"{label.replace('_', ' '):20} {scores[name]:.5g}" + (f" ± {std:.2g}" if std is not None else ""))
    return "\n".join(lines)
