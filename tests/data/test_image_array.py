"""Image arrays: atomic and resumable creation, and streams that do not depend on interruptions."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from autodrag.data import image_array
from autodrag.data.critters import LANDMARKS
from autodrag.data.image_array import ImageStream, critters_array, folder_array, landmarks_path, open_array
from autodrag.errors import AutodragError
from autodrag.images import write_png


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
    suffixes = (".landmarks.npy", ".npy", ".source.json")
    assert sorted(f.name for f in tmp_path.iterdir()) == [name + suffix for name in "ab" for suffix in suffixes]


def test_other_critters_are_refused(tmp_path: Path) -> None:
    array = critters_array(tmp_path / "a.npy", count=1, size=8, seed=0)
    for count, size, seed in ((2, 8, 0), (1, 16, 0), (1, 8, 1)):
        with pytest.raises(AutodragError, match=r"made from critters \(count 1, size 8, seed 0, .* name another"):
            critters_array(tmp_path / "a.npy", count=count, size=size, seed=seed)
    assert np.array_equal(critters_array(tmp_path / "a.npy", count=1, size=8, seed=0), array)


def test_a_file_of_unknown_origin_is_neither_used_nor_replaced(tmp_path: Path, pictures: Path) -> None:
    own = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "a.npy", own)
    with pytest.raises(AutodragError, match="that no record beside it names"):
        critters_array(tmp_path / "a.npy", count=2, size=8, seed=0)
    with pytest.raises(AutodragError, match="that no record beside it names"):
        folder_array(tmp_path / "a.npy", pictures, size=(8, 8))
    critters_array(tmp_path / "b.npy", count=1, size=8, seed=0)
    with pytest.raises(AutodragError, match=r"made from critters .* needs folder \(version"):
        folder_array(tmp_path / "b.npy", pictures, size=(8, 8))
    assert np.array_equal(np.load(tmp_path / "a.npy"), own)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_invalid_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(AutodragError, match="is not an image array"):
        open_array(tmp_path / "a.npy")


def save(path: Path, colour: tuple[int, ...] | int, *, mode: str = "RGB", **options: Any) -> None:
    """A picture of 8 x 8 px in one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), colour).save(path, **options)


