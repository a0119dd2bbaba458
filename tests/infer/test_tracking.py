"""The tracker against a plain search over a map resized to the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from autodrag.infer.tracking import follow_flow, likeness, take_references, track

IMAGE = (24, 24)
CENTER = torch.zeros(1, 2)


def maps(seed: int = 0, size: int = 12) -> torch.Tensor:
    return torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_search_is_the_published_one(norm: str) -> None:
    """DragGAN: resize to the image, compare the window with the feature of the rounded handle, take the nearest."""
    handles = torch.tensor([[5.0, 7.0], [22.0, 1.0]])
    last = torch.tensor([[6.4, 8.6], [21.0, 2.0]])
    references = take_references(maps(), handles, IMAGE, offsets=CENTER, norm=norm)  # type: ignore[arg-type]
    found, _ = track(maps(1), references, last, IMAGE, radius=3, norm=norm)  # type: ignore[arg-type]
    before, after = (F.interpolate(m, IMAGE, mode="bilinear", align_corners=False)[0] for m in (maps(), maps(1)))
    for k in range(2):
        wanted = before[:, int(handles[k, 1]), int(handles[k, 0])]
        x, y = (int(v) for v in last[k].round())
        best = None
        for row in range(max(0, y - 3), min(24, y + 4)):
            for column in range(max(0, x - 3), min(24, x + 4)):
                difference = after[:, row, column] - wanted
                d = float(difference.abs().sum() if norm == "l1" else difference.norm())
                if best is None or d < best[0]:
                    best = (d, column, row)
        assert best is not None
        assert found[k].tolist() == [best[1], best[2]]


@pytest.mark.parametrize("shift", [(3, 0), (-2, 4), (0, 0)])
def test_a_moved_pattern_is_found_where_it_went(shift: tuple[int, int]) -> None:
    picture = maps(size=24)
    moved = picture.roll((shift[1], shift[0]), dims=(2, 3))
    handle = torch.tensor([[11.0, 12.0]])
    references = take_references(picture, handle, IMAGE, offsets=CENTER, norm="l2")
    found, confidence = track(moved, references, handle, IMAGE, radius=5, norm="l2")
    assert found.tolist() == [[11.0 + shift[0], 12.0 + shift[1]]]
    assert float(confidence) == pytest.approx(1.0, abs=1e-5)


def test_something_else_has_no_confidence() -> None:
    handle = torch.tensor([[11.0, 12.0]])
    references = take_references(maps(), handle, IMAGE, offsets=CENTER, norm="l2")
    _, confidence = track(maps(5) + 4.0, references, handle, IMAGE, radius=2, norm="l2")
    assert float(confidence) == 0.0


def test_the_window_ends_at_the_border() -> None:
    handle = torch.tensor([[0.0, 23.0]])
    references = take_references(maps(), handle, IMAGE, offsets=CENTER, norm="l2")
    found, _ = track(maps(3), references, handle, IMAGE, radius=6, norm="l2")
    assert bool(((found >= 0) & (found <= 23)).all())


def test_points_do_not_depend_on_their_order() -> None:
    handles = torch.tensor([[5.0, 7.0], [20.0, 3.0], [9.0, 15.0]])
    order = torch.tensor([2, 0, 1])
    results = []
    for h in (handles, handles[order]):
        references = take_references(maps(), h, IMAGE, offsets=CENTER, norm="l2")
        results.append(track(maps(1), references, h, IMAGE, radius=4, norm="l2"))
    assert torch.equal(results[0][0][order], results[1][0])
    assert torch.allclose(results[0][1][order], results[1][1])


def test_likeness_is_the_confidence_of_the_place_that_was_found() -> None:
    handles = torch.tensor([[5.0, 7.0], [20.0, 3.0]])
    references = take_references(maps(), handles, IMAGE, offsets=CENTER, norm="l2")
    found, confidence = track(maps(1), references, handles, IMAGE, radius=4, norm="l2")
    assert torch.allclose(likeness(maps(1), references, found, IMAGE, "l2"), confidence)
    assert likeness(maps(), references, handles, IMAGE, "l2").tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_a_flow_takes_the_handles_along_and_not_out_of_the_image() -> None:
    before, after = np.zeros((24, 24, 3), np.uint8), np.ones((24, 24, 3), np.uint8)
    y, x = np.mgrid[:24, :24].astype(np.float32)

    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        assert first is before and second is after
        return np.stack([0.5 * x, -y], axis=2)

    handles = torch.tensor([[5.0, 7.0], [8.5, 3.5], [22.0, 3.0]])
    found = follow_flow(flow, before, after, handles)
    assert found.tolist() == [[7.5, 0.0], [12.75, 0.0], [23.0, 0.0]]
