"""Image arrays: atomic and resumable creation, and streams that do not depend on interruptions."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from autodrag.data import image_array
from autodrag.data.critters import LANDMARKS
from autodrag.data.image_array import ImageStream, critters_array, folder_array, landmarks_path, open_array
from autodrag.errors import AutodragError


class Interrupted(Exception):
    pass


def test_resumed_rendering_gives_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_array, "_CHUNK", 2)
    whole = np.array(critters_array(tmp_path / "a.npy", count=5, size=16, seed=3))

    def stop(done: int, total: int) -> None:
        if done >= 2:
            raise Interrupted

    broken = tmp_path / "b.npy"
    with pytest.raises(Interrupted):
        critters_array(broken, count=5, size=16, seed=3, progress=stop)
    assert not broken.exists()
    assert np.array_equal(critters_array(broken, count=5, size=16, seed=3), whole)
    points = np.load(landmarks_path(broken))
    assert points.shape == (5, len(LANDMARKS), 2)
    assert np.array_equal(points, np.load(landmarks_path(tmp_path / "a.npy")))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.landmarks.npy", "a.npy", "b.landmarks.npy", "b.npy"]


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    critters_array(tmp_path / "a.npy", count=1, size=8, seed=0)
    with pytest.raises(AutodragError, match=r"holds \(1, 3, 8, 8\), but \(2, 3, 8, 8\) is asked for"):
        critters_array(tmp_path / "a.npy", count=2, size=8, seed=0)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_invalid_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(AutodragError, match="is not an image array"):
        open_array(tmp_path / "a.npy")


def test_images_of_a_folder_are_cropped_at_the_centre(tmp_path: Path) -> None:
    picture = np.zeros((20, 40, 3), dtype=np.uint8)
    picture[:, 10:30] = (1, 2, 3)  # BGR in the file; the middle square
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "x.png"), picture)
    array = folder_array(tmp_path / "a.npy", tmp_path / "in", size=(10, 10))
    assert array.shape == (1, 3, 10, 10)
    assert array[0, :, 5, 5].tolist() == [3, 2, 1]
    assert (array[0] == array[0, :, 5:6, 5:6]).all()


def test_folders_without_images_or_with_invalid_images(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match="holds no pictures"):
        folder_array(tmp_path / "a.npy", tmp_path, size=(8, 8))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(AutodragError, match=r"bad\.png cannot be read"):
        folder_array(tmp_path / "a.npy", tmp_path, size=(8, 8))
    assert not (tmp_path / "a.npy").exists()


def numbered(count: int) -> np.ndarray:
    """Image k has the value k."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 4, 4)).copy()


def values(stream: ImageStream) -> list[list[int]]:
    return [((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for batch in stream]


def test_stream_resumes_at_a_step() -> None:
    settings = dict(batch=3, total=9, seed=5, mirror=True)
    whole = list(ImageStream(numbered(10), first=0, **settings))  # type: ignore[arg-type]
    rest = list(ImageStream(numbered(10), first=4, **settings))  # type: ignore[arg-type]
    assert len(whole) == 9 and len(rest) == 5
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_each_epoch_contains_each_image_once() -> None:
    seen = [
        v for batch in values(ImageStream(numbered(6), batch=3, first=0, total=4, seed=0, mirror=False)) for v in batch
    ]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_ranks_share_a_batch() -> None:
    """Two processes together get the batch of one process with twice the batch size."""
    one = values(ImageStream(numbered(12), batch=4, first=0, total=3, seed=0, mirror=False))
    parts = [
        values(ImageStream(numbered(12), batch=2, first=0, total=3, seed=0, mirror=False, rank=r, world=2))
        for r in (0, 1)
    ]
    assert one == [a + b for a, b in zip(*parts, strict=True)]


def test_mirroring_is_exact() -> None:
    array = np.zeros((1, 3, 4, 4), dtype=np.uint8)
    array[..., 0] = 255
    shown = torch.cat(list(ImageStream(array, batch=1, first=0, total=20, seed=0, mirror=True)))
    left = (shown[:, 0, 0, 0] > 0).sum()
    assert 0 < int(left) < 20
    assert bool(((shown[:, 0, 0, 0] > 0) ^ (shown[:, 0, 0, 3] > 0)).all())
