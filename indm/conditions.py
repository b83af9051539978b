"""The condition c of a model p(x|c): a class, a vector, an image, or none; and flows at given
conditions.

A :class:`Condition` turns classes, numbers or pixels into what networks *see*, a tensor with one
row a sample. :func:`given` makes of a flow the same flow at these rows. (A score at given rows is
:class:`indm.score.GivenScore`, a model :meth:`indm.INDM.given`.)
"""

import contextlib
import copy
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from indm.checks import brief, did_you_mean, require
from indm.scaling import least_std
from indm.tensors import double, with_parts

Module = TypeVar("Module", bound=nn.Module)
# smallest deviation of a condition's numbers that is scaled to 1, as a share of their mean
LEAST_STD = 1e-6


class Condition(nn.Module, ABC):
    """The kind of c, and the tensor that flow and networks see of it. Where c is hidden, they see
    zeros: p(x).

    To write one, define :attr:`seen_shape`, :meth:`of_data`, :meth:`rows` and :meth:`forward`.

    Args:
        drop: probability with which training hides the c of an example, so that one network learns
            p(x|c) and p(x), and samples can be guided.
        flow: whether the flow sees c, too.

    Raises:
        ValueError: ``drop`` is not a probability below 1, or c is to be hidden from a flow: p(x|c)
            and p(x) must then have one latent.

    Example: a direction in degrees, seen as its cosine and its sine, so that 0 and 360 are the
    same.

        >>> class Direction(Condition):
        ...     seen_shape = (2,)
        ...     def of_data(cls, c, labels):
        ...         return {}
        ...     def rows(self, c, n=None):
        ...         return torch.as_tensor(c).reshape(-1, 1)
        ...     def forward(self, c):
        ...         return torch.cat([torch.deg2rad(c).cos(), torch.deg2rad(c).sin()], 1)
        >>> direction = Direction()
        >>> north, again, south = direction(direction.rows([0.0, 360.0, 180.0]))
        >>> torch.allclose(north, again, atol=1e-6), torch.allclose(north, -south, atol=1e-6)
        (True, True)
    """

    is_class: ClassVar[bool] = False  # whether c is a label of the data
    is_none: ClassVar[bool] = False  # whether there is no c, see NoCondition
    one: Tensor

    def __init__(self, drop: float = 0.0, flow: bool = False):
        super().__init__()
        require(0 <= drop < 1, "drop", drop, "in [0, 1)", "0.1 is usual where samples are guided")
        require(
            not drop or not flow, "drop", drop, "0 where the flow sees the condition (flow=True)"
        )
        self.drop, self.flow = drop, flow
        self.register_buffer("one", torch.ones(()), persistent=False)  # has the device and dtype

    @property
    @abstractmethod
    def seen_shape(self) -> tuple[int, ...]:
        """Shape of the tensor that networks see of one c: (features,), or (channels, height,
        width).
        """

    @classmethod
    @abstractmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        """The arguments that the data decide, from their rows c and names of classes; ValueError
        for c of another kind.
        """

    @abstractmethod
    def rows(self, c: Any, n: int | None = None) -> Tensor:
        """c, as a user may give it, with a row for each of ``n`` samples, or one for all;
        ValueError for another c.
        """

    @abstractmethod
    def forward(self, c: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch *event"]:
        """The tensor that networks see of the rows c; zeros stand for a hidden c."""

    def fit(self, c: Tensor) -> None:
        """Take scales from the rows c of training data, where there are any."""

    def absent(self, n: int) -> Float[Tensor, "batch *event"]:
        """The tensor that networks see of ``n`` hidden conditions."""
        return self.one.new_zeros(n, *self.seen_shape)

    def seen(self, c: Any, n: int | None) -> Float[Tensor, "batch *event"]:
        """The tensor that networks see of c, as a user may give it, for ``n`` samples; None hides
        it.

        ValueError where c is none of these conditions, or the model does not know p(x).
        """
        if c is not None:
            return self(self.rows(c, n))
        if not self.drop:
            raise ValueError(
                "c must be given, as the model is one of p(x|c); trained with drop=0.1 it knows p(x), too"
            )
        if n is None:
            raise ValueError("n must be given, the number of samples whose c is hidden")
        return self.absent(n)

    def dropped(self, seen: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """``seen`` with a share :attr:`drop` of the rows hidden at random, for training."""
        if not self.drop:
            return seen
        kept = torch.rand(len(seen), device=seen.device) >= self.drop
        return seen * kept.reshape(-1, *(1 for _ in self.seen_shape))


class NoCondition(Condition):
    """The condition of a model p(x), which has none; every c but None is an error."""

    is_none = True
    seen_shape = ()

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        return {}

    def rows(self, c: Any, n: int | None = None) -> Tensor:
        raise ValueError(
            f"c must be left out, as this model has no condition, got {brief(repr(c))}"
        )

    def forward(self, c: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch *event"]:
        return self.absent(len(c))


class Classes(Condition):
    """One of K classes, seen one-hot encoded as K numbers; given by its index or, as a string, its
    name.

    Args:
        labels: names of the classes, in the order of their numbers.
        drop, flow: see :class:`Condition`.

    Raises:
        ValueError: fewer than two labels, or one twice.

    Example:

        >>> digits = Classes(("zero", "one", "two"))
        >>> digits.rows("two", 2).tolist(), digits.rows([0, 1]).tolist()
        ([2, 2], [0, 1])
        >>> digits(torch.tensor([1])).tolist()
        [[0.0, 1.0, 0.0]]
    """

    is_class = True

    def __init__(self, labels: tuple[str, ...] = (), drop: float = 0.0, flow: bool = False):
        super().__init__(drop, flow)
        self.labels = tuple(map(str, labels))
        fits = len(set(self.labels)) == len(self.labels) > 1
        require(fits, "labels", self.labels, "the names of two or more classes, each once")

    @classmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        if c.is_floating_point() or c.ndim != 1:
            raise ValueError(
                f'condition "classes" needs whole numbers, one for each example, got {_in_words(c)}'
            )
        return {"labels": list(labels) or [str(number) for number in range(int(c.max()) + 1)]}

    @property
    def seen_shape(self) -> tuple[int, ...]:
        return (len(self.labels),)

    def rows(self, c: Any, n: int | None = None) -> Tensor:
        if isinstance(c, np.ndarray | np.generic):
            c = c.tolist()
        if isinstance(c, str | int):
            c = [c]
        if isinstance(c, Sequence):
            c = torch.tensor([self.number(value) for value in c])
        c = torch.as_tensor(c)
        if c.is_floating_point() or c.is_complex() or c.dtype == torch.bool or c.ndim > 1:
            raise ValueError(
                f"c must be classes, numbers or names with one for each sample, got {_in_words(c)}"
            )
        c = c.reshape(-1).long()
        if len(c) and not 0 <= int(c.min()) <= int(c.max()) < len(self.labels):
            raise ValueError(
                f"c must be from 0 to {len(self.labels) - 1}, got {int(c.min())} … {int(c.max())}"
            )
        return _as_many(c, n)

    def number(self, value: Any) -> int:
        """The number of a class from its name, a string, or from its number.

        Text of digits is a number where no name has a digit; else it is more likely a mistake than
        an index.

        >>> Classes(("cat", "dog")).number("1"), Classes(("1", "2")).number("1")
        (1, 0)
        """
        hint = f"; a number is an index, 0 to {len(self.labels) - 1}, and a name is a string"
        if isinstance(value, str):
            if value in self.labels:
                return self.labels.index(value)
            hint = did_you_mean(value, self.labels)
        is_index = not isinstance(value, str) or (
            value.isdecimal() and not re.search(r"\d", "".join(self.labels))
        )
        with contextlib.suppress(TypeError):  # not a whole number
            index = (
                operator.index(int(value) if isinstance(value, str) else value) if is_index else -1
            )
            if 0 <= index < len(self.labels) and not isinstance(value, bool):
                return index
        known = brief(", ".join(self.labels))
        raise ValueError(f"c must be one of {known}, got {brief(repr(value))}{hint}")

    def forward(self, c: Shaped[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        return nn.functional.one_hot(c.to(self.one.device), len(self.labels)).to(self.one)


class Numbers(Condition):
    """Base of the conditions of numbers: scaled to mean 0 and deviation 1, then a channel of ones,
    which tell 0 from none.
    """

    def __init__(self, size: int, drop: float, flow: bool):
        super().__init__(drop, flow)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @property
    @abstractmethod
    def event(self) -> tuple[int, ...]:
        """Shape of one c as a user gives it."""

    @property
    def seen_shape(self) -> tuple[int, ...]:
        return (self.event[0] + 1, *self.event[1:])

    def fit(self, c: Tensor) -> None:
        std, mean = torch.std_mean(double(c).transpose(0, 1).flatten(1), dim=1)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(std > least_std(mean, LEAST_STD), std, torch.ones_like(std)))

    def rows(self, c: Any, n: int | None = None) -> Tensor:
        axes = ", ".join(map(str, self.event))
        wanted = f"c must be numbers of shape ({axes}) or (n, {axes}), got"
        try:
            c = torch.as_tensor(c)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{wanted} {brief(repr(c))}") from error
        if c.shape == self.event:
            c = c[None]
        elif self.event == (1,) and c.ndim < 2:
            c = c.reshape(-1, 1)
        if tuple(c.shape[1:]) != self.event or c.is_complex():
            raise ValueError(f"{wanted} {tuple(c.shape)}")
        require(bool(c.isfinite().all()), "c", "NaN or infinity", "finite")
        return _as_many(c, n)

    def forward(self, c: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch *event"]:
        per_channel = (-1, *(1 for _ in self.event[1:]))
        c = (c.to(self.shift) - self.shift.reshape(per_channel)) / self.scale.reshape(per_channel)
        return torch.cat([c, torch.ones_like(c[:, :1])], 1)


class Vector(Numbers):
    """A vector of numbers.

    Args:
        size: how many.
        drop, flow: see :class:`Condition`.

    Example: numbers of mean 3 and deviation 2. A condition of zeros is told from none by the ones.

        >>> c = Vector(1)
        >>> c.fit(torch.tensor([[1.0], [3.0], [5.0]]))
        >>> c(c.rows([7.0, 3.0])).tolist(), c.absent(1).tolist()
        ([[2.0, 1.0], [0.0, 1.0]], [[0.0, 0.0]])
    """

    def __init__(self, size: int = 0, drop: float = 0.0, flow: bool = False):
        require(size >= 1, "size", size, "at least 1 number")
        super().__init__(size, drop, flow)
        self.size = size

    @property
    def event(self) -> tuple[int, ...]:
        return (self.size,)

    @classmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        if c.ndim != 2:
            raise ValueError(
                f'condition "vector" needs numbers of shape (n, size), got {_in_words(c)}'
            )
        return {"size": c.shape[1]}


class Image(Numbers):
    """An image of the size of x, which networks see beside z_t. Flows cannot see it.

    Args:
        shape: event shape of x, (C, H, W).
        channels: of the image c.
        drop: see :class:`Condition`.

    Example: one image for five samples. A black one is told from none by the channel of ones, which
    is the last.

        >>> photo = Image((1, 8, 8), channels=3)
        >>> seen = photo(photo.rows(torch.zeros(3, 8, 8), 5))
        >>> seen.shape, seen[0, :, 0, 0].tolist()
        (torch.Size([5, 4, 8, 8]), [0.0, 0.0, 0.0, 1.0])
    """

    def __init__(self, shape: tuple[int, ...], channels: int = 0, drop: float = 0.0):
        if len(shape) != 3 or channels < 1:
            raise ValueError(
                f"channels must be at least 1, for images, got {channels} for events of {tuple(shape)}"
            )
        super().__init__(channels, drop, flow=False)
        self.shape, self.channels = tuple(shape), channels

    @property
    def event(self) -> tuple[int, ...]:
        return (self.channels, *self.shape[1:])

    @classmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        return {"channels": c.shape[1]}


def _as_many(c: Tensor, n: int | None) -> Tensor:
    """``c`` with ``n`` rows: its own, or its only one repeated."""
    if n is None or len(c) == n:
        return c
    require(len(c) == 1, "the rows of c", len(c), f"one for all samples, or {n}, one for each")
    return c.expand(n, *c.shape[1:])


def _in_words(c: Tensor) -> str:
    return f"{str(c.dtype).removeprefix('torch.')} of shape {tuple(c.shape)}"


class Conditioned(nn.Module):
    """A module that sees ``features`` numbers of a condition, 0 for none: :func:`given` makes one
    at given rows ``c``.
    """

    features: int = 0
    c: Tensor | None = None

    def seen(self, like: Tensor) -> Float[Tensor, "batch features"] | None:
        """The rows in the dtype of ``like``; None where it sees no condition. ValueError for rows
        of another length.
        """
        if not self.features:
            return None
        if self.c is None or tuple(self.c.shape[1:]) != (self.features,):
            got = "none" if self.c is None else f"shape {tuple(self.c.shape)}"
            raise ValueError(
                f"c must be given to {type(self).__name__} with shape (n, {self.features}), got {got}"
            )
        return self.c.to(like)


def features_of(condition: tuple[int, ...]) -> int:
    """The numbers that a flow sees of a condition of that shape; 0 for (). ValueError where it is
    an image.
    """
    require(
        len(condition) < 2, "condition of a flow", condition, "of classes or a vector, not an image"
    )
    return sum(condition)


def given(module: Module, c: Tensor) -> Module:
    """``module`` in which every :class:`Conditioned` part sees the rows ``c``; weights are shared."""
    view = with_parts(
        module, {name: part and given(part, c) for name, part in module._modules.items()}
    )
    if isinstance(module, Conditioned) and module.features > 0:
        view = copy.copy(view)
        view.c = c
    return view


def rows_of(module: nn.Module) -> Tensor | None:
    """The rows that ``module`` was given; None without."""
    return next(
        (
            part.c
            for part in module.modules()
            if isinstance(part, Conditioned) and part.c is not None
        ),
        None,
    )


def sees_condition(module: nn.Module) -> bool:
    """Whether a part of ``module`` sees a condition."""
    return any(isinstance(part, Conditioned) and part.features > 0 for part in module.modules())
