"""The extractors of features that torch-fidelity scores images by, and the pixels as they take them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from indm.data.base import Data
from indm.evaluation.extractor import DESCRIPTION, Extractor, load_or_train
from indm.evaluation.general_features import LEVELS, NAME, PROVENANCE, SIDE, general_features, weights_file
from indm.evaluation.image_sources import Images
from indm.tensors import double

INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of the original FID, with its weights
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
OWN = "indm-extractor"


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
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != INCEPTION_SHA256:
        raise ValueError(f"{path} is not {INCEPTION_URL}: its SHA-256 is {sha256}, not {INCEPTION_SHA256}")
    made_by = {
        "name": INCEPTION,
        "weights_sha256": sha256,
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
    _register(OWN, Extractor.load)
    made_by = {"name": OWN, **extractor.provenance, "input": f"{extractor.levels} levels, {extractor.shape}, no resize"}
    return Features(OWN, folder, extractor.shape[0], extractor.levels, made_by)


def imagenet_features() -> Features:
    """The features of a classifier of ImageNet, for images of any kind, see :mod:`indm.evaluation.general_features`.

    Raises:
        ValueError: its weights are not installed.
    """
    path = weights_file()
    _register(NAME, lambda path: general_features())
    made_by = PROVENANCE | {"input": f"RGB of {LEVELS} levels, resized to {SIDE}×{SIDE}, bicubic"}
    return Features(NAME, path, 3, LEVELS, made_by)


def _register(name: str, load: Callable[[str], Any]) -> None:
    """Make a network that ``load`` reads, with features and logits, known to torch-fidelity."""
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class OurFeatures(torch_fidelity.FeatureExtractorBase):
        """Features in float64, so that torch-fidelity takes their mean in that precision; and logits."""

        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path=None, **kwargs):
            super().__init__(name, features_list)
            self.network = load(feature_extractor_weights_path)

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

    if name not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, OurFeatures)


def find_features(extractor: str | Path, data: Data | None = None, *, progress: bool = True) -> Features:
    """ "inception", a file of its weights (.pth), "general", or the folder of an :func:`own_features` extractor."""
    path = Path(extractor)
    if str(extractor) == "general":
        return imagenet_features()
    if str(extractor) == "inception":
        return inception_features()
    if path.is_file() or path.suffix in (".pth", ".pt"):
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
