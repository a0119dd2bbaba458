"""Image files and tensors: exact conversions, invalid files, atomic writing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from autodrag import images
from autodrag.errors import AutodragError
from autodrag.files import read_bounded, replacing, write_json
from autodrag.images import read_image, read_mask, to_tensor, to_uint8, write_animation, write_png


@pytest.fixture
def picture() -> np.ndarray:
    """13 x 9 px of noise."""
    return np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def test_uint8_tensor_round_trip_is_exact() -> None:
    bytes_ = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(to_uint8(to_tensor(bytes_))[0], bytes_)


def test_range_and_clipping() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_tensor(np.array([[[0, 255, 51]]], dtype=np.uint8))[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])


def test_png_round_trip(tmp_path: Path, picture: np.ndarray) -> None:
    write_png(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), picture)


def test_image_modes_are_converted_to_rgb(tmp_path: Path, picture: np.ndarray) -> None:
    for mode in ("L", "RGBA", "P", "1", "LA"):
        Image.fromarray(picture).convert(mode).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (9, 13, 3)


def test_16_bit_images_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535, 25700]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255, 100]


def test_exif_rotation_is_applied(tmp_path: Path, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (13, 9, 3)


def test_files_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(AutodragError, match="is not an image; expected PNG"):
        read_image(tmp_path / "a.png")
    with pytest.raises(AutodragError, match="does not exist"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AutodragError, match=r"cannot be decoded|is not an image"):
        read_image(path)


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_png_header_with_an_enormous_size_is_refused(tmp_path: Path, side: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    with pytest.raises(AutodragError, match=r"9000x9000 px, more than the limit|decompression bomb"):
        read_image(tmp_path / "a.png")


def test_file_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(b"x" * 101)
    with pytest.raises(AutodragError, match="larger than the limit"):
        read_image(tmp_path / "a.png")


def test_masks(tmp_path: Path) -> None:
    grey = np.array([[0, 127], [128, 255]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (2, 2)).tolist() == [[False, False], [True, True]]
    with pytest.raises(AutodragError, match=r"mask .* is 2x2 px, and the image is 4x3; resize the mask"):
        read_mask(tmp_path / "m.png", (3, 4))


def frames(count: int = 5) -> list[np.ndarray]:
    """Frames of odd size with increasing brightness."""
    return [np.full((33, 47, 3), 40 * index, dtype=np.uint8) for index in range(count)]


def test_mp4(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.mp4", frames())
    video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    means = []
    while (read := video.read())[0]:
        assert read[1].shape == (34, 48, 3)
        means.append(float(read[1].mean()))
    assert means == pytest.approx([0, 40, 80, 120, 160], abs=4)


def test_gif(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.gif", frames(), fps=10)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (getattr(animation, "n_frames", 1), animation.size, animation.info["duration"]) == (
            5,
            (47, 33),
            100,
        )


def test_invalid_animations(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match="has no frames"):
        write_animation(tmp_path / "a.gif", [])
    with pytest.raises(AutodragError, match="different sizes"):
        write_animation(tmp_path / "a.gif", [frames()[0], frames()[0][:4]])
    with pytest.raises(AutodragError, match=r"suffix '\.avi'; expected \.mp4 or \.gif"):
        write_animation(tmp_path / "a.avi", frames())
    assert list(tmp_path.iterdir()) == []


def test_no_mp4_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, *_: object) -> None:
            pass

        def isOpened(self) -> bool:
            return False

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoWriter", Closed)
    with pytest.raises(AutodragError, match=r"no MP4 encoder; install opencv-python with FFmpeg, or write a \.gif"):
        write_animation(tmp_path / "a.mp4", frames())


def test_an_mp4_without_its_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:  # as FFmpeg behaves on a full disk
        writer, fourcc = cv2.VideoWriter, staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, path: str, *options: Any) -> None:
            self.path, self.opened = Path(path), self.writer(path, *options)

        def isOpened(self) -> bool:
            return self.opened.isOpened()

        def write(self, frame: np.ndarray) -> None:
            self.opened.write(frame)

        def release(self) -> None:
            self.opened.release()
            self.path.write_bytes(self.path.read_bytes()[:100])

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(AutodragError, match=r"a\.mp4' was not written completely; the disk is probably full"):
        write_animation(tmp_path / "a.mp4", frames())
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file_and_removes_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match="does not exist"):
        read_bounded(tmp_path, 10, "image")
