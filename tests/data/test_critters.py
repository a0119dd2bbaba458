"""The critters renderer: geometry, and consistency of mirrored, batched and resized renders."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch

from autodrag.data.critters import (
    LANDMARKS,
    PARTS,
    Factors,
    _anchors,
    locate,
    mirror,
    mirror_landmarks,
    render,
    sample_factors,
)
from autodrag.data.critters_factors import RANGES
from autodrag.data.critters_sdf import distance, part_distances, settle, shape_of
from autodrag.errors import AutodragError

SIZE = 32


def draw(count: int, seed: int = 0) -> Factors:
    return sample_factors(count, torch.Generator().manual_seed(seed))


def facing(count: int, seed: int = 0) -> Factors:
    """Critters in the image centre that face the camera with closed mouths."""
    f = draw(count, seed)
    zero = torch.zeros(count)
    return replace(f, yaw=zero, pitch=zero, roll=zero, x=zero, y=zero, mouth_open=zero, gaze_x=zero, light_azimuth=zero)


def at(landmarks: torch.Tensor, name: str) -> torch.Tensor:
    return landmarks[:, LANDMARKS.index(name)]


def test_shapes_and_ranges() -> None:
    drawn = render(draw(3), size=SIZE)
    assert drawn.images.shape == (3, 3, SIZE, SIZE)
    assert drawn.landmarks.shape == (3, len(LANDMARKS), 2)
    assert drawn.visible.shape == (3, len(LANDMARKS))
    assert drawn.parts.shape == (3, SIZE, SIZE)
    assert drawn.images.isfinite().all()
    assert drawn.images.min() >= -1 and drawn.images.max() <= 1
    assert drawn.images.std(dim=(2, 3)).min() > 0.02
    assert drawn.parts.max() < len(PARTS)


def test_factors_lie_in_their_ranges_and_vary() -> None:
    f = draw(400)
    for name, (low, high) in RANGES.items():
        values = getattr(f, name)
        assert values.shape == (400,)
        assert low - 1e-5 <= values.min() and values.max() <= high + 1e-5
        assert values.std() > 0.1 * (high - low)
    for name in ("fur_color", "mark_color", "iris_color", "top_color", "bottom_color"):
        assert getattr(f, name).min() >= 0 and getattr(f, name).max() <= 1


def test_factors_are_independent() -> None:
    f = draw(3000)
    table = torch.stack([getattr(f, name) for name in RANGES])
    assert (torch.corrcoef(table) - torch.eye(len(RANGES))).abs().max() < 0.09


def test_image_depends_only_on_the_seed() -> None:
    first, again = render(draw(2, 5), size=16), render(draw(2, 5), size=16)
    for field in fields(first):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    assert not torch.equal(draw(2, 5).yaw, draw(2, 6).yaw)


def test_locate_equals_the_landmarks_of_render() -> None:
    f = draw(2)
    drawn, (landmarks, visible) = render(f, size=16), locate(f, size=16)
    assert torch.equal(drawn.landmarks, landmarks)
    assert torch.equal(drawn.visible, visible)


def test_batch_equals_single_renders() -> None:
    f = draw(2)
    together = render(f, size=16, chunk=2)
    alone = [render(f[i : i + 1], size=16) for i in range(2)]
    torch.testing.assert_close(together.images, torch.cat([r.images for r in alone]), atol=2e-3, rtol=0)
    torch.testing.assert_close(together.landmarks, torch.cat([r.landmarks for r in alone]), atol=1e-3, rtol=0)
    assert torch.equal(together.visible, torch.cat([r.visible for r in alone]))
    assert (together.parts != torch.cat([r.parts for r in alone])).float().mean() < 4e-3


def test_order_of_the_first_landmarks() -> None:
    """Older landmark nets and arrays depend on this order."""
    assert LANDMARKS[:11] == (
        "left_eye", "right_eye", "nose", "chin", "mouth_left", "mouth_right", "left_ear_tip", "right_ear_tip",
        "left_cheek", "right_cheek", "crown",
    )  # fmt: skip


def test_manes_are_absent_or_clearly_visible() -> None:
    mane = draw(2000).mane
    assert (mane > 0).float().mean() == pytest.approx(0.3, abs=0.04)
    assert mane[mane > 0].min() >= 0.5
    parts = render(replace(facing(2), mane=torch.tensor([0.0, 0.5])), size=64, supersample=1).parts
    bare, least = (parts == PARTS.index("mane")).flatten(1).sum(1).tolist()
    assert bare == 0 and least > 100


def test_eyes_are_visible_in_90_percent_of_facing_heads() -> None:
    parts = render(facing(20), size=64, supersample=1).parts == PARTS.index("eye")
    halves = torch.stack((parts[:, :, :32], parts[:, :, 32:]), dim=1).flatten(2).sum(2)
    assert (halves.min(1).values >= 15).float().mean() >= 0.9


def test_open_mouth_has_no_holes() -> None:
    """Rays into a narrow mouth need many steps. Rays with too few steps would show the background."""
    f = replace(facing(4), mouth_open=torch.tensor([0.1, 0.3, 0.6, 1.0]), yaw=torch.full((4,), -30.0))
    drawn = render(f, size=64, supersample=1).parts
    for part in drawn:
        head = ((part > 0) & (part < PARTS.index("body"))).numpy()
        outside = np.pad(~head, 1, constant_values=True).astype(np.uint8)
        assert cv2.connectedComponents(outside, connectivity=4)[0] == 2  # the head, and one connected background


def test_indexing_and_moving_preserve_values() -> None:
    f = draw(4)
    assert len(f[1:3]) == 2
    assert torch.equal(f[torch.tensor([2])].yaw, f.yaw[2:3])
    assert torch.equal(f.to("cpu").bokeh, f.bokeh)


def test_mirrored_factors_give_the_mirrored_image() -> None:
    f = draw(3, 2)
    drawn, seen = render(f, size=SIZE), render(mirror(f), size=SIZE)
    # Shading is not symmetric at creases (see `mirror`); shapes and colours are.
    off = (seen.images - drawn.images.flip(3)).abs()
    assert off.mean() < 4e-3
    assert (off > 0.1).float().mean() < 5e-3
    assert (drawn.images - drawn.images.flip(3)).abs().mean() > 0.05
    flipped = mirror_landmarks(drawn.landmarks, size=SIZE)
    torch.testing.assert_close(seen.landmarks, flipped, atol=1e-3, rtol=0)
    torch.testing.assert_close(mirror_landmarks(flipped, size=SIZE), drawn.landmarks, atol=1e-4, rtol=0)
    assert torch.equal(mirror(mirror(f)).yaw, f.yaw)


def test_left_is_from_the_critters_view() -> None:
    landmarks, _ = locate(facing(3), size=SIZE)
    for left, right in (
        ("left_eye", "right_eye"),
        ("mouth_left", "mouth_right"),
        ("left_ear_tip", "right_ear_tip"),
        ("left_cheek", "right_cheek"),
        ("left_forehead", "right_forehead"),
        ("left_cheek_front", "right_cheek_front"),
        ("left_ear_base", "right_ear_base"),
    ):
        assert (at(landmarks, left)[:, 0] > at(landmarks, right)[:, 0]).all()


@pytest.mark.parametrize("scale", [2, 3])
def test_landmarks_of_another_size_are_rescaled(scale: int) -> None:
    f = draw(3)
    (small, seen_small), (large, seen_large) = locate(f, size=16), locate(f, size=16 * scale)
    torch.testing.assert_close(large, (small + 0.5) * scale - 0.5, atol=1e-3, rtol=0)
    assert torch.equal(seen_small, seen_large)


def test_landmarks_lie_on_the_surface() -> None:
    s = shape_of(draw(50))
    x, y, z = _anchors(s).unbind(-1)
    assert distance(x, y, z, s).abs().max() < 0.012  # skull radii: at 64 px a fifth of a pixel
    own = part_distances(x, y, z, s)
    for name, gap in (("left_eye", own.eye), ("nose", own.nose), ("right_ear_tip", own.ear)):
        assert gap[:, LANDMARKS.index(name)].abs().max() < 1e-4


@pytest.mark.parametrize("yaw", [-40.0, -15.0, 25.0])
def test_nose_position_of_a_turned_head(yaw: float) -> None:
    f = replace(facing(1), yaw=torch.tensor([yaw]), x=torch.tensor([0.05]), y=torch.tensor([-0.02]))
    s = shape_of(f)
    height = float(s.nose_y)
    ahead = float(s.nose_z + s.nose_rz)
    angle = math.radians(yaw)
    world = np.array([ahead * math.sin(angle), height, ahead * math.cos(angle)])
    camera = 7.0  # skull radii from the head's centre; the plane through the centre has scale 1
    radius_px = 0.5 * float(f.scale) * SIZE
    expected_x = (0.5 + 0.05) * SIZE - 0.5 + radius_px * world[0] * camera / (camera - world[2])
    expected_y = (0.5 - 0.02) * SIZE - 0.5 - radius_px * world[1] * camera / (camera - world[2])
    found = at(locate(f, size=SIZE)[0], "nose")[0]
    np.testing.assert_allclose(found.numpy(), [expected_x, expected_y], atol=1e-3)


def test_visible_landmarks_lie_on_their_parts() -> None:
    drawn = render(draw(12, 3), size=64, supersample=1)
    agree = []
    for name, part in (("nose", "nose"), ("left_eye", "eye"), ("right_eye", "eye")):
        index = LANDMARKS.index(name)
        for i in range(12):
            if drawn.visible[i, index]:
                x, y = drawn.landmarks[i, index].round().int().tolist()
                # the nearest pixel centre may lie beyond the rim of the part
                near = drawn.parts[i, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                assert (near == PARTS.index(part)).any()
                agree.append(bool(drawn.parts[i, y, x] == PARTS.index(part)))
    assert len(agree) >= 20
    assert np.mean(agree) >= 0.85


def test_parts_match_the_image_of_a_facing_head() -> None:
    parts = render(facing(2), size=SIZE).parts
    for name in ("background", "head", "muzzle", "ear", "inner_ear", "eye", "nose", "body"):
        assert ((parts == PARTS.index(name)).flatten(1).sum(1) > 0).all(), name


def test_occluded_and_outside_landmarks_are_not_visible() -> None:
    turned = replace(facing(2), yaw=torch.tensor([-40.0, 40.0]))
    _, visible = locate(turned, size=SIZE)
    left, right = LANDMARKS.index("left_cheek"), LANDMARKS.index("right_cheek")
    assert visible[0, left] and not visible[0, right]  # a head turned to image left shows its left side
    assert visible[1, right] and not visible[1, left]
    cut = replace(facing(1), y=torch.tensor([-0.6]))
    assert not locate(cut, size=SIZE)[1][0, LANDMARKS.index("left_ear_tip")]


def test_opening_the_mouth_moves_only_the_chin() -> None:
    shut = facing(2)
    open_ = replace(shut, mouth_open=torch.ones(2))
    before, after = render(shut, size=SIZE), render(open_, size=SIZE)
    assert (at(after.landmarks, "chin")[:, 1] > at(before.landmarks, "chin")[:, 1] + 0.05 * SIZE).all()
    for name in ("left_eye", "nose", "crown", "left_ear_tip"):
        torch.testing.assert_close(at(after.landmarks, name), at(before.landmarks, name))
    inside = torch.isin(after.parts, torch.tensor([PARTS.index(n) for n in ("mouth", "tongue")], dtype=torch.uint8))
    assert (inside.flatten(1).sum(1) > 5).all()


@pytest.mark.parametrize(
    ("factor", "landmark", "axis", "sign"),
    [
        ("yaw", "nose", 0, 1),  # turns to image right
        ("pitch", "nose", 1, 1),  # looks down
        ("roll", "crown", 0, -1),  # tilts counter-clockwise
        ("x", "nose", 0, 1),
        ("y", "nose", 1, 1),
        ("ear_length", "left_ear_tip", 1, -1),
        ("eye_spacing", "left_eye", 0, 1),
        ("smile", "mouth_left", 1, -1),
    ],
)
def test_factors_move_landmarks_in_the_documented_direction(factor: str, landmark: str, axis: int, sign: int) -> None:
    f = facing(2)
    low, high = (torch.full((2,), float(value)) for value in RANGES[factor])
    start = at(locate(replace(f, **{factor: low}), size=16)[0], landmark)
    end = at(locate(replace(f, **{factor: high}), size=16)[0], landmark)
    assert (sign * (end - start)[:, axis] > 0.1).all()


def test_settle_reaches_the_surface_from_outside() -> None:
    s = shape_of(draw(4))
    start = torch.tensor([[[0.0, 2.5, 0.0]]]).expand(4, 1, 3)
    end = settle(start, torch.tensor([[[0.0, -1.0, 0.0]]]).expand(4, 1, 3), s, flesh_only=True)
    torch.testing.assert_close(end[:, 0, 1], s.head_ry[:, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize(("size", "supersample"), [(0, 2), (2, 2), (-64, 2), (5, 1), (9, 2), (64, 0)])
def test_bad_sizes_are_refused(size: int, supersample: int) -> None:
    with pytest.raises(AutodragError, match="multiple of 4"):
        render(draw(1), size=size, supersample=supersample)


@pytest.mark.parametrize("count", [0, -3])
def test_bad_counts_are_refused(count: int) -> None:
    with pytest.raises(AutodragError, match="at least 1"):
        sample_factors(count, torch.Generator())
