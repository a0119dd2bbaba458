"""Containers of checkpoints: plain pickles, torch's zip archives, and torch's older streams of pickles.

Layouts: torch/serialization.py (`_save` writes the zip, `_legacy_save` the stream). In NVIDIA's plain pickles, the
argument of `torch.storage._load_from_bytes` is such a stream with one storage.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from autodrag.convert.pickles import MAX_STEPS, Global, Range, reference, truncated, unpickle
from autodrag.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
LEGACY_PROTOCOL = 1001
MAX_DIRECTORY = 4 * 2**20  # bytes of a zip file's central directory, enough for about 40,000 tensors
_NESTED_STEPS = 1_000  # the pickles around a single storage take about 30 steps
_BIG_ENDIAN = "its tensors were written on a big-endian machine; save it again on a little-endian one"
_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "UntypedStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Other file types that users often give by mistake: first bytes, name of the type, next step.
_OTHER_KINDS = (
    (
        rb"\s*<(!doctype|html|head|\?xml)",
        "a web page, usually a login, quota or error page saved instead of the file",
        "open the link in a browser and download the file itself",
    ),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer instead of the file it points to",
        "run `git lfs pull` in its repository",
    ),
    (rb"\s*https?://", "a text file with a URL", "download the file from that URL"),
    (rb"[\0-\xff]{7}\0\{", "a safetensors file", "convert the .pkl or .pt file that it was made from"),
    (rb"\x08[\1-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX model", "convert the .pkl or .pt file behind it"),
    (rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "a compressed archive", "unpack it and convert the file inside"),
    (rb"\x89HDF", "an HDF5 file", "convert the .pkl or .pt file that it was made from"),
    (rb"\x93NUMPY", "a NumPy array", "give a generator's .pkl or .pt file"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF", "an image", "give a generator's .pkl or .pt file"),
)


@dataclass(frozen=True)
class Storage:
    """Storage of a tensor: `count` values of type `dtype`. `locate()` gives their byte range in the file."""

    key: str
    dtype: torch.dtype
    count: int
    locate: Callable[[], Range]


def read_archive(data: Range) -> Any:
    """Read a checkpoint file in any of the three containers as inert data (see `unpickle`)."""
    head = data.read(0, min(data.length, 4096))
    if not head:
        raise CheckpointError("this file is empty (0 bytes); download it again")
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(data)
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        value, _ = unpickle(data)
        return read_legacy(data) if _is_magic(value) else value
    raise CheckpointError(_other_kind(head))


def _other_kind(head: bytes) -> str:
    if b'"autodrag_format"' in head:
        return "this is a safetensors file that autodrag wrote; it needs no conversion, use it directly"
    for start, kind, step in _OTHER_KINDS:
        if re.match(start, head, re.IGNORECASE):
            return f"this is {kind}, not a checkpoint; {step}"
    return (
        f"this is not a checkpoint: it starts with {head[:8]!r}, but a pickle of protocol 2 to 5 or a torch archive "
        "was expected; give the .pkl or .pt file as it was published"
    )


def read_legacy(data: Range, *, max_steps: int = MAX_STEPS) -> Any:
    """Read a stream of torch.save before version 1.6. NVIDIA's pickles contain such streams too."""
    found: dict[str, Storage] = {}
    places: dict[str, Range] = {}

    def locate(key: str) -> Range:
        if key not in places:
            raise truncated(data.start + data.length)
        return places[key]

    def persistent(pid: Any) -> Any:
        storage = _storage(pid, locate)
        return reference(pid) if storage is None else found.setdefault(storage.key, storage)

    position = 0
    header = []
    for _ in range(3):
        value, position = unpickle(data, position, max_steps=max_steps)
        header.append(value)
    if not _is_magic(header[0]) or header[1] != LEGACY_PROTOCOL:
        raise CheckpointError("damaged torch data: torch.save did not write its header; download it again")
    if isinstance(header[2], dict) and header[2].get("little_endian") is False:
        raise CheckpointError(_BIG_ENDIAN)
    value, position = unpickle(data, position, persistent, max_steps=max_steps)
    keys, position = unpickle(data, position, max_steps=max_steps)
    for key in keys if isinstance(keys, list) else [None]:
        if not isinstance(key, str) or key not in found or key in places:
            raise CheckpointError("damaged torch data: its list of storages is inconsistent; download it again")
        (count,) = struct.unpack("<q", data.read(position, 8))
        if count != found[key].count:
            raise CheckpointError(
                f"damaged torch data: a storage has {count} values, but {found[key].count} were expected; "
                "download it again"
            )
        size = count * found[key].dtype.itemsize
        places[key] = data.part(position + 8, size)
        position += 8 + size
    return value


def read_nested(data: Range) -> Any:
    """Read a storage that torch.save wrote into bytes inside a pickle: `read_legacy` with a lower step limit."""
    return read_legacy(data, max_steps=_NESTED_STEPS)


def _read_zip(data: Range) -> Any:
    try:
        with zipfile.ZipFile(_Bounded(data)) as archive:
            entries = {info.filename: info for info in archive.infolist()}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many exception types for damaged archives
        raise CheckpointError("this zip archive is truncated or damaged; download it again") from error
    roots = [name[: -len("data.pkl")] for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(
            "this is a zip archive that torch.save did not write, not a checkpoint; "
            "unpack it and give the .pkl or .pt file inside"
        )
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise CheckpointError("this is a TorchScript program, not a checkpoint; convert the file it was compiled from")

    def place(name: str) -> Range:
        info = entries.get(name)
        if info is None:
            raise CheckpointError(f"the torch archive lacks {name[:100]!r}, so it is damaged; download it again")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(
                f"{name[:100]!r} in the torch archive is compressed, but torch.save does not compress; "
                "give the file as torch.save wrote it"
            )
        header = data.read(info.header_offset, 30)  # lengths differ from those in the central directory
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        return data.part(info.header_offset + 30 + name_size + extra_size, info.file_size)

    def persistent(pid: Any) -> Any:
        return _storage(pid, lambda key: place(f"{root}data/{key}")) or reference(pid)

    if f"{root}byteorder" in entries:
        order = place(f"{root}byteorder")
        if order.read(0, min(order.length, 16)) != b"little":
            raise CheckpointError(_BIG_ENDIAN)
    value, _ = unpickle(place(f"{root}data.pkl"), 0, persistent)
    return value


def _storage(pid: Any, locate: Callable[[str], Range]) -> Storage | None:
    """The storage of torch's persistent id ("storage", class, key, device, count[, view]), if it is one."""
    match pid:
        case ("storage", Global("torch" | "torch.storage", kind), str(key), str(), int(count), *view) if (
            kind in _STORAGE_DTYPES and count >= 0 and (not view or view[0] is None)
        ):
            return Storage(key, _STORAGE_DTYPES[kind], count, partial(locate, key))
    return None


class _Bounded:
    """A file object for zipfile that limits reads, because zipfile reads a central directory of any size at once."""

    def __init__(self, data: Range) -> None:
        self.file = data.file
        self.seek, self.tell, self.seekable = data.file.seek, data.file.tell, data.file.seekable

    def read(self, count: int = -1) -> bytes:
        part = self.file.read(MAX_DIRECTORY + 1 if count < 0 else min(count, MAX_DIRECTORY + 1))
        if len(part) > MAX_DIRECTORY:
            raise CheckpointError(f"its central directory is larger than {MAX_DIRECTORY} bytes; download it again")
        return part


def _is_magic(value: Any) -> bool:
    return isinstance(value, int) and value == LEGACY_MAGIC
