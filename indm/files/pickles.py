"""TODO"""

import io
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickletools import genops
from typing import Any

import torch
from torch import Tensor

from indm.files.untrusted import check_memory
from indm.messages import brief

ZIP = b"PK\x03\x04"  # how torch tells its two formats apart
PICKLES = 5  # in a file of old: two marks, the system, what was saved, the keys of its storages
STORAGES = {
    f"torch {kind}Storage"
    for kind in (
        "Float", "Double", "Half", "BFloat16", "ComplexFloat", "ComplexDouble", "Byte", "Char", "Short", "Int", "Long",
        "Bool",
    )
}  # fmt: skip
# What torch.save asks for, and the steps by which it does so: what else is made of it could take any amount of memory
# (an OrderedDict of a long list, again and again; bytes whose hexadecimal is encoded in turn). None is any text.
ASKED_FOR: dict[str, tuple] = {
    "collections OrderedDict": (("EMPTY_TUPLE", None), ("REDUCE", None)),
    "_codecs encode": (("BINUNICODE", None), ("BINUNICODE", "latin1"), ("TUPLE2", None), ("REDUCE", None)),
    "torch._utils _rebuild_tensor_v2": (),
    "torch._utils _rebuild_parameter": (),
} | dict.fromkeys(STORAGES, ())
# A storage is named by a number: the archive's members are found whatever the case of a name.
STORED = re.compile(r"MARK BINUNICODE GLOBAL BINUNICODE BINUNICODE (BININT[12]?|LONG1) (NONE )?TUPLE BINPERSID$")
Step = tuple[str, Any]  # an operation of a pickle, and its argument


def checkpoint(path: Path, known: Mapping[str, Callable] | None = None) -> Any:
    """What ``torch.save`` wrote of tensors, numbers, strings and containers of them; a pickle of more is an error.

    Args:
        path: a file, of torch's own kind, or a zip file as torch writes since 1.6.
        known: what else may be asked for, by its full name, and what is called in its place.

    Raises:
        ValueError: also for what else a pickle asks for, which it names.
        OSError, RuntimeError, pickle.UnpicklingError, …: nearly anything for a damaged file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # a named pipe would be waited for
        raise ValueError("it is no file")
    known = known or {}
    claimed = held = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
    if claimed > held:  # torch stores its records as they are, so that packed ones can only be a trick
        raise ValueError(f"it claims {claimed:,} bytes and holds {held:,}")
    check_memory(claimed)
    _check_pickles(path, known)
    with torch.serialization.safe_globals([(made, name) for name, made in known.items()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_pickles(path: Path, known: Mapping[str, Callable]) -> None:
    """ValueError for a pickle that asks for more than ``torch.save`` does, see :func:`_check_pickle`."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            record = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # the one that torch will take
            return _check_pickle(io.BytesIO(record), known)
        file.seek(0)
        for _ in range(PICKLES):
            _check_pickle(file, known)


def _check_pickle(file: io.BufferedIOBase, known: Mapping[str, Callable]) -> None:
    """ValueError naming what a pickle asks for beside what ``torch.save`` and ``known`` do, or in another way."""
    due: list[Step] = []
    asked, steps = "", deque[Step](maxlen=9)
    for step in _steps(file):
        steps.append(step)
        name, argument = step
        if due and not _is_due(step, due.pop(0)):
            raise ValueError(f"it asks for {brief(asked)} as torch.save does not, and pickled code is not run")
        if name == "GLOBAL":
            asked = argument.replace(" ", ".")
            if argument not in ASKED_FOR and asked not in known:
                raise ValueError(f"it asks for {brief(asked)}, and pickled code is not run")
            due = list(ASKED_FOR.get(argument, ()))
        if name == "BINPERSID" and not _is_storage(list(steps)):
            raise ValueError("it asks for a storage as torch.save does not")


def _is_due(step: Step, wanted: Step) -> bool:
    return step == wanted or (wanted[1] is None and step[0] == wanted[0])


def _is_storage(steps: list[Step]) -> bool:
    """Whether the last steps name a storage by its kind and its number."""
    asks = STORED.search(" ".join(name for name, _ in steps))
    if asks is None:
        return False
    _, tag, kind, number, *_ = steps[-len(asks[0].split()) :]
    return tag[1] == "storage" and kind[1] in STORAGES and number[1].isdecimal()


def _steps(file: io.BufferedIOBase) -> Iterator[Step]:
    """The operations of a pickle; a name or a text that was put aside stands where it is taken up again."""
    aside: dict[int, Step] = {}
    last: Step = ("", None)
    try:
        for operation, argument, _ in genops(file):
            if operation.name in ("BINPUT", "LONG_BINPUT"):
                aside[argument] = last if last[0] in ("GLOBAL", "BINUNICODE") else ("taken up", None)
                continue
            taken = operation.name in ("BINGET", "LONG_BINGET")
            last = aside.get(argument, ("taken up", None)) if taken else (operation.name, argument)
            yield last
    except ValueError as error:
        raise ValueError("damaged, or of another kind") from error


def check_held(state: Mapping[str, Tensor], held: int) -> None:
    """See that tensors are made of numbers that a file of ``held`` bytes can hold.

    Raises:
        ValueError: for one that is sparse or holds no numbers, or that claims more of them than are stored (as one
            whose strides are 0 can) or than the file has left beside the others.
    """
    left = held
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise ValueError(f"{brief(name)} must be a plain tensor of numbers, got a {kind} one")
        claimed = tensor.numel() * tensor.element_size()
        stored = min(left, tensor.untyped_storage().nbytes())
        if claimed > stored:
            shape = brief(tuple(tensor.shape))
            raise ValueError(f"{brief(name)} claims {shape}, {claimed:,} bytes, and {stored:,} are stored for it")
        left -= claimed
