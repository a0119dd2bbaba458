"""Finding points again: an identity grid, exact shifts, confidence, mutual matches, and a gradient that pulls."""

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
    """Of one map alone."""
    return matching.appearance([maps], points, image)


def follow(maps: Tensor, what: Appearance, image: Size, **options: object) -> tuple[Tensor, Tensor]:
    return matching.follow([maps], what, image, **options)  # type: ignore[arg-type]


def match_features(first: Tensor, second: Tensor, points: Tensor, image: Size) -> tuple[Tensor, Tensor]:
    return matching.match_features([first], [second], points, image)


def textured(size: Size, channels: int = 48, seed: int = 0) -> Tensor:
    """A smooth random map (1, C, h, w)."""
    noise = torch.randn(1, channels, size[0], size[1], generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="replicate"), 3, stride=1) * 3


def shift(maps: Tensor, x: int, y: int) -> Tensor:
    """What lay at (c, r) now lies at (c + x, r + y); fresh noise comes in."""
    moved = maps.roll((y, x), dims=(2, 3))
    fresh = textured((maps.shape[2], maps.shape[3]), maps.shape[1], seed=99)
    rows, columns = torch.arange(maps.shape[2])[:, None], torch.arange(maps.shape[3])
    inside = (rows >= y) & (rows < maps.shape[2] + min(y, 0)) & (columns >= x)
    inside &= columns < maps.shape[3] + min(x, 0)
    return torch.where(inside, moved, fresh)


def centres(cells: list[tuple[int, int]], size: Size, image: Size) -> Tensor:
    """Cells (column, row) of a map as points of the image, (1, N, 2)."""
    return rescale(torch.tensor([cells], dtype=torch.float32), size, image)


@pytest.mark.parametrize(("size", "image"), [((16, 16), (16, 16)), ((16, 16), (64, 64)), ((32, 16), (128, 64))])
def test_points_are_found_where_they_are(size: Size, image: Size) -> None:
    """An identity grid: every cell of the map, at scales 1 and 4, square and not."""
    maps = textured(size)
    points = centres([(x, y) for y in range(2, size[0] - 2) for x in range(2, size[1] - 2)], size, image)
    found, sure = follow(maps, appearance(maps, points, image), image)
    cell = image[0] / size[0]
    assert (found - points).norm(dim=2).max() < 0.2 * cell
    assert sure.min() > 0.95


def test_points_at_the_border_are_found_too() -> None:
    maps = textured((16, 16))
    edge = centres([(0, 0), (15, 0), (7, 15), (0, 9)], (16, 16), (64, 64))
    found, _ = follow(maps, appearance(maps, edge, (64, 64)), (64, 64))
    assert (found - edge).norm(dim=2).max() < 2.0  # half a cell


@settings(max_examples=40)
@given(st.integers(-5, 5), st.integers(-5, 5), st.integers(6, 17), st.integers(6, 17))
def test_a_shift_is_found_exactly(x: int, y: int, column: int, row: int) -> None:
    maps = textured((24, 24))
    points = centres([(column, row)], (24, 24), (96, 96))
    found, sure = follow(shift(maps, x, y), appearance(maps, points, (96, 96)), (96, 96))
    expected = points + torch.tensor([4.0 * x, 4.0 * y])
    assert (found - expected).abs().max() < 0.5
    assert sure.min() > 0.9


def test_what_is_gone_is_not_found_with_confidence() -> None:
    maps, other = textured((16, 16)), textured((16, 16), seed=5)
    points = centres([(4, 4), (9, 12)], (16, 16), (64, 64))
    _, sure = follow(other, appearance(maps, points, (64, 64)), (64, 64))
    assert sure.max() < 0.7
    _, known = follow(maps, appearance(maps, points, (64, 64)), (64, 64))
    assert (known - sure).min() > 0.25


def test_of_two_places_alike_the_nearer_is_taken() -> None:
    maps = textured((16, 16))
    maps[:, :, :, 8:] = maps[:, :, :, :8]  # the right half repeats the left one
    left, right = (centres([(x, 7)], (16, 16), (64, 64)) for x in (3, 11))
    what = appearance(maps, left, (64, 64))
    for near in (left, right):
        found, _ = follow(maps, what, (64, 64), near=near + 2, pull=0.5)
        assert (found - near).norm() < 1.0


def test_the_gradient_pulls_a_feature_to_where_the_point_should_be() -> None:
    """A few steps down the distance move the feature itself."""
    x = torch.arange(16.0)

    ground, thing = 0.3 * textured((16, 16)), torch.randn(48, 1, 1, generator=torch.Generator().manual_seed(4))

    def blob(at: Tensor) -> Tensor:
        row = torch.exp(-(x - 8.0).square() / 4)[:, None]
        return ground + thing * row * torch.exp(-(x - at).square() / 4)

    what = appearance(blob(torch.tensor(6.0)), torch.tensor([[[6.0, 8.0]]]), (16, 16))
    place = torch.tensor(6.0, requires_grad=True)
    for _ in range(30):
        found, _ = follow(blob(place), what, (16, 16))
        (gradient,) = torch.autograd.grad((found[0, 0, 0] - 8.0).square(), place)
        place = (place - 0.1 * gradient).detach().requires_grad_()
    assert float(place.detach()) == pytest.approx(8.0, abs=0.6)  # it started 2 away


