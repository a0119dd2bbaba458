"""Critters, the built-in data set: cartoon animal heads with exact landmarks, rendered by a batched ray marcher.

A head is a union of signed-distance primitives (critters_sdf), controlled by about forty independent factors
(critters_factors). Its landmarks are exact, because they are surface points projected by the camera.

Rays are marched in two passes. First, one cone per block of 4x4 rays skips empty space (J. C. Hart, "Sphere tracing",
1996; cone marching as in Fulcrum, 2012). Then each ray is marched from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.data.critters_factors import Factors, mirror, rotation, sample_factors
from autodrag.data.critters_sdf import Shape, distance, mouth_corner, part_distances, settle, shape_of
from autodrag.data.critters_shading import (
    PART,
    PARTS,
    background,
    body_albedo,
    develop,
    illuminate,
    light_direction,
    materials,
)  # fmt: skip
from autodrag.errors import AutodragError

__all__ = [
    "LANDMARKS",
    "PARTS",
    "Factors",
    "Render",
    "compiled_distance",
    "locate",
    "mirror",
    "mirror_landmarks",
    "render",
    "sample_factors",
]

LANDMARKS: tuple[str, ...] = (
    "left_eye", "right_eye", "nose", "chin", "mouth_left", "mouth_right", "left_ear_tip", "right_ear_tip",
    "left_cheek", "right_cheek", "crown", "forehead", "left_forehead", "right_forehead", "left_cheek_front",
    "right_cheek_front", "left_ear_base", "right_ear_base",
)  # fmt: skip
"""Left and right are from the critter's view: its left is at image right when it faces the camera.

Append new names at the end, because trained landmark nets and cached arrays depend on the order.
"""

_CAMERA = 7.0  # distance of the camera from the head's centre, skull radii
_NEAR, _FAR = _CAMERA - 2.6, _CAMERA + 1.9
_BLOCK = 4
_CONE_STEPS, _EARLY_STEPS = 20, 5
_ROUNDS = (3, 3, 4, 6, 10, 14)  # steps between removals of finished rays; an almost closed mouth needs most of them
_ARRIVED = 2e-4  # distance to the surface at which a ray stops: a hundredth of a pixel at 128 px
_BODY_CENTER, _BODY_RADII = (0.0, -2.05, -0.5), (1.3, 1.45, 0.9)

DistanceFunction = Callable[[Tensor, Tensor, Tensor, Shape], Tensor]


@dataclass(frozen=True)
class Render:
    """Images of critters and their ground truth."""

    images: Float[Tensor, "B 3 H W"]
    """Display values in [-1, 1]."""
    landmarks: Float[Tensor, "B N 2"]
    """(x, y) px of the output image, integers at pixel centres, in the order of LANDMARKS."""
    visible: Bool[Tensor, "B N"]
    """True = inside the image and not occluded by another part of the head."""
    parts: UInt8[Tensor, "B H W"]
    """Index into PARTS of the part at the pixel's upper-left sample."""


def mirror_landmarks(landmarks: Float[Tensor, "B N 2"], *, size: int) -> Float[Tensor, "B N 2"]:
    """Landmarks (px) of the mirrored images, `size` px wide: x is flipped, left and right names are swapped."""
    swapped = [LANDMARKS.index(_other_side(name)) for name in LANDMARKS]
    return torch.stack((size - 1 - landmarks[..., 0], landmarks[..., 1]), dim=-1)[:, swapped]


def _other_side(name: str) -> str:
    if "left" in name:
        return name.replace("left", "right")
    return name.replace("right", "left")


