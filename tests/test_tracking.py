"""Point tracking: identity grid, exact shifts, confidence, mutual matches and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autodrag import tracking as matching
from autodrag.points import Size, rescale
from autodrag.tracking import Appearance


def appearance(maps: Tensor, points: Tensor, image: Size) -> Appearance:
    """Appearance in a single map."""
    return matching.appearance([maps], points, image)


def follow(maps: Tensor, reference: Appearance, image: Size, **options: object) -> tuple[Tensor, Tensor]:
    return matching.follow([maps], reference, image, **options)  # type: ignore[arg-type]


def match_features(first: Tensor, second: Tensor, points: Tensor, image: Size) -> tuple[Tensor, Tensor]:
    return matching.match_features([first], [second], points, image)


def textured(size: Size, channels: int = 48, seed: int = 0) -> Tensor:
    """A smooth random map (1, C, h, w)."""
    noise = torch.randn(1, channels, size[0], size[1], generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="replicate"), 3, stride=1) * 3


def shift(maps: Tensor, x: int, y: int) -> Tensor:
    """Move the content at (column, row) to (column + x, row + y). New noise fills the uncovered border."""
    moved = maps.roll((y, x), dims=(2, 3))
    fresh = textured((maps.shape[2], maps.shape[3]), maps.shape[1], seed=99)
    rows, columns = torch.arange(maps.shape[2])[:, None], torch.arange(maps.shape[3])
    inside = (rows >= y) & (rows < maps.shape[2] + min(y, 0)) & (columns >= x)
    inside &= columns < maps.shape[3] + min(x, 0)
    return torch.where(inside, moved, fresh)


def centres(cells: list[tuple[int, int]], size: Size, image: Size) -> Tensor:
    """Centres of the cells (column, row) of a map, as image points (1, N, 2)."""
    return rescale(torch.tensor([cells], dtype=torch.float32), size, image)


@pytest.mark.parametrize(("size", "image"), [((16, 16), (16, 16)), ((16, 16), (64, 64)), ((32, 16), (128, 64))])
def test_points_are_found_in_an_unchanged_map(size: Size, image: Size) -> None:
    """All inner cells, for square and rectangular maps, at scales 1 and 4."""
    maps = textured(size)
    points = centres([(x, y) for y in range(2, size[0] - 2) for x in range(2, size[1] - 2)], size, image)
    found, confidence = follow(maps, appearance(maps, points, image), image)
    cell = image[0] / size[0]
    assert (found - points).norm(dim=2).max() < 0.2 * cell
    assert confidence.min() > 0.95


def test_points_at_the_border_are_found() -> None:
    maps = textured((16, 16))
    edge = centres([(0, 0), (15, 0), (7, 15), (0, 9)], (16, 16), (64, 64))
    found, _ = follow(maps, appearance(maps, edge, (64, 64)), (64, 64))
    assert (found - edge).norm(dim=2).max() < 2.0  # half a cell


@settings(max_examples=40)
@given(st.integers(-5, 5), st.integers(-5, 5), st.integers(6, 17), st.integers(6, 17))
def test_shift_is_found_exactly(x: int, y: int, column: int, row: int) -> None:
    maps = textured((24, 24))
    points = centres([(column, row)], (24, 24), (96, 96))
    found, confidence = follow(shift(maps, x, y), appearance(maps, points, (96, 96)), (96, 96))
    expected = points + torch.tensor([4.0 * x, 4.0 * y])
    assert (found - expected).abs().max() < 0.5
    assert confidence.min() > 0.9


def test_confidence_is_low_for_missing_features() -> None:
    maps, other = textured((16, 16)), textured((16, 16), seed=5)
    points = centres([(4, 4), (9, 12)], (16, 16), (64, 64))
    _, missing = follow(other, appearance(maps, points, (64, 64)), (64, 64))
    assert missing.max() < 0.7
    _, present = follow(maps, appearance(maps, points, (64, 64)), (64, 64))
    assert (present - missing).min() > 0.25


def test_nearer_of_two_identical_features_is_chosen() -> None:
    maps = textured((16, 16))
    maps[:, :, :, 8:] = maps[:, :, :, :8]  # the right half repeats the left half
    left, right = (centres([(x, 7)], (16, 16), (64, 64)) for x in (3, 11))
    reference = appearance(maps, left, (64, 64))
    for near in (left, right):
        found, _ = follow(maps, reference, (64, 64), near=near + 2, pull=0.5)
        assert (found - near).norm() < 1.0


def test_gradient_moves_a_feature_to_the_target() -> None:
    """A few gradient steps on the distance move the feature."""
    x = torch.arange(16.0)

    background, feature = 0.3 * textured((16, 16)), torch.randn(48, 1, 1, generator=torch.Generator().manual_seed(4))

    def blob(centre: Tensor) -> Tensor:
        row = torch.exp(-(x - 8.0).square() / 4)[:, None]
        return background + feature * row * torch.exp(-(x - centre).square() / 4)

    reference = appearance(blob(torch.tensor(6.0)), torch.tensor([[[6.0, 8.0]]]), (16, 16))
    position = torch.tensor(6.0, requires_grad=True)
    for _ in range(30):
        found, _ = follow(blob(position), reference, (16, 16))
        (gradient,) = torch.autograd.grad((found[0, 0, 0] - 8.0).square(), position)
        position = (position - 0.1 * gradient).detach().requires_grad_()
    assert float(position.detach()) == pytest.approx(8.0, abs=0.6)  # it started at distance 2


def test_batch_samples_are_independent() -> None:
    maps = torch.cat([textured((16, 16)), textured((16, 16), seed=1)])
    points = centres([(4, 4), (9, 12)], (16, 16), (64, 64)).expand(2, -1, -1)
    found, confidence = follow(maps.flip(0), appearance(maps, points, (64, 64)), (64, 64))
    single, single_confidence = follow(maps[:1], appearance(maps[1:], points[1:], (64, 64)), (64, 64))
    torch.testing.assert_close(found[1:], single, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(confidence[1:], single_confidence, atol=1e-4, rtol=1e-4)


def test_only_visible_features_match_mutually() -> None:
    maps = textured((24, 24))
    moved = shift(maps, 3, -2)
    moved[:, :, :8, :8] = textured((8, 8), seed=7)  # occludes this corner
    visible = centres([(12, 14), (16, 18)], (24, 24), (96, 96))
    hidden = centres([(2, 6), (3, 7)], (24, 24), (96, 96))  # would be at (5, 4), (6, 5)
    found, mutual = match_features(maps, moved, torch.cat([visible, hidden], dim=1), (96, 96))
    assert mutual[0, :2].all()
    torch.testing.assert_close(found[:, :2], visible + torch.tensor([12.0, -8.0]), atol=0.5, rtol=0)
    assert not mutual[0, 2:].any()


def test_match_in_one_direction_is_not_mutual() -> None:
    """Two features of the first map match one feature of the second. Only the better match is mutual."""
    maps = textured((24, 24))
    first = maps.clone()
    first[:, :, 2:7, 2:7] = maps[:, :, 12:17, 12:17] + 0.2 * textured((5, 5), seed=3)  # a noisy copy of another region
    second = maps.clone()
    second[:, :, 2:7, 2:7] = textured((5, 5), seed=4)
    both = centres([(4, 4), (14, 14)], (24, 24), (24, 24))
    found, mutual = match_features(first, second, both, (24, 24))
    assert (found - both[:, 1]).norm(dim=2).max() < 1.0
    assert mutual.tolist() == [[False, True]]


def test_confidence_does_not_depend_on_image_size() -> None:
    """The same map for an image four times as large: positions scale, confidences do not change."""
    maps, moved = textured((16, 16)), shift(textured((16, 16)), 2, 1)
    small = centres([(5, 6)], (16, 16), (16, 16))
    large = centres([(5, 6)], (16, 16), (64, 64))
    a, confidence_a = follow(moved, appearance(maps, small, (16, 16)), (16, 16))
    b, confidence_b = follow(moved, appearance(maps, large, (64, 64)), (64, 64))
    torch.testing.assert_close(rescale(a, (16, 16), (64, 64)), b, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(confidence_a, confidence_b, atol=1e-4, rtol=1e-4)


def pyramid(maps: Tensor) -> list[Tensor]:
    """The map at a quarter, a half and its full size."""
    return [F.avg_pool2d(maps, 4), F.avg_pool2d(maps, 2), maps]


@settings(max_examples=20)
@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(12, 50), st.integers(12, 50))
def test_pyramid_finds_a_shift_with_the_accuracy_of_the_finest_map(x: int, y: int, column: int, row: int) -> None:
    """Cells of the coarsest map are 4 px wide."""
    maps = textured((64, 64))
    points = centres([(column, row)], (64, 64), (64, 64))
    reference = matching.appearance(pyramid(maps), points, (64, 64))
    found, confidence = matching.follow(pyramid(shift(maps, x, y)), reference, (64, 64))
    expected = points + torch.tensor([float(x), float(y)])
    assert (found - expected).abs().max() < 0.5
    assert confidence.min() > 0.4


def test_coarse_maps_resolve_repetitions_in_the_finest_map() -> None:
    """The fine texture repeats; the coarse texture does not."""
    fine = textured((8, 8), channels=8).repeat(1, 1, 4, 4)
    coarse = textured((16, 16), channels=8, seed=2)
    points = centres([(5, 6), (21, 14), (13, 22)], (32, 32), (32, 32))
    reference = matching.appearance([coarse, fine], points, (32, 32))
    found, _ = matching.follow([coarse, fine], reference, (32, 32))
    assert (found - points).norm(dim=2).max() < 1.0


def test_positions_are_the_same_in_autocast() -> None:
    """Positions depend on small differences between cosines, which bf16 cannot represent."""
    maps, points = textured((16, 16)), centres([(5, 6), (9, 3)], (16, 16), (64, 64))
    plain = follow(shift(maps, 2, 1), appearance(maps, points, (64, 64)), (64, 64))[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = follow(shift(maps, 2, 1), appearance(maps, points, (64, 64)), (64, 64))[0]
    assert torch.equal(plain, cast)


def test_take_reorders_points() -> None:
    maps, points = textured((16, 16)), centres([(5, 6), (9, 3), (2, 2)], (16, 16), (64, 64))
    order = torch.tensor([[2, 0, 1]])
    taken = appearance(maps, points, (64, 64)).take(order)
    again = appearance(maps, points[:, order[0]], (64, 64))
    torch.testing.assert_close(taken.features, again.features)
    torch.testing.assert_close(taken.scale, again.scale)
