"""Checkpoints that ``torch.save`` wrote, which are pickles: read only where they ask for what ``torch.save`` asks for.

**The attacker** made the file: a released checkpoint from the net, or a run folder from somebody else. They want to run
code in the process that reads it, or to take its memory or time with a small file.

**What PyTorch stops.** ``torch.load(weights_only=True)`` calls nothing outside its own list, so no pickled code is run.

**What it does not stop,** and what is therefore compared with ``torch.save`` before anything is loaded:

- Calls on its list that take any amount of memory from a few bytes: ``bytearray(3_000_000_000)``, storages of any size,
  tensors on "meta", text encoded in hexadecimal again and again, one text made into bytes ten thousand times. Only the
  calls that ``torch.save`` makes are allowed, each in the steps in which it makes them (:data:`ALLOWED`, :data:`DUE`).
- The same storage read again under another name, as often as there are spellings: members of the archive are found
  whatever the case of their names, which makes the memory quadratic in the file. Names of storages must be numbers.
- Archives whose records are compressed and unpack to far more than the file. ``torch.save`` stores them as they are.
- Tensors whose strides of 0 claim more numbers than are stored: a caller that computes with them calls
  :func:`check_stored`.

**What is not promised.** Unpickling is PyTorch's: a hole in it, in its C++ reader or in ``zipfile`` is one here. The
numbers may be anything, NaN included; whoever builds a model from them checks names, shapes and sizes. A file may be as
large as the memory.
"""

import io
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickletools import genops
from typing import Any, NamedTuple

import torch
from torch import Tensor

from indm.files.memory import check_memory
from indm.files.plain import check_plain
from indm.messages import brief

ZIP = b"PK\x03\x04"  # by this PyTorch tells its two formats apart
OLD_PICKLES = 5  # in a file of the old format: two marks, the system, what was saved, the keys of its storages
STORAGES = {
    f"torch {kind}Storage"
    for kind in (
        "Float", "Double", "Half", "BFloat16", "ComplexFloat", "ComplexDouble", "Byte", "Char", "Short", "Int", "Long",
        "Bool",
    )
}  # fmt: skip
# The steps that follow what torch.save asks for, where others would take memory. None is any argument, written out in
# that place: a text from the memo costs the file two bytes, and could be made into bytes any number of times.
DUE: Mapping[str, tuple[tuple[str, str | None], ...]] = {
    "collections OrderedDict": (("EMPTY_TUPLE", None), ("REDUCE", None)),  # an empty one
    "_codecs encode": (("BINUNICODE", None), ("BINUNICODE", "latin1"), ("TUPLE2", None), ("REDUCE", None)),
}
ALLOWED = {*DUE, *STORAGES, "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
# The steps by which torch.save names a storage.
STORAGE_STEPS = re.compile(r"MARK BINUNICODE GLOBAL BINUNICODE BINUNICODE (BININT[12]?|LONG1) (NONE )?TUPLE BINPERSID$")


class Step(NamedTuple):
    """An operation of a pickle; of one that takes a value from the memo, the operation that made the value."""

    name: str
    argument: Any = None
    from_memo: bool = False


def checkpoint(path: Path, known: Mapping[str, Callable] | None = None) -> Any:
    """What ``torch.save`` wrote of tensors, numbers, strings and containers of them; a pickle of more is an error.

    Args:
        path: a file of PyTorch's old format, or a zip file as it writes since 1.6.
        known: what else may be asked for, by its full name, and what is called in its place.

    Raises:
        ValueError: naming what else the pickle asks for, or saying that it claims more memory than there is.
        OSError, RuntimeError, pickle.UnpicklingError, …: nearly anything for a damaged file.
    """
    if path.exists() and not path.is_dir():  # the errors of both say what they are
        check_plain(path)
    known = known or {}
    claimed = held = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
    if claimed > held:
        raise ValueError(f"it claims {claimed:,} bytes and holds {held:,}")
    check_memory(claimed)
    _check_pickles(path, known)
    with torch.serialization.safe_globals([(made, name) for name, made in known.items()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_stored(state: Mapping[str, Tensor], held: int) -> None:
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


def _check_pickles(path: Path, known: Mapping[str, Callable]) -> None:
    """:func:`_check_pickle` for every pickle that PyTorch would read in a file."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            record = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")  # by PyTorch's own reader
            return _check_pickle(io.BytesIO(record), known)
        file.seek(0)
        for _ in range(OLD_PICKLES):
            _check_pickle(file, known)


def _check_pickle(file: io.BufferedIOBase, known: Mapping[str, Callable]) -> None:
    """ValueError where a pickle asks for more than ``torch.save`` and ``known``, or in other steps."""
    due: list[tuple[str, str | None]] = []
    asked, latest = "", deque[Step](maxlen=9)
    for step in _steps(file):
        latest.append(step)
        if due and not _is_due(step, *due.pop(0)):
            raise ValueError(f"it asks for {brief(asked)} as torch.save does not, and pickled code is not run")
        if step.name == "GLOBAL":
            asked = step.argument.replace(" ", ".")
            if step.argument not in ALLOWED and asked not in known:
                raise ValueError(f"it asks for {brief(asked)}, and pickled code is not run")
            due = list(DUE.get(step.argument, ()))
        if step.name == "BINPERSID" and not _is_storage(list(latest)):
            raise ValueError("it asks for a storage as torch.save does not")


def _is_due(step: Step, name: str, argument: str | None) -> bool:
    return step.name == name and (not step.from_memo if argument is None else step.argument == argument)


def _is_storage(steps: list[Step]) -> bool:
    """Whether the last steps name a storage by its kind and its number."""
    match = STORAGE_STEPS.search(" ".join(step.name for step in steps))
    if match is None:
        return False
    _, tag, kind, number, *_ = steps[-len(match[0].split()) :]
    return tag.argument == "storage" and kind.argument in STORAGES and number.argument.isdecimal()


def _steps(file: Any) -> Iterator[Step]:
    """The operations of a pickle, but those that put a value into the memo."""
    other = Step("other", None, True)  # than a name or a text
    memo: dict[Any, Step] = {}
    last = Step("")
    try:
        for operation, argument, _ in genops(file):
            if operation.name in ("BINPUT", "LONG_BINPUT"):
                is_text = last.name in ("GLOBAL", "BINUNICODE")
                memo[argument] = last._replace(from_memo=True) if is_text else other
                continue
            is_get = operation.name in ("BINGET", "LONG_BINGET")
            last = memo.get(argument, other) if is_get else Step(operation.name, argument)
            yield last
    except ValueError as error:
        raise ValueError("damaged, or of another kind") from error