def _anchors(s: Shape) -> Float[Tensor, "B N 3"]:
    """Surface points of the landmarks in head coordinates, in the order of LANDMARKS."""
    zero, one = torch.zeros_like(s.eye_x), torch.ones_like(s.eye_x)

    def point(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.cat((x, y, z), dim=1)

    eye = point(s.eye_x, s.eye_y, s.eye_z + s.eye_r)
    nose = point(zero, s.nose_y, s.nose_z + s.nose_rz)
    # The chin is the support point of the jaw's ellipsoid in a direction forward and down.
    down, ahead = -0.8 * s.jaw_ry**2, 0.6 * s.jaw_rz**2
    length = torch.sqrt((0.8 * s.jaw_ry) ** 2 + (0.6 * s.jaw_rz) ** 2)
    chin_v, chin_w = s.jaw_y - s.mouth_y + down / length, s.jaw_z - s.hinge_z + ahead / length
    chin = point(
        zero,
        s.mouth_y + chin_v * s.jaw_cos - chin_w * s.jaw_sin,
        s.hinge_z + chin_w * s.jaw_cos + chin_v * s.jaw_sin,
    )
    ear = point(s.ear_x + s.ear_sin * s.ear_ry, s.ear_y + s.ear_cos * s.ear_ry, s.ear_z)
    starts = torch.stack(
        (
            point(1.4 * one, -0.34 * one, 0.75 * one),
            point(zero, 1.6 * one, 0.12 * one),
            point(zero, 0.62 * s.head_ry, 2 * one),
            point(0.52 * s.head_rx, 0.66 * s.head_ry, 2 * one),
            point(0.62 * s.head_rx, -0.14 * one, 2 * one),
        ),
        dim=1,
    )
    inward = torch.tensor(
        [[-0.83, 0.0, -0.5578], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0]],
        device=starts.device,
    ).expand_as(starts)
    cheek, crown, forehead, temple, front = settle(starts, inward, s, flesh_only=True).unbind(1)
    # The base of the ear is visible from the front, halfway between the ear's centre and its lower end.
    base = point(s.ear_x - 0.5 * s.ear_sin * s.ear_ry, s.ear_y - 0.5 * s.ear_cos * s.ear_ry, 2 * one)
    base = settle(base[:, None], inward[:, 2:3], s)[:, 0]
    flip = torch.tensor([-1.0, 1.0, 1.0], device=eye.device)
    mouth = mouth_corner(s)
    points = (
        eye, eye * flip, nose, chin, mouth, mouth * flip, ear, ear * flip, cheek, cheek * flip, crown,
        forehead, temple, temple * flip, front, front * flip, base, base * flip,
    )  # fmt: skip
    return torch.stack(points, dim=1)


def _project(points: Tensor, f: Factors, size: int) -> Tensor:
    """Project world points (B, N, 3) to pixels (B, N, 2)."""
    shrink = f.scale[:, None] * (size / 2) * _CAMERA / (_CAMERA - points[..., 2])
    center_x = (0.5 + f.x[:, None]) * size - 0.5
    center_y = (0.5 + f.y[:, None]) * size - 0.5
    return torch.stack((center_x + points[..., 0] * shrink, center_y - points[..., 1] * shrink), dim=-1)


def _march(
    t: Tensor, origin: Tensor, ray: Tensor, s: Shape, steps: int, measure: DistanceFunction
) -> tuple[Tensor, Tensor]:
    """Advance t (B, R) along rays (B, 3, R) from origins (B, 3, 1). Returns (t, last distance)."""
    gap = t
    for _ in range(steps):
        x, y, z = (origin + ray * t[:, None]).unbind(1)
        gap = measure(x, y, z, s)
        t = t + 0.95 * gap
    return t, gap


def _arrive(t: Tensor, origin: Tensor, ray: Tensor, s: Shape, measure: DistanceFunction) -> Tensor:
    """March rays until each hits the surface or leaves the scene. Returns t (B, R).

    Most rays finish within two rounds. Only the remaining rays, which graze an edge, are marched further.
    """
    active = torch.ones_like(t, dtype=torch.bool)
    for steps in _ROUNDS:
        index = _pack(active)
        start = _take(t, index)
        end, last = _march(start, origin, _take(ray, index), s, steps, measure)
        # Rows are padded with stopped rays, whose t does not change, so the result does not depend on the chunk.
        moving = _take(active, index)
        t = t.scatter(1, index, torch.where(moving, end, start))
        active = active.scatter(1, index, moving & (last.abs() > _ARRIVED) & (end < _FAR))
        if not active.any():
            break
    return t


