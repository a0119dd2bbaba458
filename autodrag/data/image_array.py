"""Training images as one uint8 array on disk: rendered critters, or a folder of a user's own pictures.

The array is a plain `.npy` file (N, 3, H, W), RGB, mapped into memory for training, so that any number of workers and
processes read it without copies. A JSON file beside it records the source: the settings, and for a folder a fingerprint
of its files. An array is used only for the source that it was made from.

The array is filled chunk by chunk under a `.partial` name. An interrupted run continues where it stopped, and a file
under the final name is always complete. It is written by plain writes into reserved space: a write through a memory map
would kill the process by SIGBUS when the disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import IterableDataset

from autodrag.data.critters import LANDMARKS, compiled_distance, render, sample_factors
from autodrag.data.critters_sdf import distance
from autodrag.errors import AutodragError
from autodrag.files import is_disk_full, read_bounded, write_json
from autodrag.images import FORMATS, MAX_PIXELS, decode_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FOLDER_FORMATS = (*FORMATS, "GIF", "TIFF")
UNSUPPORTED = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".exr", ".hdr", ".ppm", ".pgm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),  # cameras' raw files
)
"""Suffixes of pictures in other formats. They are reported; files with any other suffix are ignored."""

_COMPILE_FROM = 1000  # renders for which compiling the renderer pays off
_CHUNK = 64  # images between two saved states of the record; also the unit of the random seed
_MAX_PICTURE_BYTES = 8 * MAX_PIXELS  # four channels of 16 bits
_VERSION = 1  # of the preparation of a folder; a new number makes all arrays again
_LISTED = 10  # unusable files in an error
Progress = Callable[[int, int], None]


# ------------------------------------------------------------------------------------------------- arrays on disk


@dataclass(frozen=True)
class ArrayRecord:
    """What an array was made from, and how much of it is written."""

    source: dict[str, Any]
    """Settings and fingerprint, in values of JSON."""
    done: int = 0
    """Items of the source that were processed."""
    rows: int = 0
    """Rows that were written: items without the unusable ones."""
    unusable: list[str] = field(default_factory=list)
    """A sentence for every file that could not be used."""


class Chunk(NamedTuple):
    """Rows for each array, and a sentence for every item that gave none."""

    rows: tuple[np.ndarray, ...]
    unusable: list[str]


class RowLayout(NamedTuple):
    """Shape and type of one row of an array."""

    shape: tuple[int, ...]
    dtype: type[np.generic]


def record_path(path: Path) -> Path:
    """The record of the array at `path`."""
    return path.with_suffix(".source.json")


def read_record(path: Path) -> ArrayRecord | None:
    """The record of the array at `path`; None if it is missing or damaged."""
    try:
        return ArrayRecord(**json.loads(record_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def open_array(path: Path) -> UInt8[np.ndarray, "N 3 H W"]:
    """Maps a finished array; raises AutodragError where the file is not one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise AutodragError(f"{path} is not an image array ({problem}); delete it and run again.") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3:
        raise AutodragError(f"{path} holds {array.dtype} {array.shape}; expected uint8 (N, 3, H, W).")
    return array


