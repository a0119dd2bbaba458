"""Annotated images: marks at the correct positions, also in enlarged images."""

from __future__ import annotations

import numpy as np
import pytest

from autodrag.errors import AutodragError
from autodrag.infer.draw import BLUE, GREEN, RED, WHITE, annotate, contact_sheet, enlarge

BLACK = np.zeros((64, 64, 3), dtype=np.uint8)


def centre(picture: np.ndarray, colour: tuple[int, int, int]) -> list[float]:
    """Mean (x, y) of the pixels with exactly this colour."""
    rows, columns = np.nonzero((picture == colour).all(axis=2))
    return [float(columns.mean()), float(rows.mean())]


def test_small_images_are_enlarged_by_an_integer_factor() -> None:
    assert enlarge(BLACK).shape == (512, 512, 3)
    assert enlarge(np.zeros((100, 200, 3), dtype=np.uint8)).shape == (600, 1200, 3)
    assert enlarge(np.zeros((512, 300, 3), dtype=np.uint8), 300).shape == (512, 300, 3)


def test_marks_follow_the_half_pixel_convention() -> None:
    picture = annotate(BLACK, handles=[[10, 20]], targets=[[40, 30]], anchors=[[50, 55]])
    for point, colour in (((10, 20), RED), ((40, 30), BLUE), ((50, 55), GREEN)):
        expected = [(value + 0.5) * 8 - 0.5 for value in point]
        assert centre(picture, colour) == pytest.approx(expected, abs=0.6)


def test_marks_lie_on_the_enlarged_content() -> None:
    image = BLACK.copy()
    image[20, 10] = 255
    bright = enlarge(image)[:, :, 0].astype(float)
    rows, columns = np.mgrid[: bright.shape[0], : bright.shape[1]]
    total = bright.sum()
    assert [(bright * columns).sum() / total, (bright * rows).sum() / total] == pytest.approx([83.5, 163.5], abs=0.6)


def test_tracked_point_is_a_white_dot_on_top() -> None:
    picture = annotate(BLACK, handles=[[10, 10]], targets=[[50, 50]], points=[[30, 12]], least=64)
    assert tuple(picture[12, 30]) == WHITE


def test_region_outside_the_mask_is_dimmed() -> None:
    image = np.full((64, 64, 3), 200, dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=bool)
    mask[:, 32:] = True
    picture = annotate(image, handles=[[50, 50]], targets=[[60, 50]], mask=mask, least=64)
    assert picture[5, 5].tolist() == [90] * 3
    assert picture[5, 60].tolist() == [200] * 3
    everything = annotate(image, handles=[], targets=[], mask=np.ones_like(mask), least=64)
    assert np.array_equal(everything, image)


def test_input_image_is_not_modified() -> None:
    image = np.zeros((600, 600, 3), dtype=np.uint8)
    annotate(image, handles=[[1, 1]], targets=[[300, 300]])
    assert not image.any()


def test_contact_sheet() -> None:
    tiles = [np.full((4, 6, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(tiles, 2, gap=1)
    assert sheet.shape == (9, 13, 3)
    assert [sheet[0, 0, 0], sheet[0, 7, 0], sheet[5, 0, 0], sheet[5, 7, 0], sheet[4, 0, 0]] == [
        10,
        20,
        30,
        255,
        255,
    ]
    assert contact_sheet(tiles[:1], 8).shape == (4, 6, 3)


def test_invalid_contact_sheets() -> None:
    with pytest.raises(AutodragError, match="0 images in 2 columns"):
        contact_sheet([], 2)
    with pytest.raises(AutodragError, match="all sizes must be equal"):
        contact_sheet([BLACK, BLACK[:10]], 2)
