"""Scores of images by torch-fidelity, on features of a function: Fréchet distance, precision and
recall.
"""

from collections.abc import Callable

import torch_fidelity
from jaxtyping import Float, Num
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

USERS = "users"  # the name under which torch-fidelity knows the function
ToFeatures = Callable[[Num[Tensor, "n c h w"]], Float[Tensor, "n k"]]


class Listed(Dataset):
    """Images in memory."""

    def __init__(self, raw: Tensor):
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, i: int) -> Tensor:
        return self.raw[i]


def scores(
    samples: Num[Tensor, "n c h w"], reference: Num[Tensor, "m c h w"], features: ToFeatures
) -> dict:
    """``frechet_inception_distance`` (no FID: of these features), ``precision`` and ``recall``."""

    class Users(torch_fidelity.FeatureExtractorBase):
        """Features in float64, so that torch-fidelity takes their mean in that precision."""

        def __init__(self, name: str, features_list: list[str], **options):
            super().__init__(name, features_list)

        def forward(self, raw: Tensor) -> tuple[Tensor]:
            return (features(raw).double(),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

    FEATURE_EXTRACTORS_REGISTRY[USERS] = Users
    return torch_fidelity.calculate_metrics(
        input1=Listed(samples), input2=Listed(reference), feature_extractor=USERS,
        fid=True, prc=True, cache=False, cuda=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