class _PartialArray:
    """A `.npy` file that is written row by row under a temporary name, in space that is reserved first."""

    def __init__(self, path: Path, rows: int, layout: RowLayout) -> None:
        self.path, self.layout = path, layout
        self.offset = len(self.header(rows))
        self.row_bytes = int(np.prod(layout.shape)) * np.dtype(layout.dtype).itemsize
        self.size = self.offset + rows * self.row_bytes

    @property
    def partial(self) -> Path:
        """The temporary name."""
        return self.path.with_suffix(".partial.npy")

    def header(self, rows: int) -> bytes:
        """The header of the array with `rows` rows. NumPy pads it, so that its length does not depend on them."""
        stream = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(np.dtype(self.layout.dtype))
        description = {"descr": descr, "fortran_order": False, "shape": (rows, *self.layout.shape)}
        np.lib.format.write_array_header_1_0(stream, description)
        return stream.getvalue()

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file for writing. OSError becomes AutodragError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.partial.open("r+b" if self.partial.exists() else "w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if is_disk_full(error):
                need = f"{self.size / 2**20:,.1f} MiB"
                reason = f"the disk is full, and the file needs {need}; free some space and run again"
            else:
                reason = f"{error.strerror or error}; choose another place"
            raise AutodragError(f"{str(self.path)!r} cannot be written: {reason}") from error

    def reserve(self) -> None:
        """Reserves the space of the whole file where the system can, so that a full disk is reported at once."""
        with self.opened() as stream:
            if not hasattr(os, "posix_fallocate"):
                return
            try:
                os.posix_fallocate(stream.fileno(), 0, self.size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # not by this file system
                    raise

    def write(self, row: int, values: np.ndarray) -> None:
        """Writes rows from number `row` on."""
        assert values.shape[1:] == self.layout.shape, (values.shape, self.layout)
        with self.opened() as stream:
            stream.seek(self.offset + row * self.row_bytes)
            stream.write(np.ascontiguousarray(values, dtype=self.layout.dtype).data)

    def finish(self, rows: int) -> None:
        """Writes the header, cuts the file after `rows` rows, and gives it its final name."""
        header = self.header(rows)
        assert len(header) == self.offset
        with self.opened() as stream:
            stream.write(header)
            stream.truncate(self.offset + rows * self.row_bytes)
        os.replace(self.partial, self.path)


def _make(
    layouts: dict[Path, RowLayout],
    source: dict[str, Any],
    total: int,
    fill: Callable[[int, int], Chunk],
    progress: Progress | None,
) -> ArrayRecord:
    """Makes arrays of equal length, `fill(start, end)` giving the rows for these items of the source.

    The first path gets its final name last: where it exists, all arrays are complete. If an array cannot be written or
    no item is usable, nothing is left.
    """
    first = next(iter(layouts))
    arrays = [_PartialArray(path, total, layout) for path, layout in layouts.items()]

    def discard() -> None:
        for file in (first, record_path(first), *layouts, *(array.partial for array in arrays)):
            with contextlib.suppress(OSError):  # a folder that is not writable is reported by `reserve`
                file.unlink(missing_ok=True)

    record = read_record(first)
    if record is None or record.source != source or not all(array.partial.exists() for array in arrays):
        discard()
        record = ArrayRecord(source)
    try:
        for array in arrays:
            array.reserve()
        for start in range(record.done, total, _CHUNK):
            end = min(start + _CHUNK, total)
            chunk = fill(start, end)
            for array, values in zip(arrays, chunk.rows, strict=True):
                array.write(record.rows, values)
            rows = record.rows + len(chunk.rows[0])
            record = ArrayRecord(source, end, rows, record.unusable + chunk.unusable)
            write_json(record_path(first), asdict(record))
            if progress is not None:
                progress(end, total)
        if record.rows:
            for array in reversed(arrays):
                array.finish(record.rows)
    except AutodragError:
        discard()
        raise
    if not record.rows:
        discard()
    return record


# ----------------------------------------------------------------------------------------------- rendered critters


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """[-1, 1] to 0..255, rounded."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def landmarks_path(path: Path) -> Path:
    """Where the landmarks of the critters in the array at `path` lie: (N, len(LANDMARKS), 2) fp32, px."""
    return path.with_suffix(".landmarks.npy")


def critters_array(
    path: Path,
    *,
    count: int,
    size: int,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> UInt8[np.ndarray, "N 3 H W"]:
    """`count` rendered critters of `size` px, and beside them their landmarks.

    Chunk k is drawn from a seed made of (seed, k), so the pictures do not depend on interruptions. Several trainings
    share the array, so an array of other critters is refused, not replaced.
    """
    source = {"critters": {"count": count, "size": size, "seed": seed, "landmarks": len(LANDMARKS)}}

    def fill(start: int, end: int) -> Chunk:
        factors = sample_factors(end - start, torch.Generator().manual_seed(seed * 1_000_003 + start // _CHUNK))
        drawn = render(factors, size=size, device=device, measure=measure)
        return Chunk((to_bytes(drawn.images).cpu().numpy(), drawn.landmarks.cpu().numpy()), [])

    if path.exists():
        record = read_record(path)
        if record is None or record.source != source:
            _refuse(path, record, source)
    else:
        measure = compiled_distance(device) if count >= _COMPILE_FROM else distance
        layouts = {
            path: RowLayout((3, size, size), np.uint8),
            landmarks_path(path): RowLayout((len(LANDMARKS), 2), np.float32),
        }
        _make(layouts, source, count, fill, progress)
    return open_array(path)


def _refuse(path: Path, record: ArrayRecord | None, source: dict[str, Any]) -> NoReturn:
    """Refuses an array that was made from another source than `source`, or that has no record."""
    made = "something that no record beside it names" if record is None else _settings(record.source)
    raise AutodragError(
        f"{str(path)!r} was made from {made}, and this training needs {_settings(source)}; "
        "delete it to make it again, or name another data.cache."
    )


def _settings(source: dict[str, Any]) -> str:
    """`critters (count 8, size 64, seed 1, landmarks 18)`; without the fingerprint."""
    return ", ".join(
        f"{name} ({', '.join(f'{key} {value}' for key, value in group.items() if key != 'sha256')})"
        for name, group in source.items()
    )


# -------------------------------------------------------------------------------------------- a folder of pictures


def folder_array(
    path: Path,
    folder: Path,
    *,
    size: tuple[int, int],
    background: tuple[int, int, int] = (255, 255, 255),
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> UInt8[np.ndarray, "N 3 H W"]:
    """All pictures below `folder`: the largest centred part of the shape of `size` (H, W), resized to it.

    Transparent pictures are laid on `background` (RGB). Hidden files and folders are ignored. The array is made again
    if a file, the folder or a setting has changed. An array of something else at `path` is refused.

    Raises:
        AutodragError: a folder without pictures; files that cannot be used, all of them in one error, unless
            `skip_broken`; an array at `path` that was made by something else; a full disk.
    """
    names = _picture_names(folder)
    source = {
        "folder": {
            "version": _VERSION,
            "path": str(folder.resolve()),
            "size": list(size),
            "background": list(background),
            "files": len(names),
            "sha256": _fingerprint(folder, names),
        }
    }

    def fill(start: int, end: int) -> Chunk:
        pictures, unusable = [], []
        for name in names[start:end]:
            try:
                pictures.append(_read_picture(folder / name, name, size, background))
            except AutodragError as problem:
                unusable.append(str(problem))
        return Chunk((np.array(pictures, dtype=np.uint8).reshape(len(pictures), 3, *size),), unusable)

    record = read_record(path)
    if path.exists() and (record is None or "folder" not in record.source):
        _refuse(path, record, source)
    if record is None or record.source != source or not path.exists():
        record = _make({path: RowLayout((3, *size), np.uint8)}, source, len(names), fill, progress)
    if record.unusable and not (skip_broken and record.rows):
        raise AutodragError(_unusable_sentence(path, folder, record))
    return open_array(path)


def _picture_names(folder: Path) -> list[str]:
    """Sorted paths, relative to `folder`, of all files below it that have the suffix of a picture."""

    def refuse(error: OSError) -> NoReturn:
        raise AutodragError(
            f"data.folder {str(error.filename)!r} cannot be read ({error.strerror}); expected a folder of pictures."
        ) from error

    names = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            Path(place, name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES + UNSUPPORTED
        ]
    if not names:
        raise AutodragError(f"{str(folder)!r} holds no pictures; expected files ending in {', '.join(SUFFIXES)}.")
    return sorted(names)


def _fingerprint(folder: Path, names: list[str]) -> str:
    """SHA-256 of the names, sizes and modification times of the files."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = (folder / name).stat()
            line = f"{status.st_size} {status.st_mtime_ns} {name}\n"
        except OSError:  # a link to a file that does not exist
            line = f"- - {name}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_picture(
    file: Path, name: str, size: tuple[int, int], background: tuple[int, int, int]
) -> UInt8[np.ndarray, "3 H W"]:
    """The picture, cropped at its centre to the shape of `size` and resized to it."""
    if file.suffix.lower() in UNSUPPORTED:
        raise AutodragError(f"{name!r} has a format that is not supported; convert it to PNG or JPEG")
    data = read_bounded(file, _MAX_PICTURE_BYTES, "picture")
    image = decode_image(data, repr(name), formats=FOLDER_FORMATS, background=background)
    height, width = size
    crop_height = min(image.shape[0], max(1, round(image.shape[1] * height / width)))
    crop_width = min(image.shape[1], max(1, round(image.shape[0] * width / height)))
    top, left = (image.shape[0] - crop_height) // 2, (image.shape[1] - crop_width) // 2
    image = image[top : top + crop_height, left : left + crop_width]
    shrinks = crop_height > height
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return image.transpose(2, 0, 1)


def _unusable_sentence(path: Path, folder: Path, record: ArrayRecord) -> str:
    """The error for files that cannot be used: the first of them, numbered, and how many more there are."""
    count = len(record.unusable)
    advice = "repair or remove them"
    if record.rows:
        advice += f", or pass --data.skip-broken to train on the other {record.rows}"
    listed = [f"({number}) {sentence}" for number, sentence in enumerate(record.unusable[:_LISTED], 1)]
    if count > _LISTED:
        where = f"; {str(record_path(path))!r} lists all of them" if record.rows else ""
        listed.append(f"and {count - _LISTED} more{where}")
    return f"{count} of {record.done} pictures in {str(folder)!r} cannot be used; {advice}: {', '.join(listed)}"


# --------------------------------------------------------------------------------------------------------- batches


class ImageStream(IterableDataset[Tensor]):
    """Batches number `first`, `first + 1`, ... of an endless shuffled walk over an image array, `total` in all.

    Batch k depends on (seed, k, rank) alone, so a resumed run sees exactly what an unbroken one does: every pass is a
    permutation of the array drawn from (seed, pass). Yields float (batch, 3, H, W) in [-1, 1].
    """

    def __init__(
        self,
        array: UInt8[np.ndarray, "N 3 H W"],
        *,
        batch: int,
        first: int,
        total: int,
        seed: int,
        mirror: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.array, self.batch, self.first, self.total = array, batch, first, total
        self.seed, self.mirror, self.rank, self.world = seed, mirror, rank, world

    def __iter__(self) -> Iterator[Tensor]:
        current, order = -1, np.empty(0, dtype=np.int64)
        for k in range(self.first, self.total):
            picks = (np.arange(self.batch) + self.batch * (k * self.world + self.rank)).tolist()
            rows = []
            for pick in picks:
                if pick // len(self.array) != current:
                    current = pick // len(self.array)
                    order = np.random.default_rng((self.seed, current)).permutation(len(self.array))
                rows.append(order[pick % len(self.array)])
            images = torch.from_numpy(self.array[np.array(rows)]).float() / 127.5 - 1
            if self.mirror:
                coins = np.random.default_rng((self.seed, 1, k, self.rank)).random(self.batch) < 0.5
                images = torch.where(torch.from_numpy(coins)[:, None, None, None], images.flip(3), images)
            yield images
