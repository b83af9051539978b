"""Scores of images against reference images by torch-fidelity: FID, Inception score, KID, precision and recall.

Rounding, a dropped last batch, the way of resizing, the split and the number of images all change such scores, so none
is returned or kept without its provenance: which pixels, how they were made, and which extractor saw them.

Source: Obukhov et al. 2020, "torch-fidelity", https://github.com/toshas/torch-fidelity.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch_fidelity
from jaxtyping import Num
from torch import Tensor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

import indm
from indm.config import recipes
from indm.config.migrations import migrate_drawing
from indm.config.parts import BUILT_IN
from indm.data.base import Data, InMemory, stack
from indm.data.cache import cache_folder
from indm.data.folder import find_images
from indm.data.image_files import ImageFiles
from indm.data.images import RESIZE_MODES, read_size
from indm.data.registry import load_data
from indm.evaluation.extractor import DESCRIPTION, Extractor, load_or_train
from indm.files import atomic, pickles, untrusted
from indm.messages import nearest
from indm.runs import provenance as provenance_module
from indm.runs.folder import is_run
from indm.runs.samples import Drawing, draw, read_samples

SPLITS = ("train+valid", "train", "valid", "test")
FEWEST = 20  # images whose scores are worth the name
MOST = 50_000  # samples drawn of a run by default, as published scores have them; fewer where the reference has fewer
BATCH = 64
SETTINGS = {"isc_splits": 10, "kid_subsets": 100, "prc_neighborhood": 3, "rng_seed": 2020}
INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of the original FID, with its weights
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
OWN = "indm-extractor"
REFERENCE = "reference"


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
        """The first ``n``, all for None; a ValueError where there are fewer, or ``n`` is too few to be scored."""
        if n is not None:
            check_number("n", n)
        if n is not None and n > len(self.raw):
            raise ValueError(f"n must be at most the {len(self.raw)} images that there are, got {n}")
        return replace(self, raw=self.raw[:n])


def check_number(name: str, n: int) -> None:
    """ValueError where so many images are too few to be scored, or scored against."""
    if n < FEWEST:
        raise ValueError(f"{name} must be at least {FEWEST} images, of which scores can be made, got {n}")


def open_images(
    source: str | Path, *, split: str = "train+valid", size: int | None = None, resize: str = "bilinear"
) -> Images:
    """Images that exist: of a data set, a folder, or a file of samples.

    Args:
        source: a recipe by name or TOML file, a run folder (both stand for their data), a name in
            :data:`indm.config.parts.BUILT_IN`, a folder of images (searched recursively), or a ``samples.npz``.
        split: of a data set; "train+valid" is all that is not for testing, as published scores have it.
        size, resize: side to which the largest centred square of each image of a folder is resized, and how; without
            a size the files must be square and of one size, and stay as they are.

    Raises:
        ValueError: a source that is unknown or holds no images.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    path = Path(source)
    if path.suffix == ".npz":
        samples, levels, made_by = read_samples(path)
        return _grey(samples, levels, {"file": str(path), "drawn": made_by})
    if str(source) in recipes.bundled() or is_run(path) or path.suffix == ".toml":
        return of_data(recipes.resolve(recipes.load(source))["data"], split)
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
    return replace(
        _grey(raw, data.scaling.levels or 0, {"data": table, "split": split, "notes": data.notes}), data=data
    )


def of_folder(folder: Path, size: int | None = None, resize: str = "bilinear") -> Images:
    """All images of a folder, in sorted order; RGB where one of them is. Damaged ones are left out."""
    if resize not in RESIZE_MODES:
        raise ValueError(f"unknown resize {resize!r}{nearest(resize, RESIZE_MODES)}")
    found, (_, colour), notes = find_images(folder, whole=True)
    sides = {side for file in found for side in read_size(file)} if size is None else {size}
    if size is None and len(sides) > 1:
        raise ValueError(f"size must be given for {folder}: its images have sides of {min(sides)} to {max(sides)}")
    done = (
        None if size is None else {"size": size, "mode": resize, "crop": "the largest centred square", "by": "Pillow"}
    )
    raw = stack(ImageFiles(found, min(sides), 3 if colour else 1, resize))
    return _grey(raw, 256, {"folder": str(folder), "resize": done, "notes": notes})


def of_run(
    run: Path, drawing: Drawing, out: Path | None = None, *, overwrite: bool = False, progress: bool = True
) -> Images:
    """Samples of a run, see :func:`indm.runs.samples.draw`."""
    samples, levels, made_by = draw(run, drawing, out, overwrite=overwrite, progress=progress)
    return _grey(samples, levels, {"run": str(run), "drawn": made_by})


def _grey(raw: Tensor, levels: int, provenance: dict) -> Images:
    if raw.ndim != 4 or not levels:
        raise ValueError(f"only images with grey levels can be scored, got events of shape {tuple(raw.shape[1:])}")
    return Images(raw, levels, provenance)


