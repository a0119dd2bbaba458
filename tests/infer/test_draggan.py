"""The losses against plain versions on maps resized to the image, and against known motions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autodrag.infer.motion import fixed_region, held_points, motion_supervision, movable_share

IMAGE = (24, 24)


def maps(seed: int = 0, size: int = 12) -> torch.Tensor:
    return torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(seed))


def test_motion_supervision_is_the_published_one() -> None:
    """DragGAN's code: resize the map to the image, mean L1 between a disk and the disk one unit vector further on."""
    points = torch.tensor([[10.0, 9.0], [15.0, 14.0], [4.0, 4.0]])
    targets = torch.tensor([[16.0, 13.0], [15.0, 8.0], [4.5, 4.0]])  # the last one is within 1 px: left out
    big = F.interpolate(maps(), IMAGE, mode="bilinear", align_corners=False)
    expected = torch.zeros([])
    for p, t in zip(points[:2], targets[:2], strict=True):
        direction = (t - p) / (t - p).norm()
        terms = []
        for row in range(24):
            for column in range(24):
                if (column - p[0]) ** 2 + (row - p[1]) ** 2 < 9:
                    x, y = column + direction[0], row + direction[1]
                    x0, y0 = int(x.floor()), int(y.floor())
                    a, b = x - x0, y - y0
                    value = (1 - b) * ((1 - a) * big[0, :, y0, x0] + a * big[0, :, y0, x0 + 1])
                    value = value + b * ((1 - a) * big[0, :, y0 + 1, x0] + a * big[0, :, y0 + 1, x0 + 1])
                    terms.append((big[0, :, row, column] - value).abs())
        expected = expected + torch.stack(terms).mean()
    assert float(motion_supervision(maps(), points, targets, IMAGE, radius=3)) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_the_source_patch_is_constant() -> None:
    """Only the shifted place may get a gradient: the handle's features pull, they are not pulled."""
    features = maps(size=24).requires_grad_()
    motion_supervision(features, torch.tensor([[10.0, 10.0]]), torch.tensor([[20.0, 10.0]]), IMAGE, radius=1).backward()
    assert features.grad is not None
    touched = features.grad.abs().sum(dim=(0, 1)).nonzero().tolist()
    assert touched == [[10, 11]]  # (row, column): one pixel further to the right


def test_fixed_region_counts_only_what_may_not_move() -> None:
    before, after = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True  # the left half may move
    movable = movable_share(mask, (4, 4))
    assert movable is not None
    assert float(fixed_region(after, before, movable)) == pytest.approx(0.5)
    after[..., 2:] = 0  # now only the left half changed
    assert float(fixed_region(after, before, movable)) == 0.0
    assert movable_share(None, (4, 4)) is None
    assert movable_share(torch.ones(8, 8, dtype=torch.bool), (4, 4)) is None


def test_held_points() -> None:
    anchors = torch.tensor([[6.0, 6.0]])
    assert float(held_points(maps(), maps(), anchors, IMAGE, 2)) == 0.0
    changed = maps()
    changed[:, :, 9:, 9:] += 5  # far away from the anchor
    assert float(held_points(changed, maps(), anchors, IMAGE, 2)) == 0.0
    changed[:, :, :6, :6] += 5
    assert float(held_points(changed, maps(), anchors, IMAGE, 2)) > 1.0
