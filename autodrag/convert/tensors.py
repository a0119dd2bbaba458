"""Tensors that still lie in the file: torch's and NumPy's ways to pickle one, read without calling either.

Facts: torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_parameter`) and numpy/core/src/multiarray/methods.c
(`array_setstate`). Every size is checked against the bytes that are really there, before memory is spent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autodrag.convert.archives import Storage, read_nested
from autodrag.convert.pickles import Range, Record
from autodrag.errors import CheckpointError

MAX_TENSORS = 5_000  # of one network; a 1024 px generator has 165
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_NUMPY_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers are read from the file only by `read`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    data: Range

    def __post_init__(self) -> None:
        count = self.data.length // self.dtype.itemsize
        if len(self.shape) > 8 or len(self.strides) != len(self.shape):
            raise CheckpointError(f"damaged tensor: shape {self.shape} with strides {self.strides[:9]}")
        if 0 in self.shape or self.offset + self._extent() > count or math.prod(self.shape) > count:
            raise CheckpointError(
                f"a tensor of shape {self.shape}, but only {count} numbers are stored for it; "
                "the file is truncated or damaged"
            )

    def _extent(self) -> int:
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """What reading it costs in memory."""
        return self._extent() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, contiguous, with memory of its own."""
        if self.dtype not in _FLOATS:
            raise CheckpointError(f"weights of type {self.dtype}; floating-point numbers were expected")
        memory = torch.empty(self.nbytes, dtype=torch.uint8)
        self.data.read_into(self.offset * self.dtype.itemsize, memory.numpy().data)
        return memory.view(self.dtype).as_strided(self.shape, self.strides).contiguous()


def as_tensor(value: Any) -> StoredTensor | None:
    """The tensor that a record stands for, or None where it stands for something else.

    Raises:
        CheckpointError: it stands for a tensor that the file does not hold.
    """
    if isinstance(value, StoredTensor):
        return value
    if not isinstance(value, Record):
        return None
    if str(value.source) == "torch._utils._rebuild_parameter" and value.args:
        value = value.args[0]
        if not isinstance(value, Record):
            return None
    name = str(value.source)
    if name in _REBUILD:
        return _torch_tensor(value.args)
    if name.startswith("numpy."):
        return _numpy_array(value)
    return None


def as_number(value: Any) -> float | None:
    """A plain number, or a tensor of one number, as a float; None for anything else."""
    if isinstance(value, (int, float)):
        return float(value)
    stored = as_tensor(value)
    return float(stored.read()) if stored is not None and math.prod(stored.shape) == 1 else None


def _torch_tensor(args: tuple[Any, ...]) -> StoredTensor:
    match args:
        case (storage, int(offset), tuple(size), tuple(stride), *_) if offset >= 0:
            storage = _storage(storage)
            data = storage.locate()
            needed = storage.count * storage.dtype.itemsize
            if needed > data.length:
                raise CheckpointError(
                    f"a storage of {storage.count} numbers in {data.length} bytes; the file is truncated or damaged"
                )
            return StoredTensor(storage.dtype, _sizes(size), _sizes(stride), offset, data.part(0, needed))
    raise CheckpointError("damaged tensor: torch's description of it is incomplete; download the file again")


def _storage(value: Any) -> Storage:
    """A storage: referred to by the archive around it, or as bytes that torch saved inside the pickle."""
    if isinstance(value, Storage):
        return value
    if isinstance(value, Record) and str(value.source) == "torch.storage._load_from_bytes":
        match value.args:
            case (Range() as data,):
                inner = read_nested(data)
                if isinstance(inner, Storage):
                    return inner
    raise CheckpointError("damaged tensor: its storage is not torch's; download the file again")


def _numpy_array(value: Record) -> StoredTensor | None:
    """An array pickled by `_reconstruct` and a state, by `_frombuffer` (protocol 5), or a `scalar`."""
    match value.source.name, value.args, value.state:
        case "_reconstruct", _, (1, tuple(shape), dtype, bool(fortran), Range() as data):
            return _array(data, dtype, shape, fortran)
        case "_frombuffer", (Range() as data, dtype, tuple(shape), "C" | "F" as order), _:
            return _array(data, dtype, shape, order == "F")
        case "scalar", (dtype, Range() as data), _:
            return _array(data, dtype, (), False)
        case (("_reconstruct" | "_frombuffer" | "scalar"), _, _):
            raise CheckpointError("damaged array: NumPy's description of it is incomplete")
    return None


def _array(data: Range, dtype: Any, shape: tuple[Any, ...], fortran: bool) -> StoredTensor:
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.args else None
    described = dtype.state if isinstance(dtype, Record) and isinstance(dtype.state, tuple) else ()
    order = described[1] if len(described) > 1 else "="
    if not isinstance(code, str) or code not in _NUMPY_DTYPES or order not in ("<", "=", "|"):
        shown = repr(f"{order:.1}{code:.20}") if isinstance(code, str) and isinstance(order, str) else "unknown"
        raise CheckpointError(f"an array of NumPy type {shown}; little-endian f2, f4 or f8 was expected")
    sizes = _sizes(shape)
    strides, step = [0] * len(sizes), 1
    for axis in range(len(sizes)) if fortran else reversed(range(len(sizes))):
        strides[axis], step = step, step * sizes[axis]
    return StoredTensor(_NUMPY_DTYPES[code], sizes, tuple(strides), 0, data)


def _sizes(values: tuple[Any, ...]) -> tuple[int, ...]:
    if len(values) > 8 or not all(type(value) is int and 0 <= value < 2**40 for value in values):
        raise CheckpointError("damaged tensor: its sizes are not counts; download the file again")
    return values
