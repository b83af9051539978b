"""The condition c of a model p(x|c): a class, a vector or an image; and models and flows at given conditions.

A :class:`Condition` turns classes, numbers or pixels into what networks *see*, a tensor with one row a sample.
:func:`given` makes of a flow the same flow at these rows. (A score at given rows is :class:`indm.score.GivenScore`, a
model :meth:`indm.INDM.given`.)
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

from indm.messages import brief, did_you_mean
from indm.scaling import least_std
from indm.tensors import double, with_parts

Module = TypeVar("Module", bound=nn.Module)
LEAST_STD = 1e-6  # of the numbers of a condition, as a share of their mean


class Condition(nn.Module, ABC):
    """What c is and what flow and networks see of it: zeros where it is hidden, and then the model is p(x).

    To write one, define :attr:`seen_shape`, :meth:`of_data`, :meth:`rows` and :meth:`forward`.

    Args:
        drop: probability with which training hides the c of an example, so that one network learns p(x|c) and p(x).
        flow: whether the flow sees c, too.

    Raises:
        ValueError: ``drop`` is no probability below 1, or c is to be hidden from a flow: p(x|c) and p(x) must then have
            one latent.

    Example: a direction in degrees, seen as its cosine and its sine, so that 0 and 360 are the same.

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
    one: Tensor

    def __init__(self, drop: float = 0.0, flow: bool = False):
        super().__init__()
        if not 0 <= drop < 1:
            raise ValueError(f"condition.drop must be in [0, 1), got {drop}; 0.1 is usual where samples are guided")
        if drop and flow:
            raise ValueError(f"condition.drop must be 0 where the flow sees c (condition.flow), got {drop}")
        self.drop, self.flow = drop, flow
        self.register_buffer("one", torch.ones(()), persistent=False)  # has the device and dtype

    @property
    @abstractmethod
    def seen_shape(self) -> tuple[int, ...]:
        """Of what networks see of one c: (features,), or (channels, height, width)."""

    @classmethod
    @abstractmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        """The arguments that the data decide.

        Args:
            c: rows of the data.
            labels: names of their classes, if there are any.

        Raises:
            ValueError: c is another kind of thing.
        """

    @abstractmethod
    def rows(self, c: Any, n: int | None = None) -> Tensor:
        """c as a tensor with a row for each sample, from what a user may give; one condition for all of ``n`` samples.

        Raises:
            ValueError: this is no such condition, or it has another number of rows.
        """

    def rows_of(self, data: Any, split: str) -> Tensor:
        """c of the examples of a split of ``data``.

        Raises:
            ValueError: the data have none of this kind.
        """
        try:
            return self.rows(data.c(split, self.is_class))
        except ValueError as error:
            raise ValueError(f"the {split} data do not fit the condition: {error}") from error

    @abstractmethod
    def forward(self, c: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch *event"]:
        """What networks see of the rows c; zeros stand for none."""

    def fit(self, c: Tensor) -> None:
        """Take scales from the rows c of training data, where there are any."""

    def absent(self, n: int) -> Float[Tensor, "batch *event"]:
        """What networks see of ``n`` hidden conditions."""
        return self.one.new_zeros(n, *self.seen_shape)

    def dropped(self, seen: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """``seen`` with a share :attr:`drop` of the rows hidden at random, for training."""
        if not self.drop:
            return seen
        kept = torch.rand(len(seen), device=seen.device) >= self.drop
        return seen * kept.reshape(-1, *(1 for _ in self.seen_shape))


class Classes(Condition):
    """One of K classes, seen as K numbers, of which that of the class is 1; given by its index or, a string, its name.

    Args:
        labels: names of the classes, in the order of their numbers.
        drop: probability with which training hides c, so that the model is one of p(x), too, and samples can be guided.
        flow: whether the flow sees c, too.

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
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"condition.labels must be the names of two or more classes, each once, got {self.labels}")

    @classmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        if c.is_floating_point() or c.ndim != 1:
            raise ValueError(f'condition "classes" needs whole numbers, one for each example, got {_in_words(c)}')
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
                f"c must be classes, numbers or names with one for each sample, got {c.dtype} of shape {tuple(c.shape)}"
            )
        c = c.reshape(-1).long()
        if len(c) and not 0 <= int(c.min()) <= int(c.max()) < len(self.labels):
            raise ValueError(f"c must be from 0 to {len(self.labels) - 1}, got {int(c.min())} … {int(c.max())}")
        return _as_many(c, n)

    def rows_of(self, data: Any, split: str) -> Tensor:
        try:
            numbers = torch.tensor([self.number(name) for name in data.classes] or range(len(self.labels)))
            return self.rows(numbers[data.c(split, self.is_class)])
        except (ValueError, IndexError) as error:
            raise ValueError(f"the {split} data do not fit the condition: {error}") from error

    def number(self, value: Any) -> int:
        """The number of a class from its name, a string, or from its number.

        Raises:
            ValueError: there is no such class, with the nearest that exists.
        """
        if isinstance(value, str):
            if value in self.labels:
                return self.labels.index(value)
            hint = did_you_mean(value, self.labels)
        else:
            hint = f"; a number is an index, 0 to {len(self.labels) - 1}, and a name is a string"
            with contextlib.suppress(TypeError):  # not a whole number
                index = operator.index(value)
                if 0 <= index < len(self.labels) and not isinstance(value, bool):
                    return index
        known = brief(", ".join(self.labels))
        raise ValueError(f"c must be one of {known}, got {brief(repr(value))}{hint}")

    def typed(self, text: str) -> int:
        """The number of a class from text: its name, or its number where no name has a digit.

        Where names have digits, a number that is not a name is more likely a mistake than an index.

        Raises:
            ValueError: there is no such class.

        Example:

            >>> Classes(("cat", "dog")).typed("1"), Classes(("1", "2")).typed("1")
            (1, 0)
        """
        is_index = text.isdecimal() and not re.search(r"\d", "".join(self.labels))
        return self.number(int(text) if is_index else text)

    def forward(self, c: Shaped[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        device, dtype = self.one.device, self.one.dtype
        return nn.functional.one_hot(c.to(device), len(self.labels)).to(dtype)


class Numbers(Condition):
    """What the two conditions of numbers share: brought to mean 0 and deviation 1, with a channel of ones after them.

    The ones tell a condition of zeros from none.
    """

    def __init__(self, size: int, drop: float, flow: bool):
        super().__init__(drop, flow)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @property
    @abstractmethod
    def event(self) -> tuple[int, ...]:
        """The shape of one c."""

    @property
    def seen_shape(self) -> tuple[int, ...]:
        return (self.event[0] + 1, *self.event[1:])

    def fit(self, c: Tensor) -> None:
        std, mean = torch.std_mean(double(c).transpose(0, 1).flatten(1), dim=1)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(std > least_std(mean, LEAST_STD), std, torch.ones_like(std)))

    def rows(self, c: Any, n: int | None = None) -> Tensor:
        wanted = ", ".join(map(str, self.event))
        try:
            c = torch.as_tensor(c)
        except (TypeError, ValueError) as error:
            raise ValueError(f"c must be numbers of shape ({wanted}) or (n, {wanted}), got {brief(repr(c))}") from error
        if c.shape == self.event:
            c = c[None]
        elif self.event == (1,) and c.ndim < 2:
            c = c.reshape(-1, 1)
        if tuple(c.shape[1:]) != self.event or c.is_complex():
            raise ValueError(f"c must be numbers of shape ({wanted}) or (n, {wanted}), got {tuple(c.shape)}")
        if not bool(c.isfinite().all()):
            raise ValueError("c must be finite, got NaN or infinity")
        return _as_many(c, n)

    def forward(self, c: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch *event"]:
        per_channel = (-1, *(1 for _ in self.event[1:]))
        c = (c.to(self.shift) - self.shift.reshape(per_channel)) / self.scale.reshape(per_channel)
        return torch.cat([c, torch.ones_like(c[:, :1])], 1)


class Vector(Numbers):
    """A vector of numbers.

    Args:
        size: how many.
        drop: probability with which training hides c, so that the model is one of p(x), too, and samples can be guided.
        flow: whether the flow sees c, too.

    Example: numbers of mean 3 and deviation 2. A condition of zeros is told from none by the ones.

        >>> c = Vector(1)
        >>> c.fit(torch.tensor([[1.0], [3.0], [5.0]]))
        >>> c(c.rows([7.0, 3.0])).tolist()
        [[2.0, 1.0], [0.0, 1.0]]
        >>> c.absent(1).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, size: int = 0, drop: float = 0.0, flow: bool = False):
        if size < 1:
            raise ValueError(f"condition.size must be at least 1 number, got {size}")
        super().__init__(size, drop, flow)
        self.size = size

    @classmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        if c.ndim != 2:
            raise ValueError(f'condition "vector" needs numbers of shape (n, size), got {_in_words(c)}')
        return {"size": c.shape[1]}

    @property
    def event(self) -> tuple[int, ...]:
        return (self.size,)


class Image(Numbers):
    """An image of the size of x, which networks see beside z_t. Flows cannot see it.

    Args:
        shape: event shape of x, (C, H, W).
        channels: of the image c.
        drop: probability with which training hides c, so that the model is one of p(x), too, and samples can be guided.

    Example: one image for five samples. A black one is told from none by the channel of ones, which is the last.

        >>> photo = Image((1, 8, 8), channels=3)
        >>> seen = photo(photo.rows(torch.zeros(3, 8, 8), 5))
        >>> seen.shape, seen[0, :, 0, 0].tolist()
        (torch.Size([5, 4, 8, 8]), [0.0, 0.0, 0.0, 1.0])
    """

    def __init__(self, shape: tuple[int, ...], channels: int = 0, drop: float = 0.0):
        if len(shape) != 3 or channels < 1:
            raise ValueError(
                f"condition.channels must be at least 1, for images, got {channels} for events of shape {tuple(shape)}"
            )
        super().__init__(channels, drop, flow=False)
        self.shape, self.channels = tuple(shape), channels

    @classmethod
    def of_data(cls, c: Tensor, labels: Sequence[str]) -> dict[str, Any]:
        if c.ndim != 4:
            raise ValueError(f'condition "image" needs images (n, C, H, W), got {_in_words(c)}')
        return {"channels": c.shape[1]}

    @property
    def event(self) -> tuple[int, ...]:
        return (self.channels, *self.shape[1:])


def rows_of_data(model: Any, data: Any, split: str, n: int | None = None) -> Tensor | None:
    """c of the first ``n`` examples of a split, all by default; None for a model without a condition."""
    condition: Condition | None = getattr(model, "condition", None)
    return None if condition is None else condition.rows_of(data, split)[:n]


def _as_many(c: Tensor, n: int | None) -> Tensor:
    """``c`` with ``n`` rows: its own, or its only one repeated."""
    if n is None or len(c) == n:
        return c
    if len(c) != 1:
        raise ValueError(f"c must have one row for all samples or {n}, one for each, got {len(c)}")
    return c.expand(n, *c.shape[1:])


class Conditioned(nn.Module):
    """A module that may see a condition: :func:`given` makes one at given rows, its attribute ``c``.

    Attributes:
        features: numbers that it sees; 0 where it was made without a condition.
    """

    features: int = 0
    c: Tensor | None = None

    def seen(self, like: Tensor) -> Float[Tensor, "batch features"] | None:
        """The rows in the dtype of ``like``; None where it sees no condition.

        Raises:
            ValueError: it has no rows, or rows of another length.
        """
        if not self.features:
            return None
        if self.c is None or tuple(self.c.shape[1:]) != (self.features,):
            got = "none" if self.c is None else f"shape {tuple(self.c.shape)}"
            raise ValueError(f"c must be given to {type(self).__name__} with shape (n, {self.features}), got {got}")
        return self.c.to(like)


def features_of(condition: tuple[int, ...]) -> int:
    """The numbers that a flow sees of a condition of that shape; 0 for ().

    Raises:
        ValueError: it is an image.
    """
    if len(condition) > 1:
        raise ValueError(f"condition of a flow must be classes or a vector, got an image {tuple(condition)}")
    return sum(condition)


def given(module: Module, c: Tensor) -> Module:
    """``module`` in which every :class:`Conditioned` part sees the rows ``c``; weights are shared.

    A module without a part that sees a condition is returned as it is.
    """
    parts = {name: part and given(part, c) for name, part in module._modules.items()}
    view = with_parts(module, parts)
    if isinstance(module, Conditioned) and module.features > 0:
        view = copy.copy(view)
        view.c = c
    return view


def rows_of(module: nn.Module) -> Tensor | None:
    """The rows that ``module`` was given; None without."""
    return next((part.c for part in module.modules() if isinstance(part, Conditioned) and part.c is not None), None)


def repeated(module: Module, times: int) -> Module:
    """``module`` for a batch in which each row stands ``times`` times in a row: its rows are repeated alike."""
    c = rows_of(module)
    return module if c is None else given(module, c.repeat_interleave(times, 0))


def sees_condition(module: nn.Module) -> bool:
    """Whether a part of ``module`` sees a condition."""
    return any(isinstance(part, Conditioned) and part.features > 0 for part in module.modules())


def condition_of(model: Any, c: Any) -> Condition:
    """The condition of a model, of which ``c`` are given; ValueError where it has none."""
    condition = getattr(model, "condition", None)
    if condition is None:
        raise ValueError(f"c must be left out, as this model has no condition, got {brief(repr(c))}")
    return condition


def at(model: Any, c: Any, n: int) -> Any:
    """``model`` at the conditions ``c`` of ``n`` samples, for a likelihood; as it is, where it has none and c is None.

    Raises:
        ValueError: a model that is guided, which has no likelihood; what :meth:`INDM.given` raises.
    """
    if getattr(getattr(model, "score", None), "guidance", 1) != 1:
        raise ValueError(f"guidance must be 1 for a likelihood, got {model.score.guidance}: guided samples have none")
    return model if c is None and getattr(model, "condition", None) is None else model.given(c, n)


def all_rows(model: Any, c: Any, n: int) -> Tensor | None:
    """``c``, as a user gives it, as a tensor with a row for each of ``n`` samples, for :func:`at_rows`."""
    return None if c is None else condition_of(model, c).rows(c, n)


def at_rows(model: Any, c: Tensor | None, rows: Tensor, *, guidance: float = 1.0, away_from: Any = None) -> Any:
    """``model`` at the conditions of the samples ``rows``, with guidance; as it is, where it has none and c is None."""
    if c is None and guidance == 1 and getattr(model, "condition", None) is None:
        return model
    return model.given(None if c is None else c[rows], len(rows), guidance=guidance, away_from=away_from)


def at_data(model: Any, data: Any, split: str, n: int | None = None) -> Any:
    """``model`` at the conditions of the first ``n`` examples of a split, all by default; as it is, if it has none."""
    c = rows_of_data(model, data, split, n)
    return model if c is None else model.given(c)


def _in_words(c: Tensor) -> str:
    return f"{str(c.dtype).removeprefix('torch.')} of shape {tuple(c.shape)}"