@dataclass(frozen=True)
class Features:
    """An extractor of features under torch-fidelity's name, and what it takes.

    Attributes:
        name: in torch-fidelity's registry.
        weights: its file, or folder.
        channels, levels: of the images that it sees.
        provenance: which it is, with the SHA-256 of its weights.
    """

    name: str
    weights: Path
    channels: int
    levels: int
    provenance: dict


class OwnFeatures(torch_fidelity.FeatureExtractorBase):
    """An :class:`~indm.evaluation.extractor.Extractor` for torch-fidelity, in ``feature_extractor_weights_path``.

    Its features are float64, so that torch-fidelity takes their mean in that precision.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        self.extractor = Extractor.load(feature_extractor_weights_path)

    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
        features = self.extractor.features(raw).to(raw.device)
        found = {"features": features.double(), "logits": self.extractor.head(features).double()}
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"


def inception_features(weights: Path | None = None) -> Features:
    """The Inception network of published scores, from a file of weights; None: where torch-fidelity keeps it.

    Raises:
        ValueError: no file, or another one.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE if weights is None else weights
    if not path.is_file():
        raise ValueError(
            f"no Inception weights: fetch {INCEPTION_URL} (96 MB, SHA-256 {INCEPTION_SHA256}) and put it in {path}; or "
            "take another extractor: a folder has a small classifier of the reference's own labels"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != INCEPTION_SHA256:
        raise ValueError(f"{path} is not {INCEPTION_URL}: its SHA-256 is {found}, not {INCEPTION_SHA256}")
    made_by = {
        "name": INCEPTION,
        "weights_sha256": found,
        "layers": {"inception_score": "logits_unbiased", "others": "2048"},
        "input": "RGB of 256 levels, resized to 299×299 by the bilinear rule of TensorFlow 1",
    }
    return Features(INCEPTION, path, 3, 256, made_by)


def own_features(folder: Path, data: Data | None = None, *, progress: bool = True) -> Features:
    """The :class:`~indm.evaluation.extractor.Extractor` saved in a folder; if there is none, it is trained on ``data``.

    Raises:
        ValueError: no extractor, and no data with labels to train one on.
    """
    if (folder / DESCRIPTION).exists() or data is None or not data.labels:
        extractor = Extractor.load(folder)
    else:
        extractor = load_or_train(folder, data, progress=progress)
    if OWN not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(OWN, OwnFeatures)
    made_by = {"name": OWN, **extractor.provenance, "input": f"{extractor.levels} levels, {extractor.shape}, no resize"}
    return Features(OWN, folder, extractor.shape[0], extractor.levels, made_by)


def find_features(extractor: str | Path, data: Data | None = None, *, progress: bool = True) -> Features:
    """ "inception", a file of its weights (.pth), or the folder of an :func:`own_features` extractor."""
    path = Path(extractor)
    if str(extractor) == "inception":
        return inception_features()
    if path.is_file() or path.suffix == ".pth":
        return inception_features(path)
    return own_features(path, data, progress=progress)


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
    """The scores of samples against a reference, with their provenance.

    The features of the reference are kept, see :func:`features_file`.

    Returns:
        ``scores``: ``frechet_distance`` (squared units of the features; the FID where the extractor is Inception),
        ``inception_score`` (mean and ``…_std`` over 10 parts), ``kernel_distance`` (KID: mean and ``…_std`` over
        100 subsets), ``precision`` and ``recall`` (3 nearest neighbours, in the features of the other scores).
        ``samples``, ``reference``: their provenance, ``images``, ``shape``, ``levels`` and the SHA-256 of the pixels
        that the extractor saw. ``extractor``, ``settings``, ``versions``. ``provenance``: what all files of numbers
        have, see :func:`indm.runs.provenance.provenance`.

    Raises:
        ValueError: fewer than 20 images, or images of different shapes.

    Source: Heusel et al. 2017, https://arxiv.org/abs/1706.08500; Salimans et al. 2016,
    https://arxiv.org/abs/1606.03498; Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401; Kynkäänniemi et al. 2019,
    https://arxiv.org/abs/1904.06991.
    """
    pixels, about = {}, {}
    for name, images in {"samples": samples, "reference": reference}.items():
        check_number(name, len(images.raw))
        raw = pixels[name] = fit(images, features).contiguous()
        about[name] = images.provenance | {
            "images": len(raw),
            "shape": list(images.raw.shape[1:]),
            "levels": images.levels,
            "pixels_sha256": hashlib.sha256(raw.numpy()).hexdigest(),
        }
    shapes = [tuple(raw.shape[1:]) for raw in pixels.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"samples and reference must be of one shape, got {shapes[0]} and {shapes[1]}; resize a folder"
        )
    settings = SETTINGS | {"kid_subset_size": min(1000, *map(len, pixels.values()))}
    key = [about["reference"]["pixels_sha256"], shapes[1], features.provenance, torch_fidelity.__version__]
    with kept_features(features_file(key), features, len(pixels["reference"])) as folder:
        found = torch_fidelity.calculate_metrics(
            input1=Pixels(pixels["samples"]),
            input2=Pixels(pixels["reference"]),
            input2_cache_name=REFERENCE,
            cache_root=str(folder),
            feature_extractor=features.name,
            feature_extractor_weights_path=str(features.weights),
            isc=True,
            fid=True,
            kid=True,
            prc=True,
            cuda=torch.cuda.is_available(),
            batch_size=BATCH,
            save_cpu_ram=True,  # no worker processes: the images are in memory
            verbose=progress and features.name == INCEPTION,  # it calls every Fréchet distance a FID
            **settings,
        )
    scores = {
        "frechet_distance": found[torch_fidelity.KEY_METRIC_FID],
        "inception_score": found[torch_fidelity.KEY_METRIC_ISC_MEAN],
        "inception_score_std": found[torch_fidelity.KEY_METRIC_ISC_STD],
        "kernel_distance": found[torch_fidelity.KEY_METRIC_KID_MEAN],
        "kernel_distance_std": found[torch_fidelity.KEY_METRIC_KID_STD],
        "precision": found[torch_fidelity.KEY_METRIC_PRECISION],
        "recall": found[torch_fidelity.KEY_METRIC_RECALL],
    }
    versions = {"indm": indm.__version__, "torch": torch.__version__, "torch_fidelity": torch_fidelity.__version__}
    drawn = {source.get("run", source.get("file")): source.get("drawn") for source in about.values()}
    weights = {source: made_by["weights_sha256"] for source, made_by in drawn.items() if made_by}
    made_by = provenance_module.provenance((about["samples"].get("drawn") or {}).get("seed"), weights)
    how = {"extractor": features.provenance, "settings": settings, "versions": versions}
    return {"scores": scores, **about, **how, "provenance": made_by}


def features_file(key: list) -> Path:
    """Where the features of a reference are kept, by what they depend on: its pixels, the extractor, the library."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "features" / f"{name}.safetensors"


@contextmanager
def kept_features(file: Path, features: Features, images: int) -> Iterator[Path]:
    """A folder that torch-fidelity may take for its cache: with the features of the reference that ``file`` keeps, or
    without any, and then they are kept afterwards.

    Its own cache is pickles with code, which whoever can write there could run. In this one is nothing but what this
    process puts there.
    """
    kept = _read_features(file, features, images)
    with tempfile.TemporaryDirectory(prefix="indm-") as folder:
        for name, values in kept.items():
            torch.save(values, Path(folder) / f"{name}.pt")
        yield Path(folder)
        if not kept:
            made = {path.stem: pickles.checkpoint(path) for path in Path(folder).glob(f"{_prefix(features)}*.pt")}
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic.whole(file, atomic.weights_into(made))


def _read_features(file: Path, features: Features, images: int) -> dict[str, Tensor]:
    """The features that ``file`` keeps of so many images; none where there are others, or damage."""
    try:
        kept = untrusted.weights(file)
    except ValueError:
        return {}
    begins = _prefix(features)
    fits = all(
        name.startswith(begins) and "/" not in name
        and values.ndim == 2 and len(values) == images and bool(values.isfinite().all())
        for name, values in kept.items()
    )  # fmt: skip
    return kept if fits else {}


def _prefix(features: Features) -> str:
    """With which the names begin that torch-fidelity gives to the features of the reference."""
    return f"{REFERENCE}-{features.name}-features-"


def read_records(file: Path) -> list[dict]:
    """The records of scores in a JSON file, none where there is no such file.

    Raises:
        ValueError: something else is there, to which none can be added.
    """
    if not file.exists():
        return []
    records = untrusted.json_object(file).get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f'{file} holds no list of "records" of scores, to which others could be added; move it away')
    return [_migrated(record) for record in records]


def _migrated(record: dict) -> dict:
    samples = record.get("samples")
    if not isinstance(samples, dict) or not isinstance(samples.get("drawn"), dict):
        return record
    return record | {"samples": samples | {"drawn": migrate_drawing(samples["drawn"])}}


def keep(record: dict, file: Path) -> None:
    """Add what :func:`score` returned to the ``records`` of a JSON file, in place of one that says what it does.

    Raises:
        ValueError: see :func:`read_records`.
    """
    kept = read_records(file)
    record = json.loads(json.dumps(record))  # as it will be read
    apart = {"scores": None, "provenance": None}  # the same scores may be asked for by another command
    others = [old for old in kept if old | apart != record | apart]
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.json_object(file, {"records": [*others, record]})


def table(record: dict) -> str:
    """The scores as text, by their names: only features of Inception make a FID."""
    scores, extractor = record["scores"], record["extractor"]
    inception = extractor["name"] == INCEPTION
    lines = [f"{record[name]['images']} {name}" for name in ("samples", "reference")]
    lines = [f"{', '.join(lines)}; features of {extractor['name']}{'' if inception else ', which make no FID'}"]
    spread = {name: scores.get(f"{name}_std") for name in scores if not name.endswith("_std")}
    for name, std in spread.items():
        label = {"frechet_distance": "FID", "kernel_distance": "KID"}.get(name, name) if inception else name
        lines.append(f"{label.replace('_', ' '):20} {scores[name]:.5g}" + (f" ± {std:.2g}" if std is not None else ""))
    return "\n".join(lines)
