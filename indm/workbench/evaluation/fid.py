"""FID and other scores of images, by torch-fidelity.

Source: Obukhov et al. 2020, "torch-fidelity", https://github.com/toshas/torch-fidelity.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from indm.workbench.runs.devices import device
from indm.workbench.runs.samples import SAMPLES, read_samples


class Pixels(Dataset):
    """Images (n, C, H, W) in ``levels`` grey levels as RGB in 256 levels, for torch-fidelity."""

    def __init__(self, raw: Tensor, levels: int):
        self.rgb = (raw.float() * 255 / (levels - 1)).round().to(torch.uint8).expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, i: int) -> Tensor:
        return self.rgb[i].contiguous()


def score(samples: Path, reference: str, *, progress: bool = True) -> dict:
    """FID, Inception score, precision and recall of samples, by torch-fidelity's names.

    Args:
        samples: a folder with the samples of a run (``samples.npz``), or of images.
        reference: a folder of images, or a data set of torch-fidelity, such as "cifar10-train".
        progress: show torch-fidelity's progress.
    """
    import torch_fidelity

    file = samples / SAMPLES
    return torch_fidelity.calculate_metrics(
        input1=Pixels(*read_samples(file)[:2]) if file.exists() else str(samples), input2=reference,
        isc=True, fid=True, prc=True, cuda=device().startswith("cuda"), verbose=progress,
        save_cpu_ram=True, samples_find_deep=True, datasets_download=True,
    )  # fmt: skip
