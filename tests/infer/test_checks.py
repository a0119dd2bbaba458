"""Every drag that cannot be is refused in one sentence that names the value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autodrag.infer.checks import check_anchors, check_drags, check_mask, check_points

from autodrag.errors import AutodragError, NothingToDo

SIZE = (32, 48)


def test_points_become_arrays() -> None:
    start, end = check_drags([[1, 2], [47.4, -0.5]], [(3, 4), (5, 6)], SIZE)
    assert start.dtype == np.float64
    assert end.tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("handles", "targets", "message"),
    [
        ([], [], "there are no points to drag; give at least one"),
        ([[1, 2]], [], r"the numbers of handles \(1\) and targets \(0\) differ; give them in pairs"),
        ([[1, 2]], [[1, 2], [3, 4]], r"the numbers of handles \(1\) and targets \(2\) differ"),
        ([[float("nan"), 2]], [[1, 2]], "handle nan,2 is not finite"),
        ([[1, 2]], [[1, float("inf")]], "target 1,inf is not finite"),
        ([[48, 2]], [[1, 2]], "handle 48,2 lies outside the image; x goes from 0 to 47, y from 0 to 31"),
        ([[1, -0.6]], [[1, 2]], "handle 1,-0.6 lies outside the image"),
        ([[1, 2]], [[1, 32]], "target 1,32 lies outside the image"),
        ([[5, 5], [5.4, 4.6]], [[1, 1], [2, 2]], "two handles lie on the pixel 5,5"),
        ([1, 2], [1, 2], r"the handles have shape \(2,\); expected \(N, 2\)"),
        ([[1, 2, 3]], [[1, 2]], r"the handles have shape \(1, 3\)"),
        ("abc", [[1, 2]], "the handles are not numbers"),
        ([[1, 2], [3]], [[1, 2]], "the handles are not numbers"),
        ([[1, 2]] * 1001, [[1, 2]], "1001 handles are more than the limit of 1000"),
    ],
)
def test_bad_drags(handles: Any, targets: Any, message: str) -> None:
    with pytest.raises(AutodragError, match=message) as caught:
        check_drags(handles, targets, SIZE)
    assert not isinstance(caught.value, NothingToDo)


def test_nothing_to_do() -> None:
    with pytest.raises(NothingToDo, match="nothing to do: every handle already lies on its target"):
        check_drags([[1, 2], [3, 4]], [[1, 2], [3, 4]], SIZE)
    check_drags([[1, 2], [3, 4]], [[1, 2], [3, 5]], SIZE)  # a point that stays among others that move


def test_anchors() -> None:
    handles = check_points([[5, 5]], SIZE, "handle")
    assert check_anchors(None, handles, SIZE) is None
    assert check_anchors([], handles, SIZE) is None
    assert check_anchors([[1, 1]], handles, SIZE) is not None
    with pytest.raises(AutodragError, match="anchor 5,5 lies on a handle"):
        check_anchors([[5, 5]], handles, SIZE)
    with pytest.raises(AutodragError, match="anchor 99,5 lies outside"):
        check_anchors([[99, 5]], handles, SIZE)


def test_masks() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    assert check_mask(None, SIZE) is None
    with pytest.raises(AutodragError, match="the mask is all False, so that nothing may move"):
        check_mask(mask, SIZE)
    with pytest.raises(AutodragError, match=r"the mask has shape \(48, 32\), and the image \(32, 48\)"):
        check_mask(mask.T, SIZE)
    with pytest.raises(AutodragError, match="the mask holds uint8; expected booleans"):
        check_mask(mask.astype(np.uint8), SIZE)
    mask[0, 0] = True
    kept = check_mask(mask, SIZE)
    mask[0, 0] = False
    assert kept is not None
    assert kept[0, 0]
