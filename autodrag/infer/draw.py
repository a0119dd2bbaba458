"""Drawing of annotated edits and contact sheets.

The colours follow the DragGAN paper (Pan et al., SIGGRAPH 2023): red handles, blue targets, arrows between them, and a
dimmed region outside the mask. Small images are enlarged first, so that the marks are legible.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8

from autodrag.errors import AutodragError
from autodrag.infer.task import PointsLike
from autodrag.points import rescale

RED, BLUE, GREEN, WHITE = (230, 40, 40), (40, 90, 240), (40, 200, 90), (255, 255, 255)
DISPLAY_PX = 512


def enlarge(image: UInt8[np.ndarray, "H W 3"], least: int = DISPLAY_PX) -> UInt8[np.ndarray, "h w 3"]:
    """Enlarge an image by an integer factor, so that its shorter side has at least `least` px."""
    factor = -(-least // min(image.shape[:2]))
    if factor <= 1:
        return image
    size = (image.shape[1] * factor, image.shape[0] * factor)
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(enlarged, dtype=np.uint8)


def annotate(
    image: UInt8[np.ndarray, "H W 3"],
    *,
    handles: PointsLike,
    targets: PointsLike,
    points: PointsLike | None = None,
    anchors: PointsLike | None = None,
    mask: Bool[np.ndarray, "H W"] | None = None,
    least: int = DISPLAY_PX,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw an edit on an image.

    Args:
        image: HWC uint8 RGB.
        handles, targets: (N, 2) px of `image`; red and blue, with an arrow from handle to target.
        points: (N, 2) current positions of the handles, drawn as small white dots with a red rim.
        anchors: (M, 2) points that must not move, green.
        mask: True = may move; other pixels are dimmed.
        least: minimum length of the shorter side in px; the image is enlarged by an integer factor.
    """
    height, width = image.shape[:2]
    if mask is not None and not mask.all():
        image = np.where(mask[:, :, None], image, (image * 0.45).astype(np.uint8))
    canvas = np.ascontiguousarray(enlarge(image, least)).copy()
    size = canvas.shape[0], canvas.shape[1]
    radius = max(3, round(min(size) / 85))

    def on_canvas(values: PointsLike | None) -> list[tuple[float, float]]:
        if values is None:
            return []
        array = torch.as_tensor(np.asarray(values, dtype=np.float32)).reshape(-1, 2)
        return [(float(x), float(y)) for x, y in rescale(array, (height, width), size).tolist()]

    starts, ends = on_canvas(handles), on_canvas(targets)
    for start, end in zip(starts, ends, strict=True):
        _arrow(canvas, start, end, radius)
    for anchor in on_canvas(anchors):
        _dot(canvas, anchor, radius, GREEN, WHITE)
    for end in ends:
        _dot(canvas, end, radius, BLUE, WHITE)
    for start in starts:
        _dot(canvas, start, radius, RED, WHITE)
    for point in on_canvas(points):
        _dot(canvas, point, max(2, round(radius * 0.6)), WHITE, RED)
    return canvas


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "H W 3"]], columns: int, *, gap: int = 2
) -> UInt8[np.ndarray, "h w 3"]:
    """Arrange images of equal size in a grid with `columns` columns and white gaps of `gap` px."""
    if not images or columns < 1:
        raise AutodragError(f"contact sheet of {len(images)} images in {columns} columns: both must be at least 1")
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            raise AutodragError(
                f"image {index} has shape {image.shape}, but the first has {images[0].shape}; all sizes must be equal"
            )
        row, column = divmod(index, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


# OpenCV takes fixed-point coordinates; the last `_SHIFT` bits are the fraction.
_SHIFT = 4


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0] * 2**_SHIFT), round(point[1] * 2**_SHIFT)


def _dot(
    canvas: np.ndarray,
    point: tuple[float, float],
    radius: int,
    fill: tuple[int, int, int],
    rim: tuple[int, int, int],
) -> None:
    centre = _fixed(point)
    cv2.circle(canvas, centre, (radius + 1) << _SHIFT, rim, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    cv2.circle(canvas, centre, radius << _SHIFT, fill, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _arrow(canvas: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: int) -> None:
    """Draw an arrow that ends at the rim of the target's dot, unless the dots touch."""
    vector = np.subtract(end, start)
    length = float(np.hypot(*vector))
    if length <= 2 * radius + 2:
        return
    tip = tuple(np.asarray(end) - vector / length * (radius + 1))
    thickness = max(1, radius // 3)
    tip_length = min(0.5, 2 * radius / length)
    cv2.arrowedLine(canvas, _fixed(start), _fixed((tip[0], tip[1])), WHITE, thickness, cv2.LINE_AA, _SHIFT, tip_length)
