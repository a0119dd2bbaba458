"""What must hold before a drag is computed: points, anchors and mask of the right number, place and size; settings that
exist and go together; a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autodrag.edits import Parameters
from autodrag.errors import AutodragError, NothingToDo
from autodrag.infer.predict import PredictConfig
from autodrag.infer.settings import RefineConfig
from autodrag.points import Size

MAX_POINTS = 1000

PointsLike = Sequence[Sequence[float]] | np.ndarray | Tensor
"""N points as [[x, y], ...] or an (N, 2) array or tensor, px of the output image."""


def check_points(values: object, image: Size, name: str) -> np.ndarray:
    """`values` as (N, 2) float64 points inside an image (H, W); `name` is what errors call them."""
    try:
        points = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AutodragError(f"the {name}s are not numbers ({error}); expected [[x, y], ...] in pixels") from error
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise AutodragError(f"the {name}s have shape {points.shape}; expected (N, 2), a list of [x, y] in pixels")
    if len(points) > MAX_POINTS:
        raise AutodragError(f"{len(points)} {name}s are more than the limit of {MAX_POINTS}; give fewer")
    height, width = image
    for x, y in points.tolist():
        if not (np.isfinite(x) and np.isfinite(y)):
            raise AutodragError(f"{name} {_text((x, y))} is not finite; expected x,y in pixels")
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise AutodragError(
                f"{name} {_text((x, y))} lies outside the image; x goes from 0 to {width - 1}, y from 0 to {height - 1}"
            )
    return points


def check_drags(handles: object, targets: object, image: Size) -> tuple[np.ndarray, np.ndarray]:
    """Handles and targets as (N, 2) arrays, N at least 1.

    Raises:
        NothingToDo: every handle already lies on its target.
        AutodragError: anything else that cannot be dragged, in one sentence.
    """
    start, end = check_points(handles, image, "handle"), check_points(targets, image, "target")
    if len(start) == 0 and len(end) == 0:
        raise AutodragError("there are no points to drag; give at least one handle and its target")
    if len(start) != len(end):
        raise AutodragError(
            f"the numbers of handles ({len(start)}) and targets ({len(end)}) differ; give them in pairs"
        )
    seen: set[tuple[int, ...]] = set()
    for point in start:
        pixel = _pixel(point)
        if pixel in seen:
            raise AutodragError(f"two handles lie on the pixel {_text(pixel)}; remove one of them")
        seen.add(pixel)
    if np.array_equal(start, end):
        raise NothingToDo("nothing to do: every handle already lies on its target")
    return start, end


def check_anchors(anchors: object, handles: np.ndarray, image: Size) -> np.ndarray | None:
    """Anchors as (M, 2), None where there are none; an anchor may not share a pixel with a handle."""
    if anchors is None:
        return None
    points = check_points(anchors, image, "anchor")
    pixels = {_pixel(handle) for handle in handles}
    for point in points:
        if _pixel(point) in pixels:
            raise AutodragError(f"anchor {_text(point)} lies on a handle; a point cannot both stay and move")
    return points if len(points) else None


def check_mask(mask: object, image: Size) -> np.ndarray | None:
    """A mask as (H, W) bool, True = may move; None stays None."""
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise AutodragError(f"the mask holds {array.dtype}; expected booleans, True = may move")
    if array.shape != image:
        raise AutodragError(f"the mask has shape {array.shape}, and the image {image} (height, width); resize the mask")
    if not array.any():
        raise AutodragError("the mask is all False, so that nothing may move; set True where the image may change")
    return array.copy()


def check_parameters(parameters: Parameters, image: Size) -> tuple[RefineConfig, PredictConfig]:
    """The configs of refiner and predictor that an edit's parameters ask for."""
    settings = parameters.overrides()
    rounds = settings.pop("rounds", None)
    try:
        config = dataclasses.replace(RefineConfig.preset(parameters.preset, image), **settings)
        return config, PredictConfig() if rounds is None else PredictConfig(rounds=rounds)
    except (ValueError, TypeError, KeyError) as error:
        raise AutodragError(f"the settings cannot be used: {str(error).rstrip('.')}") from error


def check_device(name: str | None) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; None takes CUDA where it is available."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AutodragError(f"device {name!r} cannot be used here; try --device cpu") from error
    return device


def _pixel(point: Sequence[float] | np.ndarray) -> tuple[int, int]:
    return int(np.floor(point[0] + 0.5)), int(np.floor(point[1] + 0.5))


def _text(point: Sequence[float] | np.ndarray) -> str:
    return f"{point[0]:g},{point[1]:g}"
