"""Released checkpoint files and the tensors in them; no pickled code is run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from indm.checks import brief, listed, reason
from indm.files import untrusted

StateDict = dict[str, Tensor]
Weights = Literal["ema", "model"]
# Entries, by the last part of their names, that follow from the weights or only count: matrix
# inverses, norms, statistics of the roulette estimator, noise levels of the SDE, and whether an
# ActNorm has seen data, which is checked elsewhere.
COMPUTED = {
    "sigmas",
    "scale",
    "last_n_samples",
    "last_firmom",
    "last_secmom",
    "weight_inv",
    "initialized",
}
# Entries that are not trained, and entries that are not part of the map. The one-dimensional
# ``all_modules.0.W`` is not trained either: it has the frequencies of the Fourier embedding.
BUFFERS = COMPUTED | {"running_mean", "running_var", "num_batches_tracked"}
INCIDENTAL = COMPUTED | {"geom_p", "lamb"}


class NumPyPart:
    """Stands for NumPy's types and numbers; a learning rate may be one of them."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


NUMPY_NAMES = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
NUMPY: dict[str, Callable] = dict.fromkeys(NUMPY_NAMES, NumPyPart)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a released file."""

    path: Path
    state: StateDict  # the last weights, by name
    shadow: list[Tensor] | None  # their moving averages, in the order of the parameters
    step: int | None
    others: tuple[str, ...] = ()  # entries that are not read, such as the optimizer's state

    @property
    def passed_over(self) -> list[str]:
        """Entries of the file that are not used, and kinds of tensors that follow from others."""
        return [*self.others, *sorted({key.rpartition(".")[2] for key in self.state} & INCIDENTAL)]

    def weights(self, which: Weights) -> StateDict:
        """The state with the last weights ("model") or their moving averages ("ema")."""
        if which == "model":
            return self.state
        if self.shadow is None:
            raise ValueError(f'{self.path} has no moving averages; take weights "model"')
        fixed = {
            key for key, value in self.state.items() if key == "all_modules.0.W" and value.ndim == 1
        }
        trained = [
            key for key in self.state if key.rpartition(".")[2] not in BUFFERS and key not in fixed
        ]
        pairs = list(zip(trained, self.shadow, strict=False))
        differing_shapes = [
            f"{key} {tuple(self.state[key].shape)} against {tuple(average.shape)}"
            for key, average in pairs
            if self.state[key].shape != average.shape
        ]
        if len(trained) != len(self.shadow) or differing_shapes:
            raise ValueError(
                f"the {len(self.shadow)} moving averages of {self.path} do not follow its {len(trained)} parameters: "
                f"{listed(differing_shapes) or 'shapes agree as far as they go'}"
            )
        return self.state | dict(pairs)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The contents of a released file.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is damaged, or not of this kind.
    """
    path = Path(path)
    try:
        content = untrusted.checkpoint(path, NUMPY)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # damaged files surface as almost anything
        is_said = isinstance(error, ValueError | MemoryError)
        why = reason(error) if is_said else "it is damaged, or of another kind"
        raise ValueError(f"{path} cannot be read as a checkpoint of torch: {why}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        has = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path} must be a dict with "model", a dict of tensors, got {brief(has)}')
    state = {key.removeprefix("module."): value for key, value in state.items()}
    shadow = (content.get("ema") or {}).get("shadow_params")
    others = tuple(brief(name) for name in content if name not in ("model", "ema", "step"))
    return Checkpoint(path, state, shadow, content.get("step"), others)


class Reader:
    """The tensors of a state, each of which must be used; all problems are collected for one error."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = state
        self.unused = set(state)
        self.problems: list[str] = []

    def indices(self, prefix: str) -> list[int]:
        """The numbers that follow ``prefix`` in the keys, sorted."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)(\.|$)")
        return sorted({int(match[1]) for match in map(pattern.match, self.state) if match})

    def take(self, key: str, like: Tensor) -> Tensor | None:
        """The tensor ``key``; None and a problem unless it has the shape of ``like``."""
        self.unused.discard(key)
        value = self.state.get(key)
        if value is None:
            self.problems.append(f"{key} is missing")
        elif value.shape != like.shape:
            self.problems.append(
                f"{key} has shape {tuple(value.shape)} where {tuple(like.shape)} is needed"
            )
            return None
        return value

    @torch.no_grad()
    def copy(self, key: str, target: Tensor) -> None:
        """Copy the tensor ``key`` into ``target``."""
        value = self.take(key, target)
        if value is not None:
            target.copy_(value)

    def copy_layer(self, key: str, layer: nn.Module) -> None:
        """Copy weight and bias of a layer."""
        for name, target in layer.named_parameters(recurse=False):
            self.copy(f"{key}.{name}", target)

    def weight_norm(self, key: str, like: Tensor) -> Tensor | None:
        """The weight g v/‖v‖ of a layer with weight norm, of the shape of ``like``."""
        g, v = self.take(f"{key}.weight_g", like[:, :1]), self.take(f"{key}.weight_v", like)
        return None if g is None or v is None else g * v / v.norm(dim=1, keepdim=True)

    def finish(self) -> None:
        """ValueError that lists all problems, and all tensors that were not used."""
        unknown = sorted(key for key in self.unused if key.rpartition(".")[2] not in INCIDENTAL)
        problems = self.problems + [f"{key} is not understood" for key in unknown]
        if problems:
            raise ValueError(f"state does not fit the recipe: {listed(problems)}")
