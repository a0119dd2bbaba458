"""Training images as one uint8 array on disk: rendered critters, or a folder of a user's own pictures.

The array is a plain `.npy` file (N, 3, H, W), RGB, mapped into memory, so that any number of workers and processes read
it without copies. It is filled chunk by chunk under a `.partial` name: an interrupted run goes on where it stopped,
and a file under the final name is always whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import IterableDataset

from autodrag.data.critters import LANDMARKS, compiled_distance, render, sample_factors
from autodrag.data.critters_sdf import distance
from autodrag.errors import AutodragError

_COMPILE_FROM = 1000  # renders for which compiling the renderer pays off
_CHUNK = 64  # images between two progress marks; also the unit of the random seed
Progress = Callable[[int, int], None]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def open_array(path: Path) -> UInt8[np.ndarray, "N 3 H W"]:
    """Maps a finished array; raises AutodragError where the file is not one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise AutodragError(f"{path} is not an image array ({problem}); delete it and run again.") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3:
        raise AutodragError(f"{path} holds {array.dtype} {array.shape}; expected uint8 (N, 3, H, W).")
    return array


def _fill(
    arrays: dict[Path, tuple[tuple[int, ...], type[np.generic]]],
    fill: Callable[[int, int], tuple[np.ndarray, ...]],
    progress: Progress | None,
) -> None:
    """Fills arrays of equal length by `fill(start, end)`; how far they are filled stands in a file beside the first.

    The first path is renamed to its final name last: where it exists, all of them are whole.
    """
    first = next(iter(arrays))
    first.parent.mkdir(parents=True, exist_ok=True)
    mark = first.with_suffix(".partial.txt")
    partial = {path: path.with_suffix(".partial.npy") for path in arrays}
    done = int(mark.read_text()) if mark.exists() and all(p.exists() for p in partial.values()) else 0
    maps = []
    for path, (shape, dtype) in arrays.items():
        array = np.lib.format.open_memmap(partial[path], mode="r+" if done else "w+", dtype=dtype, shape=shape)
        if array.shape != shape:
            raise AutodragError(
                f"{partial[path]} holds {array.shape}, but {shape} is asked for; delete it and run again."
            )
        maps.append(array)
    total = len(maps[0])
    for start in range(done, total, _CHUNK):
        end = min(start + _CHUNK, total)
        for array, values in zip(maps, fill(start, end), strict=True):
            array[start:end] = values
            array.flush()
        mark.write_text(str(end))
        if progress is not None:
            progress(end, total)
    del maps, array
    for path in reversed(arrays):
        os.replace(partial[path], path)
    mark.unlink(missing_ok=True)


def _check(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise AutodragError(f"{path} holds {array.shape}, but {shape} is asked for; name another cache file.")
    return array


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

    Chunk k is drawn from a seed made of (seed, k), so the pictures do not depend on interruptions.
    """
    shape = (count, 3, size, size)

    def fill(start: int, end: int) -> tuple[np.ndarray, ...]:
        factors = sample_factors(end - start, torch.Generator().manual_seed(seed * 1_000_003 + start // _CHUNK))
        drawn = render(factors, size=size, device=device, measure=measure)
        return to_bytes(drawn.images).cpu().numpy(), drawn.landmarks.cpu().numpy()

    if not path.exists():
        measure = compiled_distance(device) if count >= _COMPILE_FROM else distance
        points = (count, len(LANDMARKS), 2)
        _fill({path: (shape, np.uint8), landmarks_path(path): (points, np.float32)}, fill, progress)
    return _check(path, open_array(path), shape)


def folder_array(
    path: Path, folder: Path, *, size: tuple[int, int], progress: Progress | None = None
) -> UInt8[np.ndarray, "N 3 H W"]:
    """All pictures below `folder`, cropped at the centre to the shape of `size` (H, W) and resized to it.

    Raises AutodragError for a folder without pictures and for a file that is no readable picture.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise AutodragError(f"{folder} holds no pictures; expected files ending in {', '.join(SUFFIXES)}.")
    height, width = size

    def read(file: Path) -> np.ndarray:
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if image is None:
            raise AutodragError(f"{file} cannot be read as a picture; remove it from the folder.")
        scale = max(height / image.shape[0], width / image.shape[1])
        shape = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width, ::-1].transpose(2, 0, 1)

    def fill(start: int, end: int) -> tuple[np.ndarray, ...]:
        return (np.stack([read(file) for file in files[start:end]]),)

    shape = (len(files), 3, height, width)
    if not path.exists():
        _fill({path: (shape, np.uint8)}, fill, progress)
    return _check(path, open_array(path), shape)


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
