"""The coordinate convention, checked against exact geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from autodrag.points import disk, rescale, resize_mask, sample, sample_resized, side_by_side, square

SIZES = st.tuples(st.sampled_from([4, 8, 16, 31, 64, 512]), st.sampled_from([4, 8, 16, 31, 64, 512]))


def test_worked_values() -> None:
    assert rescale(torch.tensor([[0.0, 0.0]]), (64, 64), (128, 128)).tolist() == [[0.5, 0.5]]
    assert rescale(torch.tensor([[-0.5, 63.5]]), (64, 64), (128, 256)).tolist() == [[-0.5, 127.5]]


@given(SIZES, SIZES, st.floats(-1, 600), st.floats(-1, 600))
def test_rescaling_is_invertible(a: tuple[int, int], b: tuple[int, int], x: float, y: float) -> None:
    point = torch.tensor([[x, y]], dtype=torch.float64)
    assert torch.allclose(rescale(rescale(point, a, b), b, a), point, atol=1e-9)


def identity_grid(height: int, width: int) -> torch.Tensor:
    """A map whose value at each pixel is the pixel's (x, y)."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return torch.stack([x, y])[None]


@settings(deadline=None)
@given(st.floats(0, 30), st.floats(0, 14))
def test_sampling_the_identity_grid_gives_the_point(x: float, y: float) -> None:
    point = torch.tensor([[[x, y]]], dtype=torch.float64)
    assert torch.allclose(sample(identity_grid(15, 31), point, (15, 31))[0, :, 0], point[0, 0], atol=1e-9)


@settings(deadline=None)
@given(st.floats(2, 28), st.floats(2, 12))
def test_sampling_a_smaller_map_follows_the_convention(x: float, y: float) -> None:
    """Sampling an identity grid of a third of the size at image points gives the rescaled points."""
    point = torch.tensor([[[x, y]]], dtype=torch.float64)
    found = sample(identity_grid(5, 10), point, (15, 30))[0, :, 0]
    assert torch.allclose(found, rescale(point[0, 0], (15, 30), (5, 10)), atol=1e-9)


def test_points_outside_get_the_border_value() -> None:
    point = torch.tensor([[[-5.0, 100.0]]], dtype=torch.float64)
    assert sample(identity_grid(8, 8), point, (8, 8))[0, :, 0].tolist() == [0.0, 7.0]


def test_sample_resized_equals_resizing_then_sampling() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    image = (20, 28)
    points = torch.rand(1, 50, 2, dtype=torch.float64) * torch.tensor([27.0, 19.0])
    big = F.interpolate(maps, image, mode="bilinear", align_corners=False)
    assert torch.allclose(sample_resized(maps, points, image), sample(big, points, image), atol=1e-9)
    whole = points.round()
    assert torch.allclose(sample(maps, whole, image), sample(big, whole, image), atol=1e-9)


def test_gradient_of_sampling_is_the_bilinear_weights() -> None:
    maps = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    sample(maps, torch.tensor([[[1.25, 2.0]]], dtype=torch.float64), (4, 4)).sum().backward()
    assert maps.grad is not None
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[2, 1], expected[2, 2] = 0.75, 0.25
    assert torch.allclose(maps.grad[0, 0], expected)


def test_disk_and_square() -> None:
    assert disk(1).tolist() == [[0.0, 0.0]]
    assert len(disk(3)) == sum(x * x + y * y < 9 for x in range(-3, 4) for y in range(-3, 4))
    assert len(disk(0)) == 1
    assert square(1).tolist() == [[x, y] for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)]
    assert square(1, 0.5).abs().max() == 0.5


@pytest.mark.parametrize("size", [(4, 4), (16, 16), (2, 8)])
def test_resized_masks_keep_their_coverage(size: tuple[int, int]) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True
    share = resize_mask(mask, size)
    assert share.shape == size
    assert float(share.mean()) == pytest.approx(0.5)
    assert float(share[0, 0]) == 1.0 and float(share[0, -1]) == 0.0


def test_side_by_side_aligns_maps() -> None:
    """Away from the border, a ramp along x (px of the image) has the same values in both maps."""
    image = (16, 16)
    coarse = ((torch.arange(4.0) + 0.5) * 4 - 0.5).expand(1, 1, 4, 4)
    fine = ((torch.arange(8.0) + 0.5) * 2 - 0.5).expand(1, 2, 8, 8)
    both = side_by_side([coarse, fine])
    assert both.shape == (1, 3, 8, 8)
    values = sample(both, torch.tensor([[[6.0, 3.0], [9.5, 12.0]]]), image)[0]
    assert torch.allclose(values, torch.tensor([[6.0, 9.5]]).expand(3, 2), atol=1e-5)
    assert side_by_side([coarse]) is coarse
