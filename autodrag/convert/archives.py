"""The three wrappings of a checkpoint: a plain pickle, torch's zip archive, torch's older stream of pickles.

Layouts: torch/serialization.py (`_save` writes the zip, `_legacy_save` the stream) and, inside NVIDIA's plain
pickles, `torch.storage._load_from_bytes`, whose argument is again such a stream holding one storage.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from autodrag.convert.pickles import MAX_STEPS, Global, Range, truncated, unpickle
from autodrag.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
LEGACY_PROTOCOL = 1001
MAX_DIRECTORY = 4 * 2**20  # bytes of a zip file's table of contents: some 40,000 tensors
_NESTED_STEPS = 1_000  # pickles around a single storage need some 30
_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "UntypedStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    """The numbers behind a tensor, still in the file: `count` of type `dtype`, where `locate()` says."""

    dtype: torch.dtype
    count: int
    locate: Callable[[], Range]


def read_archive(data: Range) -> Any:
    """The value that a checkpoint file holds, as inert data (see `unpickle`), whichever way it is wrapped."""
    head = data.read(0, min(data.length, 8))
    if not head:
        raise CheckpointError("not a checkpoint: the file is empty; download it again")
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(data)
    if len(head) < 2 or head[:1] != b"\x80" or head[1] > 5:
        raise CheckpointError(
            f"not a checkpoint: it starts with {head!r}, where a pickle or a torch archive was expected; "
            "give the .pkl or .pt file as it was published"
        )
    value, _ = unpickle(data)
    return read_legacy(data) if _is_magic(value) else value


def read_legacy(data: Range, *, max_steps: int = MAX_STEPS) -> Any:
    """The value in a stream written by torch.save before version 1.6, and inside NVIDIA's pickles."""
    found: dict[str, Storage] = {}
    places: dict[str, Range] = {}

    def persistent(pid: Any) -> Storage:
        dtype, key, count = _storage_id(pid)
        return found.setdefault(key, Storage(dtype, count, lambda: _place(places, key)))

    position = 0
    header = []
    for _ in range(3):
        value, position = unpickle(data, position, max_steps=max_steps)
        header.append(value)
    if not _is_magic(header[0]) or header[1] != LEGACY_PROTOCOL:
        raise CheckpointError("damaged torch data: it does not begin as torch.save begins; download it again")
    if isinstance(header[2], dict) and header[2].get("little_endian") is False:
        raise CheckpointError("the tensors were written on a big-endian machine, which is not supported")
    value, position = unpickle(data, position, persistent, max_steps=max_steps)
    keys, position = unpickle(data, position, max_steps=max_steps)
    if not isinstance(keys, list):
        raise CheckpointError("damaged torch data: no list of its storages; download it again")
    for key in keys:
        if not isinstance(key, str) or key not in found or key in places:
            raise CheckpointError("damaged torch data: its list of storages does not fit; download it again")
        (count,) = struct.unpack("<q", data.read(position, 8))
        if count != found[key].count:
            raise CheckpointError(
                f"damaged torch data: a storage of {count} numbers where {found[key].count} were announced"
            )
        size = count * found[key].dtype.itemsize
        places[key] = data.part(position + 8, size)
        position += 8 + size
    return value


def read_nested(data: Range) -> Any:
    """The storage that torch.save wrote into bytes inside a pickle: `read_legacy`, with a shorter leash."""
    return read_legacy(data, max_steps=_NESTED_STEPS)


def _read_zip(data: Range) -> Any:
    # The end of a zip file is its table of contents, so a truncated one has none.
    try:
        with zipfile.ZipFile(_Bounded(data)) as archive:
            entries = {info.filename: info for info in archive.infolist()}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise CheckpointError("the torch archive is truncated or damaged; download it again") from error
    roots = [name[: -len("data.pkl")] for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
        raise CheckpointError(
            "not a checkpoint: a zip archive, but not one that torch.save wrote; "
            "give the .pkl or .pt file as it was published"
        )
    root = roots[0]

    def place(name: str) -> Range:
        info = entries.get(name)
        if info is None:
            raise CheckpointError(f"the torch archive lacks {name!r}, so it is damaged; download it again")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(
                f"{name[:100]!r} in the torch archive is compressed, which torch.save never does; "
                "the file is damaged or hostile"
            )
        header = data.read(info.header_offset, 30)  # the local header, with its own name and extra field
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        return data.part(info.header_offset + 30 + name_size + extra_size, info.file_size)

    def persistent(pid: Any) -> Storage:
        dtype, key, count = _storage_id(pid)
        return Storage(dtype, count, lambda: place(f"{root}data/{key}"))

    if f"{root}byteorder" in entries:
        order = place(f"{root}byteorder")
        if order.read(0, min(order.length, 16)) != b"little":
            raise CheckpointError("the tensors were written on a big-endian machine, which is not supported")
    value, _ = unpickle(place(f"{root}data.pkl"), 0, persistent)
    return value


def _storage_id(pid: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, count) of torch's persistent id ("storage", class, key, device, count[, view])."""
    match pid:
        case ("storage", Global("torch" | "torch.storage", kind), str(key), str(), int(count), *view) if (
            kind in _STORAGE_DTYPES and count >= 0 and (not view or view == [None])
        ):
            return _STORAGE_DTYPES[kind], key, count
    raise CheckpointError("a reference to data outside the file's own tensors; it was not followed")


class _Bounded:
    """A file for zipfile, which reads the whole table of contents at once, however large it claims to be."""

    def __init__(self, data: Range) -> None:
        self.file = data.file
        self.seek, self.tell, self.seekable = data.file.seek, data.file.tell, data.file.seekable

    def read(self, count: int = -1) -> bytes:
        part = self.file.read(MAX_DIRECTORY + 1 if count < 0 else min(count, MAX_DIRECTORY + 1))
        if len(part) > MAX_DIRECTORY:
            raise CheckpointError(
                f"a table of contents larger than {MAX_DIRECTORY} bytes; the file is damaged or hostile"
            )
        return part


def _is_magic(value: Any) -> bool:
    return isinstance(value, int) and value == LEGACY_MAGIC


def _place(places: dict[str, Range], key: str) -> Range:
    if key not in places:
        raise truncated(max((place.start + place.length for place in places.values()), default=0))
    return places[key]
