"""Released checkpoint files, read without running code that is pickled in them, and the tensors in
them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from indm import checks
from indm.checks import brief, listed
from indm.files import untrusted

StateDict = dict[str, Tensor]
Weights = Literal["ema", "model"]
# Entries, by the last part of their names, that are computed from the weights or only count: matrix
# inverses, norms and statistics of the roulette estimator, whether an ActNorm has seen data
# (checked elsewhere), noise levels of the SDE.
COMPUTED = {
    "sigmas",
    "scale",
    "last_n_samples",
    "last_firmom",
    "last_secmom",
    "weight_inv",
    "initialized",
}
# Those that are no trainable parameters, and those that are no part of the map. The one-dimensional
# ``all_modules.0.W`` is not trained either: it holds the fixed frequencies of the Fourier
# embedding.
BUFFERS = COMPUTED | {"running_mean", "running_var", "num_batches_tracked"}
INCIDENTAL = COMPUTED | {"geom_p", "lamb"}


class NumPyPart:
    """Stands for NumPy's types and numbers, which a learning rate of the optimizer is after
    warm-up.
    """

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
    # entries of the file that are not read, such as the state of an optimizer
    others: tuple[str, ...] = ()

    @property
    def passed_over(self) -> list[str]:
        """Entries of the file that no model is made from, and kinds of tensors that follow from
        others.
        """
        return [*self.others, *sorted({key.rpartition(".")[2] for key in self.state} & INCIDENTAL)]

    def weights(self, which: Weights) -> StateDict:
        """The state with the trainable parameters' last values ("model") or their moving averages
        ("ema").
        """
        if which == "model":
            return self.state
        if self.shadow is None:
            raise ValueError(
                f'{self.path} holds no moving average; weights "model" takes the last ones'
            )
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
    """Read a released file, without running any code that is pickled in it."""
    path = Path(path)
    try:
        content = untrusted.checkpoint(path, NUMPY)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged files surface as almost anything
        is_said = isinstance(error, ValueError | MemoryError)
        reason = checks.reason(error) if is_said else "it is damaged, or of another kind"
        raise ValueError(f"{path} cannot be read as a checkpoint of torch: {reason}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not (
        isinstance(state, dict)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        actual = (
            brief(", ".join(map(shown, content))) if isinstance(content, dict) else shown(content)
        )
        raise ValueError(
            f'{path} must hold a dict whose "model" is a dict of tensors, as released; it holds {actual}'
        )
    step = content.get("step")
    average = content.get("ema")
    shadow = average.get("shadow_params") if isinstance(average, dict) else None
    is_given = average is not None and (shadow is not None or not isinstance(average, dict))
    is_list = isinstance(shadow, list) and all(isinstance(value, Tensor) for value in shadow)
    if is_given and not is_list:
        raise ValueError(
            f'{path} must hold a list of tensors as "shadow_params" of its "ema", as released'
        )
    if step is not None and not (type(step) is int and step >= 0):
        raise ValueError(
            f'{path} must hold a whole number, 0 or more, as "step", got {shown(step)}'
        )
    state = {key.removeprefix("module."): value for key, value in state.items()}
    others = tuple(brief(name) for name in content if name not in ("model", "ema", "step"))
    return Checkpoint(path, state, shadow, step, others)


def shown(value: object) -> str:
    """A value of a checkpoint for a message: text and numbers as they are, of anything else its
    type.
    """
    return brief(value) if isinstance(value, str | int | float) else type(value).__name__


class Reader:
    """The tensors of a state, each of which must be used; what does not match is collected for one
    error.
    """

    def __init__(self, state: dict[str, Tensor]):
        self.state = state
        self.unused = set(state)
        self.problems: list[str] = []

    def has(self, prefix: str) -> bool:
        """Whether a key begins with ``prefix``."""
        return any(key.startswith(prefix) for key in self.state)

    def indices(self, prefix: str) -> list[int]:
        """The numbers that follow ``prefix`` in the keys, sorted."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)(\.|$)")
        return sorted({int(match[1]) for match in map(pattern.match, self.state) if match})

    def take(self, key: str, like: Tensor) -> Tensor | None:
        """The tensor ``key``; None, and a problem noted, where it is missing or not of the shape of
        ``like``.
        """
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
        """ValueError listing everything that did not match, and every tensor that was not used."""
        unknown = sorted(key for key in self.unused if key.rpartition(".")[2] not in INCIDENTAL)
        problems = self.problems + [f"{key} is not understood" for key in unknown]
        if problems:
            raise ValueError(f"state does not fit the recipe: {listed(problems)}")