def test_samples_of_a_batch_do_not_mix() -> None:
    maps = torch.cat([textured((16, 16)), textured((16, 16), seed=1)])
    points = centres([(4, 4), (9, 12)], (16, 16), (64, 64)).expand(2, -1, -1)
    found, sure = follow(maps.flip(0), appearance(maps, points, (64, 64)), (64, 64))
    alone, lone = follow(maps[:1], appearance(maps[1:], points[1:], (64, 64)), (64, 64))
    torch.testing.assert_close(found[1:], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sure[1:], lone, atol=1e-4, rtol=1e-4)


def test_matches_are_mutual_where_the_thing_is_there_and_not_where_it_is_not() -> None:
    maps = textured((24, 24))
    moved = shift(maps, 3, -2)
    moved[:, :, :8, :8] = textured((8, 8), seed=7)  # something else covers this corner
    seen = centres([(12, 14), (16, 18)], (24, 24), (96, 96))
    hidden = centres([(2, 6), (3, 7)], (24, 24), (96, 96))  # would be at (5, 4), (6, 5)
    found, mutual = match_features(maps, moved, torch.cat([seen, hidden], dim=1), (96, 96))
    assert mutual[0, :2].all()
    torch.testing.assert_close(found[:, :2], seen + torch.tensor([12.0, -8.0]), atol=0.5, rtol=0)
    assert not mutual[0, 2:].any()


def test_a_match_that_does_not_lead_back_is_not_mutual() -> None:
    """Two places of the first map look like one of the second: only the better one gets it."""
    maps = textured((24, 24))
    first = maps.clone()
    first[:, :, 2:7, 2:7] = maps[:, :, 12:17, 12:17] + 0.2 * textured((5, 5), seed=3)  # a poor copy of another place
    second = maps.clone()
    second[:, :, 2:7, 2:7] = textured((5, 5), seed=4)
    both = centres([(4, 4), (14, 14)], (24, 24), (24, 24))
    found, mutual = match_features(first, second, both, (24, 24))
    assert (found - both[:, 1]).norm(dim=2).max() < 1.0
    assert mutual.tolist() == [[False, True]]


def test_confidence_and_position_have_no_image_scale() -> None:
    """The same map for an image four times as large: positions scale, confidences stay."""
    maps, moved = textured((16, 16)), shift(textured((16, 16)), 2, 1)
    small = centres([(5, 6)], (16, 16), (16, 16))
    large = centres([(5, 6)], (16, 16), (64, 64))
    a, sure_a = follow(moved, appearance(maps, small, (16, 16)), (16, 16))
    b, sure_b = follow(moved, appearance(maps, large, (64, 64)), (64, 64))
    torch.testing.assert_close(rescale(a, (16, 16), (64, 64)), b, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sure_a, sure_b, atol=1e-4, rtol=1e-4)


def pyramid(maps: Tensor) -> list[Tensor]:
    """A fine map and the two of half and a quarter its size that belong to it."""
    return [F.avg_pool2d(maps, 4), F.avg_pool2d(maps, 2), maps]


@settings(max_examples=20)
@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(12, 50), st.integers(12, 50))
def test_several_maps_find_a_shift_to_a_part_of_the_finest_cell(x: int, y: int, column: int, row: int) -> None:
    """By the coarse maps alone it would be known to a part of theirs, four px."""
    maps = textured((64, 64))
    points = centres([(column, row)], (64, 64), (64, 64))
    what = matching.appearance(pyramid(maps), points, (64, 64))
    found, sure = matching.follow(pyramid(shift(maps, x, y)), what, (64, 64))
    expected = points + torch.tensor([float(x), float(y)])
    assert (found - expected).abs().max() < 0.5
    assert sure.min() > 0.4


def test_coarse_maps_tell_places_apart_that_look_alike_in_the_finest() -> None:
    """A fine texture that repeats, on a coarse one that does not."""
    fine = textured((8, 8), channels=8).repeat(1, 1, 4, 4)
    coarse = textured((16, 16), channels=8, seed=2)
    points = centres([(5, 6), (21, 14), (13, 22)], (32, 32), (32, 32))
    what = matching.appearance([coarse, fine], points, (32, 32))
    found, _ = matching.follow([coarse, fine], what, (32, 32))
    assert (found - points).norm(dim=2).max() < 1.0


def test_a_positions_gradient_is_the_same_in_autocast() -> None:
    """Positions are made of small differences of cosines, which bf16 does not have."""
    maps, points = textured((16, 16)), centres([(5, 6), (9, 3)], (16, 16), (64, 64))
    plain = follow(shift(maps, 2, 1), appearance(maps, points, (64, 64)), (64, 64))[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = follow(shift(maps, 2, 1), appearance(maps, points, (64, 64)), (64, 64))[0]
    assert torch.equal(plain, cast)


def test_taking_points_in_another_order() -> None:
    maps, points = textured((16, 16)), centres([(5, 6), (9, 3), (2, 2)], (16, 16), (64, 64))
    order = torch.tensor([[2, 0, 1]])
    taken = appearance(maps, points, (64, 64)).take(order)
    again = appearance(maps, points[:, order[0]], (64, 64))
    torch.testing.assert_close(taken.features, again.features)
    torch.testing.assert_close(taken.scale, again.scale)