def _length(vectors: Tensor) -> Tensor:
    """Lengths (B, 1, R) of vectors (B, 3, R). On a CPU this is several times faster than Tensor.norm."""
    x, y, z = vectors.unbind(1)
    return torch.sqrt(x * x + y * y + z * z)[:, None]


def _visible(anchors: Tensor, pixels: Tensor, turn: Tensor, s: Shape, size: int) -> Tensor:
    """Visibility of the anchors: True if no surface blocks the ray from the camera, and the pixel is in the image."""
    origin = turn[:, 2, :, None] * _CAMERA  # the camera in head coordinates, (B, 3, 1)
    ray = anchors.transpose(1, 2) - origin
    reach = ray.norm(dim=1)
    t, _ = _march(reach - 3.0, origin, ray / reach[:, None], s, 28, distance)
    inside = ((pixels >= -0.5) & (pixels <= size - 0.5)).all(-1)
    return (t > reach - 0.08) & inside


def _pack(keep: Tensor) -> Tensor:
    """Indices (B, K) that list the True entries of each row first. K is the largest count of a row (at least 1)."""
    before, count = keep.cumsum(1), keep.sum(1, keepdim=True)
    position = torch.arange(keep.shape[1], device=keep.device).expand_as(before)
    rank = torch.where(keep, before - 1, count + position - before)
    return torch.empty_like(rank).scatter_(1, rank, position)[:, : max(1, int(count.max()))]


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Gather entries (B, [3,] K) of values (B, [3,] R) at an index (B, K)."""
    if values.dim() == 3:
        index = index[:, None].expand(-1, values.shape[1], -1)
    return values.gather(-1, index)


def _rays(column: Tensor, row: Tensor, f: Factors, side: int) -> Tensor:
    """World directions (B, 3, R) of the rays through positions, in cells of a grid of side x side."""
    x = (column / side - 0.5 - f.x[:, None]) * (2 / f.scale[:, None])
    y = (0.5 + f.y[:, None] - row / side) * (2 / f.scale[:, None])
    ray = torch.stack((x, y, torch.full_like(x, -_CAMERA)), dim=1)
    return ray / _length(ray)


def _head_rays(
    f: Factors, s: Shape, turn: Tensor, side: int, measure: DistanceFunction
) -> tuple[Tensor, Tensor, Tensor]:
    """March all rays. Returns the flat pixel index (B, R), world ray (B, 3, R) and depth (B, R) of samples on the head.

    Rows are padded to equal length with samples of infinite depth.
    """
    device = f.yaw.device
    blocks = side // _BLOCK
    cells = torch.arange(blocks * blocks, device=device)
    column, row = cells % blocks, cells.div(blocks, rounding_mode="floor")
    origin = turn[:, 2, :, None] * _CAMERA
    ray = turn.transpose(1, 2) @ _rays(column[None] + 0.5, row[None] + 0.5, f, blocks)
    widen = 1.45 / (blocks * f.scale[:, None] * _CAMERA)  # radius of a block's cone per unit of length
    t = torch.full_like(ray[:, 0], _NEAR)
    for _ in range(_CONE_STEPS):
        x, y, z = (origin + ray * t[:, None]).unbind(1)
        t = t + (measure(x, y, z, s) - widen * t).clamp_min(0)
    index = _pack(t < _FAR)
    inner = torch.arange(_BLOCK * _BLOCK, device=device)
    fine_column = (column[index] * _BLOCK)[..., None] + inner % _BLOCK
    fine_row = (row[index] * _BLOCK)[..., None] + inner.div(_BLOCK, rounding_mode="floor")
    pixel = (fine_row * side + fine_column).flatten(1)
    t = _take(t, index)[..., None].expand(-1, -1, _BLOCK * _BLOCK).flatten(1)
    world_ray = _rays(fine_column.flatten(1) + 0.5, fine_row.flatten(1) + 0.5, f, side)
    t, gap = _march(t, origin, turn.transpose(1, 2) @ world_ray, s, _EARLY_STEPS, measure)
    index = _pack((t < _FAR) & (gap < 0.35))
    pixel, world_ray, t = _take(pixel, index), _take(world_ray, index), _take(t, index)
    t = _arrive(t, origin, turn.transpose(1, 2) @ world_ray, s, measure)
    hit = t < _FAR  # rays that have neither hit nor left are in a narrow fold, and count as hits
    index = _pack(hit)
    depth = torch.where(_take(hit, index), _take(t, index), torch.inf)
    return _take(pixel, index), _take(world_ray, index), depth


def _shade_head(
    depth: Tensor, world_ray: Tensor, f: Factors, s: Shape, turn: Tensor, measure: DistanceFunction
) -> tuple[Tensor, Tensor]:
    """Linear colour (B, 3, R) and part id (B, R) of the head at the given depths (B, R)."""
    back = turn.transpose(1, 2)
    origin, ray = turn[:, 2, :, None] * _CAMERA, back @ world_ray
    point = origin + ray * torch.where(depth < _FAR, depth, _NEAR)[:, None]
    x, y, z = point.unbind(1)
    step = 0.006
    normal = torch.zeros_like(point)
    for corner in ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0)):
        value = measure(x + corner[0] * step, y + corner[1] * step, z + corner[2] * step, s)
        normal = normal + value[:, None] * normal.new_tensor(corner)[:, None]
    normal = normal / (_length(normal) + 1e-9)
    light = (back @ light_direction(f)[:, :, None])[..., 0]
    albedo, gloss, part = materials(x, y, z, normal[:, 2], part_distances(x, y, z, s), s, f, light)

    x, y, z = (point + 0.16 * normal).unbind(1)
    open_sky = (measure(x, y, z, s) / 0.16).clamp(0, 1) * 0.75 + 0.25
    lit = torch.ones_like(open_sky)
    for far, sharpness in ((0.14, 3.0), (0.38, 2.2), (0.75, 1.6)):
        x, y, z = (point + 0.03 * normal + far * light[:, :, None]).unbind(1)
        lit = torch.minimum(lit, 0.5 + sharpness * measure(x, y, z, s) / far)
    lit = lit.clamp(0, 1) * 0.75 + 0.25
    return illuminate(albedo, turn @ normal, -world_ray, open_sky, lit, gloss, f), part


def _body(f: Factors, side: int) -> tuple[Tensor, Tensor, int]:
    """Depth (B, R) and linear colour (B, 3, R) of the shoulders, and the first image row that they cover."""
    device = f.yaw.device
    first = int(side * 0.55)
    cells = torch.arange(first * side, side * side, device=device)[None]
    ray = _rays(cells % side + 0.5, cells.div(side, rounding_mode="floor") + 0.5, f, side)
    radii = torch.tensor(_BODY_RADII, device=device)[:, None]
    origin = (torch.tensor([0.0, 0.0, _CAMERA], device=device) - torch.tensor(_BODY_CENTER, device=device))[:, None]
    o, d = origin / radii, ray / radii
    a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(0) - 1
    root = b * b - a * c
    depth = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, torch.inf)
    point = origin + ray * torch.where(root > 0, depth, _CAMERA)[:, None]
    normal = point / radii**2
    normal = normal / _length(normal)
    # The head, approximated by a unit sphere, shades the neck.
    to_head = -(point + torch.tensor(_BODY_CENTER, device=device)[:, None])
    gap = _length(to_head)[:, 0]
    shade = ((normal * to_head).sum(1) / gap).clamp(0, 1) / (gap * gap).clamp_min(0.9)
    open_sky = (1.05 - 1.3 * shade).clamp(0.2, 1)
    gloss = torch.full_like(open_sky, 0.03)
    return depth, illuminate(body_albedo(normal, f), normal, -ray, open_sky, open_sky, gloss, f), first


def _draw(
    f: Factors, s: Shape, turn: Tensor, size: int, supersample: int, measure: DistanceFunction
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and part ids (B, H, W) of one chunk."""
    side = size * supersample
    count = len(f)
    color = background(f, size)[:, :, :, None, :, None]
    color = develop(color).expand(-1, -1, -1, supersample, -1, supersample).reshape(count, 3, side * side)
    depth = torch.full((count, side * side), torch.inf, device=color.device)
    part = torch.zeros_like(depth, dtype=torch.uint8)
    body_depth, body_color, first = _body(f, side)
    hit = body_depth < torch.inf
    color[:, :, first * side :] = torch.where(hit[:, None], develop(body_color), color[:, :, first * side :])
    depth[:, first * side :] = body_depth
    part[:, first * side :] = hit * PART["body"]

    pixel, world_ray, head_depth = _head_rays(f, s, turn, side, measure)
    head_color, head_part = _shade_head(head_depth, world_ray, f, s, turn, measure)
    in_front = head_depth < _take(depth, pixel)
    part.scatter_(1, pixel, torch.where(in_front, head_part.to(torch.uint8), _take(part, pixel)))
    channels = pixel[:, None].expand(-1, 3, -1)
    color.scatter_(2, channels, torch.where(in_front[:, None], develop(head_color), _take(color, pixel)))
    images = color.view(count, 3, size, supersample, size, supersample).mean(dim=(3, 5))
    return images, part.view(count, side, side)[:, ::supersample, ::supersample]


