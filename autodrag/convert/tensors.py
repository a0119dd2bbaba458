"""Lazy tensors from the records that torch and NumPy pickle, read without calling torch's or NumPy's loaders.

Sources: torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_parameter`) and numpy/core/src/multiarray/methods.c
(`array_setstate`). All sizes are compared with the number of bytes in the file before memory is allocated.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autodrag.convert.archives import Storage, read_nested
from autodrag.convert.pickles import Latin1Range, Range, Record
from autodrag.errors import CheckpointError

MAX_TENSORS = 5_000  # per network; a 1024 px generator has 165
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_NUMPY_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file. Only `read` loads its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    data: Range

    def __post_init__(self) -> None:
        count = self.data.length // self.dtype.itemsize
        if len(self.shape) > 8 or len(self.strides) != len(self.shape):
            raise CheckpointError(
                f"damaged tensor: shape {self.shape} with strides {self.strides[:9]}; download the file again"
            )
        if 0 in self.shape or self.offset + self._extent() > count or math.prod(self.shape) > count:
            raise CheckpointError(
                f"a tensor has shape {self.shape}, but the file stores {count} values for it; "
                "the file is truncated or damaged; download it again"
            )

    def _extent(self) -> int:
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """Memory that `read` allocates, in bytes."""
        return self._extent() * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read the tensor as a new contiguous tensor."""
        if self.dtype not in _FLOATS:
            raise CheckpointError(
                f"it has weights of type {self.dtype}, but floating-point numbers were expected; save them as float32"
            )
        memory = torch.empty(self.nbytes, dtype=torch.uint8)
        self.data.read_into(self.offset * self.dtype.itemsize, memory.numpy().data)
        return memory.view(self.dtype).as_strided(self.shape, self.strides).contiguous()


def as_tensor(value: Any) -> StoredTensor | None:
    """The tensor that a record describes, or None if the record describes something else.

    Raises:
        CheckpointError: the record describes a tensor that is not in the file.
    """
    if isinstance(value, Record) and value.name in _PARAMETERS and value.args:
        value = value.args[0]
    if not isinstance(value, Record):
        return None
    if value.name in _TENSORS:
        return _torch_tensor(value.args)
    return _numpy_array(value) if value.name.startswith("numpy.") else None


def as_number(value: Any) -> float | None:
    """Convert a number or a tensor with one value to a float; None for anything else."""
    if isinstance(value, (int, float)):
        return float(value)
    stored = as_tensor(value)
    return float(stored.read()) if stored is not None and math.prod(stored.shape) == 1 else None


def require_tensor(value: Any, name: str) -> StoredTensor:
    """The tensor that a record describes. Raises CheckpointError for other values; `name` is the source's name."""
    stored = as_tensor(value)
    if stored is None:
        found = str(value) if isinstance(value, Record) else f"of type {type(value).__name__}"
        raise CheckpointError(f"{name[:100]!r} is {found}, but a tensor was expected; save the generator's weights")
    return stored


def _torch_tensor(args: tuple[Any, ...]) -> StoredTensor:
    match args:
        case (storage, int(offset), tuple(size), tuple(stride), *_) if offset >= 0:
            storage = _storage(storage)
            data = storage.locate()
            needed = storage.count * storage.dtype.itemsize
            if needed > data.length:
                raise CheckpointError(
                    f"a storage has {storage.count} values in {data.length} bytes; the file is truncated or damaged; "
                    "download it again"
                )
            return StoredTensor(storage.dtype, _sizes(size), _sizes(stride), offset, data.part(0, needed))
    raise CheckpointError("damaged tensor: torch's description of it is incomplete; download the file again")


def _storage(value: Any) -> Storage:
    """A storage of the archive, or a storage that torch saved as bytes inside the pickle."""
    match value:
        case Record(name="torch.storage._load_from_bytes", args=(Range() as data,)):
            value = read_nested(data)
    if not isinstance(value, Storage):
        raise CheckpointError("damaged tensor: its storage is not a torch storage; download the file again")
    return value


def _bytes(value: Any) -> Range | None:
    """Byte range of a bytes value. Protocol 2 stores bytes as text, and Python 2 as a string."""
    match value:
        case Record(name="_codecs.encode", args=(Range() as text, "latin1" | "latin-1")):
            return Latin1Range(text.file, text.start, text.length)
        case str(short) | Record(name="_codecs.encode", args=(str(short), "latin1" | "latin-1")):
            try:
                data = short.encode("latin-1")
            except UnicodeEncodeError:
                return None
            return Range(io.BytesIO(data), 0, len(data))
        case Range():
            return value
    return None


def _numpy_array(value: Record) -> StoredTensor | None:
    """An array pickled with `_reconstruct` and a state, with `_frombuffer` (protocol 5), or as a `scalar`."""
    kind = value.name.rpartition(".")[2]
    match kind, value.args, value.state:
        case "_reconstruct", _, (1, tuple(shape), dtype, bool(fortran), content):
            pass
        case "_frombuffer", (content, dtype, tuple(shape), "C" | "F" as order), _:
            fortran = order == "F"
        case "scalar", (dtype, content), _:
            shape, fortran = (), False
        case _:
            if kind in ("_reconstruct", "_frombuffer", "scalar"):
                raise CheckpointError("damaged array: NumPy's description of it is incomplete; download it again")
            return None
    data = _bytes(content)
    if data is None:
        raise CheckpointError("damaged array: its content is not bytes; download the file again")
    sizes = _sizes(shape)
    strides, step = [0] * len(sizes), 1
    for axis in range(len(sizes)) if fortran else reversed(range(len(sizes))):
        strides[axis], step = step, step * sizes[axis]
    return StoredTensor(_numpy_dtype(dtype), sizes, tuple(strides), 0, data)


def _numpy_dtype(dtype: Any) -> torch.dtype:
    match dtype:
        case Record(name="numpy.dtype", args=(str(code), *_), state=(_, str(order), *_)):
            if code in _NUMPY_DTYPES and order in ("<", "=", "|"):
                return _NUMPY_DTYPES[code]
            shown = repr(f"{order:.1}{code:.20}")
        case _:
            shown = "unknown"
    raise CheckpointError(
        f"it has an array of NumPy type {shown}, but little-endian f2, f4 or f8 was expected; save it as f4"
    )


def _sizes(values: tuple[Any, ...]) -> tuple[int, ...]:
    if len(values) > 8 or not all(type(value) is int and 0 <= value < 2**40 for value in values):
        raise CheckpointError("damaged tensor: its sizes are not valid integers; download the file again")
    return values