def colours(array: np.ndarray) -> list[list[int]]:
    """RGB in the middle of every picture."""
    return [picture[:, 4, 4].tolist() for picture in array]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a red picture, and a green one in a subfolder."""
    save(tmp_path / "in" / "a.png", (255, 0, 0))
    save(tmp_path / "in" / "sub" / "b.PNG", (0, 255, 0))
    return tmp_path / "in"


def test_images_of_a_folder_are_cropped_at_the_centre(tmp_path: Path) -> None:
    picture = np.zeros((20, 40, 3), dtype=np.uint8)
    picture[:, 10:30] = (3, 2, 1)  # the middle square
    write_png(tmp_path / "in" / "x.png", picture)
    array = folder_array(tmp_path / "a.npy", tmp_path / "in", size=(10, 10))
    assert array.shape == (1, 3, 10, 10)
    assert array[0, :, 5, 5].tolist() == [3, 2, 1]
    assert (array[0] == array[0, :, 5:6, 5:6]).all()


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (4, 4), (8, 16), (301, 200)])
def test_pictures_of_any_shape_fill_the_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_png(tmp_path / "in" / "x.png", np.full((*shape, 3), 77, dtype=np.uint8))
    array = folder_array(tmp_path / "a.npy", tmp_path / "in", size=(16, 8))
    assert array.shape == (1, 3, 16, 8) and (array == 77).all()


def test_an_unchanged_folder_is_read_once(tmp_path: Path, pictures: Path) -> None:
    reads = []
    for _ in range(2):
        folder_array(tmp_path / "a.npy", pictures, size=(8, 8), progress=lambda done, total: reads.append(total))
    assert reads == [2]


def test_the_array_is_made_again_when_the_folder_or_a_setting_changes(tmp_path: Path, pictures: Path) -> None:
    def array(folder: Path = pictures, **settings: Any) -> np.ndarray:
        return folder_array(tmp_path / "a.npy", folder, **{"size": (8, 8), **settings})

    red, green, blue = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    old = array()
    assert colours(old) == [red, green]
    save(pictures / "c.bmp", (0, 0, 255))
    assert colours(array()) == [red, blue, green]
    assert colours(old) == [red, green]  # a run that still reads the old array is not disturbed
    (pictures / "a.png").unlink()
    assert colours(array()) == [blue, green]
    save(pictures / "c.bmp", (255, 0, 0))  # as many bytes as before, at another time
    os.utime(pictures / "c.bmp", ns=(0, 10**18))
    assert colours(array()) == [red, green]
    assert array(size=(16, 8)).shape == (2, 3, 16, 8)
    save(pictures / "d.png", (0, 0, 0, 0), mode="RGBA")
    assert colours(array(background=(0, 0, 255))) == [red, blue, green]
    assert colours(array(background=(255, 0, 0))) == [red, red, green]
    copy = shutil.copytree(pictures, tmp_path / "copy")  # keeps times
    save(copy / "c.bmp", (0, 0, 255))
    os.utime(copy / "c.bmp", ns=(0, 10**18))
    assert colours(array(copy)) == [blue, [255, 255, 255], green]


def test_an_interrupted_folder_continues_unless_it_changed(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_array, "_CHUNK", 1)

    def stop(done: int, total: int) -> None:
        raise Interrupted

    def progress(done: int, total: int) -> None:
        reads.append(done)

    for change, expected in ((False, [2]), (True, [1, 2, 3])):
        reads: list[int] = []
        path = tmp_path / f"{change}.npy"
        with pytest.raises(Interrupted):
            folder_array(path, pictures, size=(8, 8), progress=stop)
        if change:
            save(pictures / "0.png", (0, 0, 255))
        array = folder_array(path, pictures, size=(8, 8), progress=progress)
        assert reads == expected and len(array) == expected[-1]


def test_folders_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    save(tmp_path / ".thumbnails" / "a.png", (0, 0, 0))
    (tmp_path / "._a.png").write_bytes(b"metadata of macOS")
    with pytest.raises(AutodragError, match=r"holds no pictures; expected files ending in \.png"):
        folder_array(tmp_path / "a.npy", tmp_path, size=(8, 8))
    for wrong, reason in (("missing", "No such file"), ("notes.txt", "Not a directory")):
        with pytest.raises(AutodragError, match=rf"data\.folder .*{wrong}.*{reason}.*expected a folder of pictures"):
            folder_array(tmp_path / "a.npy", tmp_path / wrong, size=(8, 8))


def damage(folder: Path) -> None:
    """Adds a file of every kind that cannot be used."""
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "phone.HEIC").write_bytes(b"a format that is not read")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:700])
    Image.new("F", (8, 8)).save(folder / "float.tif")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")


def test_all_unusable_files_are_listed_at_once_or_skipped(tmp_path: Path, pictures: Path) -> None:
    damage(pictures)
    with pytest.raises(AutodragError) as caught:
        folder_array(tmp_path / "a.npy", pictures, size=(8, 8))
    first, *items = re.split(r"\(\d\) ", str(caught.value))
    assert first.startswith("6 of 8 pictures in ") and "or pass --data.skip-broken to train on the other 2" in first
    expected = {
        "bad.png": "is not an image; expected PNG",
        "cut.jpg": "truncated",
        "empty.jpg": "is not an image",
        "float.tif": "floating-point values, and 8 or 16 bits are supported",
        "gone.png": "does not exist",
        "phone.HEIC": "has a format that is not supported; convert it to PNG or JPEG",
    }
    for item, (name, reason) in zip(items, expected.items(), strict=True):
        assert name in item and reason in item
    array = folder_array(tmp_path / "a.npy", pictures, size=(8, 8), skip_broken=True)
    assert colours(array) == [[255, 0, 0], [0, 255, 0]]
    with pytest.raises(AutodragError, match="6 of 8 pictures"):  # also of a finished array
        folder_array(tmp_path / "a.npy", pictures, size=(8, 8))


def test_skipping_does_not_depend_on_interruptions(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(pictures)
    monkeypatch.setattr(image_array, "_CHUNK", 1)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        folder_array(tmp_path / "a.npy", pictures, size=(8, 8), skip_broken=True, progress=stop)
    array = folder_array(tmp_path / "a.npy", pictures, size=(8, 8), skip_broken=True)
    assert colours(array) == [[255, 0, 0], [0, 255, 0]]


def test_a_long_list_is_cut(tmp_path: Path, pictures: Path) -> None:
    for index in range(25):
        (pictures / f"bad{index:02d}.png").write_bytes(b"no picture")
    with pytest.raises(AutodragError) as caught:
        folder_array(tmp_path / "a.npy", pictures, size=(8, 8))
    assert str(caught.value).count("is not an image") == 10
    assert str(caught.value).endswith(f", and 15 more; {str(tmp_path / 'a.source.json')!r} lists all of them")
    assert "bad24.png" in (tmp_path / "a.source.json").read_text()


def test_a_folder_of_broken_files_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    for skip_broken in (False, True):
        with pytest.raises(AutodragError, match=r"1 of 1 pictures .* cannot be used; repair or remove them:"):
            folder_array(tmp_path / "a.npy", tmp_path / "in", size=(8, 8), skip_broken=skip_broken)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_every_format_gives_its_colour(tmp_path: Path) -> None:
    """Files of one colour in every format and mode that is supported."""
    folder, orange = tmp_path / "in", (250, 130, 20)
    for name in ("a.png", "b.bmp", "c.jpg", "d.jfif", "e.webp", "f.tif", "g.tiff"):
        save(folder / name, orange)
    save(folder / "h.tif", orange, compression="tiff_lzw")
    first, second = Image.new("RGB", (8, 8), orange), Image.new("RGB", (8, 8), "blue")
    first.save(folder / "i.gif", save_all=True, append_images=[second])
    cmyk = first.convert("CMYK")
    cmyk.save(folder / "j.jpg")
    cmyk.save(folder / "k.tif")
    first.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "l.png")
    array = folder_array(tmp_path / "a.npy", folder, size=(8, 8))
    assert np.abs(np.array(colours(array)) - orange).max() <= 4


def test_grey_and_sixteen_bits(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "a.png", 100, mode="L")
    save(folder / "b.jpg", 100, mode="L")
    save(folder / "c.tif", 100, mode="L")
    deep = Image.fromarray(np.full((8, 8), 25700, dtype=np.uint16))
    deep.save(folder / "d.png")
    deep.save(folder / "e.tif")
    rgb16 = np.full((8, 8, 3), 25700, dtype=np.uint16)
    cv2.imwrite(str(folder / "f.png"), rgb16)
    cv2.imwrite(str(folder / "g.tif"), rgb16)
    save(folder / "h.png", 1, mode="1")
    *grey, white = colours(folder_array(tmp_path / "a.npy", folder, size=(8, 8)))
    assert np.abs(np.array(grey) - 100).max() <= 1 and white == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8] = 255  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn by 90 degrees clockwise
    (tmp_path / "in").mkdir()
    lying = Image.fromarray(np.rot90(upright).copy())
    lying.save(tmp_path / "in" / f"x.{suffix}", exif=exif)
    array = folder_array(tmp_path / "a.npy", tmp_path / "in", size=(16, 16))
    assert array[0, 0, 3, 8] > 200 and array[0, 0, 12, 8] < 50


def test_transparent_pictures_are_laid_on_the_background(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    clear, half = (200, 0, 0, 0), (200, 0, 0, 128)
    save(folder / "a.png", clear, mode="RGBA")
    save(folder / "b.webp", clear, mode="RGBA", lossless=True, exact=True)
    save(folder / "c.tif", clear, mode="RGBA")
    save(folder / "d.png", (200, 0), mode="LA")
    save(folder / "e.png", (200, 0, 0), transparency=(200, 0, 0))
    save(folder / "f.gif", 0, mode="P", transparency=0)
    save(folder / "g.png", 0, mode="P", transparency=b"\0")
    save(folder / "h.png", half, mode="RGBA")
    for background in ((255, 255, 255), (10, 20, 30)):
        *plain, mixed = colours(folder_array(tmp_path / "a.npy", folder, size=(8, 8), background=background))
        assert plain == [list(background)] * 7
        assert mixed == pytest.approx([(200 + background[0]) / 2, background[1] / 2, background[2] / 2], abs=1)


@pytest.mark.parametrize("where", ["reserving", "writing", "recording"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image_array, "_CHUNK", 1)
    (tmp_path / "run").mkdir()
    if where == "reserving":
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    elif where == "writing":  # as where space cannot be reserved
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(AutodragError, match=r"pictures\.(npy|source\.json)' cannot be written: the disk is full"):
        folder_array(tmp_path / "run" / "pictures.npy", pictures, size=(8, 8))
    assert list((tmp_path / "run").iterdir()) == []


def test_file_systems_that_cannot_reserve_space(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    assert colours(folder_array(tmp_path / "a.npy", pictures, size=(8, 8))) == [[255, 0, 0], [0, 255, 0]]


def test_places_that_cannot_be_written(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AutodragError, match=r"a\.npy' cannot be written: .*; choose another place"):
        folder_array(tmp_path / "file" / "a.npy", pictures, size=(8, 8))


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