def _locate(f: Factors, s: Shape, turn: Tensor, size: int) -> tuple[Tensor, Tensor]:
    anchors = _anchors(s)
    landmarks = _project(anchors @ turn.transpose(1, 2), f, size)
    return landmarks, _visible(anchors, landmarks, turn, s, size)


@torch.no_grad()
def locate(factors: Factors, *, size: int) -> tuple[Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
    """Landmarks (px) and visibility, as in Render, for images of size x size px, without rendering."""
    return _locate(factors, shape_of(factors), rotation(factors), size)


def compiled_distance(device: torch.device | str = "cpu") -> DistanceFunction:
    """Compile `distance` to one fused kernel. Rendering is twice as fast; compilation takes 10 to 60 s.

    Returns the plain function, with a warning, if torch finds no compiler.
    """
    compiled = torch.compile(distance, dynamic=True)
    try:
        render(sample_factors(1, torch.Generator().manual_seed(0)), size=8, device=device, measure=compiled)
    except Exception as problem:  # a missing or broken compiler raises many types
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        warnings.warn(f"the renderer cannot be compiled ({reason}); rendering takes twice as long", stacklevel=2)
        return distance
    return compiled


@torch.no_grad()
def render(
    factors: Factors,
    *,
    size: int = 128,
    supersample: int = 2,
    device: torch.device | str | None = None,
    chunk: int | None = None,
    measure: DistanceFunction = distance,
) -> Render:
    """Render critters.

    Args:
        factors: the critters.
        size: side of the square images, px.
        supersample: number of rays per pixel and axis.
        device: device of the computation; None uses the device of `factors`.
        chunk: number of critters rendered at a time; None chooses it for the device. It does not change the images.
        measure: the distance function. `compiled_distance()` is worthwhile for more than a few hundred images.

    Raises:
        AutodragError: size * supersample is not a positive multiple of 4.
    """
    side = size * supersample
    if size < 4 or supersample < 1 or side % _BLOCK:
        raise AutodragError(
            f"cannot draw critters of {size} px with supersample {supersample}: "
            f"pass a size of at least 4 px with size * supersample a multiple of {_BLOCK}"
        )
    f = factors.to(device) if device is not None else factors
    s, turn = shape_of(f), rotation(f)
    landmarks, visible = _locate(f, s, turn, size)
    if chunk is None:
        # On a CPU a chunk should fit into the cache; on a GPU it should occupy all cores.
        chunk = max(1, (8 if f.yaw.device.type == "cpu" else 512) * 128 * 128 // (side * side))
    images, parts = [], []
    for start in range(0, len(f), chunk):
        rows = slice(start, start + chunk)
        image, part = _draw(f[rows], s[rows], turn[rows], size, supersample, measure)
        images.append(image)
        parts.append(part)
    return Render(torch.cat(images), landmarks, visible, torch.cat(parts))
