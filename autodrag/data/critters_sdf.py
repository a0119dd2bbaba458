"""Signed distance functions of a critter's head, and their shape parameters.

Primitives and the polynomial smooth minimum: Inigo Quilez, "distance functions" and "smooth minimum". Ray marching with
distance functions: J. C. Hart, "Sphere tracing", The Visual Computer 1996.

Head coordinates: x to the critter's left (image right when it faces the camera), y up, z out of the face. The unit is
the radius of the skull. The head is symmetric, so paired parts are evaluated once, at |x|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from autodrag.data.critters_factors import RANGES, Factors

_TINY = 1e-12


@dataclass(frozen=True)
class Shape:
    """Shape parameters of a batch of heads. Fields are (B, 1): lengths in skull radii, cosines and sines of angles."""

    head_rx: Tensor
    head_ry: Tensor
    head_rz: Tensor
    cheek_x: Tensor
    cheek_y: Tensor
    cheek_z: Tensor
    cheek_r: Tensor
    snout_y: Tensor
    snout_z: Tensor
    snout_rx: Tensor
    snout_ry: Tensor
    snout_rz: Tensor
    pad_x: Tensor
    pad_y: Tensor
    pad_z: Tensor
    pad_r: Tensor
    mouth_y: Tensor
    hinge_z: Tensor
    jaw_cos: Tensor
    jaw_sin: Tensor
    jaw_y: Tensor
    jaw_z: Tensor
    jaw_rx: Tensor
    jaw_ry: Tensor
    jaw_rz: Tensor
    cavity_cos: Tensor
    cavity_sin: Tensor
    cavity_z: Tensor
    cavity_rx: Tensor
    cavity_ry: Tensor
    cavity_rz: Tensor
    smile: Tensor
    tooth_x: Tensor
    tooth_z: Tensor
    tooth_r: Tensor
    ear_x: Tensor
    ear_y: Tensor
    ear_z: Tensor
    ear_cos: Tensor
    ear_sin: Tensor
    ear_rx: Tensor
    ear_ry: Tensor
    ear_rz: Tensor
    ear_point: Tensor
    eye_x: Tensor
    eye_y: Tensor
    eye_z: Tensor
    eye_r: Tensor
    lid_up: Tensor
    lid_low: Tensor
    nose_y: Tensor
    nose_z: Tensor
    nose_rx: Tensor
    nose_ry: Tensor
    nose_rz: Tensor
    mane_y: Tensor
    mane_z: Tensor
    mane_rx: Tensor
    mane_rz: Tensor

    def __getitem__(self, index: slice | Tensor) -> Shape:
        return Shape(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


class Distances(NamedTuple):
    """Distances (B, R) to the parts of the head. `skin` is the union of the fur-covered parts without the mouth."""

    skin: Tensor
    ear: Tensor
    eye: Tensor
    nose: Tensor
    tongue: Tensor
    teeth: Tensor
    mane: Tensor
    skull: Tensor
    snout: Tensor
    jaw: Tensor
    lid: Tensor


def smooth_min(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Smooth minimum: the crease is rounded over a band of width k."""
    h = (k - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - h * h * (0.25 / k)


def _squared(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.addcmul(torch.addcmul(x * x, y, y), z, z)


def _ellipsoid(x: Tensor, y: Tensor, z: Tensor, rx: Tensor, ry: Tensor, rz: Tensor) -> Tensor:
    """First-order distance to an ellipsoid: exact on its surface."""
    x, y, z = x / rx, y / ry, z / rz
    squared = _squared(x, y, z)
    slope = torch.rsqrt(_squared(x / rx, y / ry, z / rz) + _TINY)
    return (squared - torch.sqrt(squared + _TINY)) * slope


def _length(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return torch.sqrt(_squared(x, y, z) + _TINY)


def mouth_frame(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> tuple[Tensor, Tensor]:
    """Height above the curved mouth plane, and depth along the plane: (B, R) each."""
    dy, dz = y - s.mouth_y, z - s.hinge_z
    height = dy * s.cavity_cos + dz * s.cavity_sin - s.smile * x * x
    return height, dz * s.cavity_cos - dy * s.cavity_sin + s.hinge_z - s.cavity_z


def jaw_frame(y: Tensor, z: Tensor, s: Shape) -> tuple[Tensor, Tensor]:
    """(y, z) of a point relative to the jaw's centre, after undoing the jaw's rotation about its hinge."""
    dy, dz = y - s.mouth_y, z - s.hinge_z
    return dy * s.jaw_cos + dz * s.jaw_sin + (s.mouth_y - s.jaw_y), dz * s.jaw_cos - dy * s.jaw_sin + (
        s.hinge_z - s.jaw_z
    )


def ear_frame(x: Tensor, y: Tensor, s: Shape) -> tuple[Tensor, Tensor]:
    """Coordinates across and along the ear, relative to its centre, for x >= 0."""
    dx, dy = x - s.ear_x, y - s.ear_y
    return dx * s.ear_cos - dy * s.ear_sin, dx * s.ear_sin + dy * s.ear_cos


def flesh(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances to the head without mouth, eyes and ears: (union, skull, snout, jaw). `x` is |x|."""
    skull = _ellipsoid(x, y, z, s.head_rx, s.head_ry, s.head_rz)
    cheek = _length(x - s.cheek_x, y - s.cheek_y, z - s.cheek_z) - s.cheek_r
    snout = _ellipsoid(x, y - s.snout_y, z - s.snout_z, s.snout_rx, s.snout_ry, s.snout_rz)
    pad = _length(x - s.pad_x, y - s.pad_y, z - s.pad_z) - s.pad_r
    jaw_v, jaw_w = jaw_frame(y, z, s)
    jaw = _ellipsoid(x, jaw_v, jaw_w, s.jaw_rx, s.jaw_ry, s.jaw_rz)
    snout = smooth_min(snout, pad, 0.1)
    union = smooth_min(smooth_min(skull, cheek, 0.3), snout, 0.18)
    return smooth_min(union, jaw, 0.12), skull, snout, jaw


def part_distances(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Distances:
    """Distances of points (B, R), in head coordinates, to the parts."""
    x = x.abs()
    union, skull, snout, jaw = flesh(x, y, z, s)
    mouth_v, mouth_w = mouth_frame(x, y, z, s)
    cavity = _ellipsoid(x, mouth_v, mouth_w, s.cavity_rx, s.cavity_ry, s.cavity_rz)
    skin = torch.maximum(union, -cavity)

    ear_u, ear_v = ear_frame(x, y, s)
    narrowing = 1 - s.ear_point * (ear_v / s.ear_ry).clamp(-1, 1)
    ear = _ellipsoid(ear_u / narrowing, ear_v, z - s.ear_z, s.ear_rx, s.ear_ry, s.ear_rz)

    eye_v = y - s.eye_y
    ball = _length(x - s.eye_x, eye_v, z - s.eye_z)
    eye = ball - s.eye_r
    lid = torch.maximum(eye - 0.09 * s.eye_r, torch.minimum(s.lid_up - eye_v, eye_v - s.lid_low))

    nose = _ellipsoid(x, y - s.nose_y, z - s.nose_z, s.nose_rx, s.nose_ry, s.nose_rz)
    jaw_v, jaw_w = jaw_frame(y, z, s)
    tongue = _ellipsoid(
        x, jaw_v - 0.75 * s.jaw_ry, jaw_w - 0.15 * s.jaw_rz, 0.55 * s.jaw_rx, 0.3 * s.jaw_ry, 0.68 * s.jaw_rz
    )
    tooth_u = x - s.tooth_x
    teeth = _ellipsoid(tooth_u, y - s.mouth_y, z - s.tooth_z, 0.55 * s.tooth_r, 1.25 * s.tooth_r, 0.5 * s.tooth_r)

    return Distances(skin, ear, eye, nose, tongue, teeth, _mane(x, y, z, s), skull, snout, jaw, lid)


def _mane(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Tensor:
    """Distance (B, R) to the mane; infinite for heads without a mane."""
    present = s.mane_rx > 0.5
    # On a CPU this shortcut saves about an eighth of the arithmetic. On a GPU the branch would force a synchronisation.
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not present.any():
        return torch.full_like(x, torch.inf)
    v = y - s.mane_y
    # Tufts: the radius of the rim oscillates with the angle about z.
    r = s.mane_rx * (1 + 0.045 * torch.sin(13 * torch.atan2(v, x + 1e-6)))
    return torch.where(present, _ellipsoid(x, v, z - s.mane_z, r, r, s.mane_rz), torch.inf)


def join(d: Distances) -> Tensor:
    """Distance to the whole head (B, R)."""
    solid = smooth_min(torch.minimum(d.skin, d.lid), d.ear, 0.06)
    hard = torch.minimum(torch.minimum(d.eye, d.nose), torch.minimum(d.tongue, d.teeth))
    return torch.minimum(torch.minimum(solid, hard), d.mane)


def distance(x: Tensor, y: Tensor, z: Tensor, s: Shape) -> Tensor:
    """Signed distance (B, R) of points, in head coordinates, to the head; negative inside."""
    return join(part_distances(x, y, z, s))


def settle(start: Tensor, direction: Tensor, s: Shape, *, flesh_only: bool = False, steps: int = 24) -> Tensor:
    """Move points (B, N, 3) along directions (B, N, 3) to the surface. The points must start outside the head."""
    t = torch.zeros_like(start[..., 0])
    for _ in range(steps):
        x, y, z = (start + t[..., None] * direction).unbind(-1)
        t = t + 0.9 * (flesh(x.abs(), y, z, s)[0] if flesh_only else distance(x, y, z, s))
    return start + t[..., None] * direction


def mouth_corner(s: Shape, *, steps: int = 22) -> Tensor:
    """Corner of the mouth on the side x > 0, (B, 3): the rim's intersection with the surface, found by bisection."""
    low, high = torch.zeros_like(s.mouth_y), torch.full_like(s.mouth_y, math.pi / 2)

    def rim(angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, depth = s.cavity_rx * angle.cos(), s.cavity_rz * angle.sin()
        height = s.smile * x * x
        dz = depth + s.cavity_z - s.hinge_z
        y = s.mouth_y + height * s.cavity_cos - dz * s.cavity_sin
        return x, y, s.hinge_z + dz * s.cavity_cos + height * s.cavity_sin

    for _ in range(steps):
        middle = (low + high) / 2
        inside = flesh(*rim(middle), s)[0] < 0
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.cat(rim((low + high) / 2), dim=1)


def shape_of(factors: Factors) -> Shape:
    """Compute the shape parameters of a batch of critters."""
    f = {name: getattr(factors, name)[:, None] for name in RANGES}
    one = torch.ones_like(f["yaw"])
    deg = math.pi / 180
    reach = f["snout_length"]
    snout_ry = 0.27 + 0.1 * f["nose_size"]
    snout_z, snout_rz = 0.55 * one, 0.42 + reach * 0.75
    front = snout_z + snout_rz
    mouth_y = f["snout_y"] - 0.62 * snout_ry
    hinge_z = 0.2 * one
    jaw_rz = 0.84 * snout_rz * f["jaw"].clamp_max(1.12)
    turn = f["mouth_open"] * (30 * deg)
    cavity_rz = snout_rz + 0.2
    ear_at, ear_lean = f["ear_spread"] * deg, (f["ear_spread"] / 3 + f["ear_tilt"]) * deg
    ear_out = 0.72 * f["ear_length"]
    eye_r = f["eye_size"]
    shape = Shape(
        head_rx=f["head_width"], head_ry=f["head_height"], head_rz=0.95 * one,
        cheek_x=f["head_width"] - 0.5, cheek_y=-0.34 * one, cheek_z=0.36 * one, cheek_r=f["cheek"],
        snout_y=f["snout_y"], snout_z=snout_z, snout_rx=f["snout_width"], snout_ry=snout_ry,
        snout_rz=snout_rz,
        pad_x=0.42 * f["snout_width"], pad_y=mouth_y + 0.09, pad_z=front - 0.17,
        pad_r=0.52 * f["snout_width"],
        mouth_y=mouth_y, hinge_z=hinge_z, jaw_cos=turn.cos(), jaw_sin=turn.sin(),
        jaw_y=mouth_y - 0.08, jaw_z=0.5 * one, jaw_rx=0.86 * f["snout_width"],
        jaw_ry=0.19 * one, jaw_rz=jaw_rz,
        cavity_cos=(turn * 0.6).cos(), cavity_sin=(turn * 0.6).sin(), cavity_z=0.5 * one,
        cavity_rx=f["snout_width"] * f["mouth_width"], cavity_ry=0.022 + 0.36 * turn.sin() * (0.6 + reach),
        cavity_rz=cavity_rz, smile=0.1 + 0.75 * f["smile"],
        tooth_x=0.42 * f["snout_width"], tooth_z=front - 0.22, tooth_r=0.09 * one,
        ear_x=ear_at.sin() * f["head_width"] * 0.86 + ear_lean.sin() * ear_out,
        ear_y=ear_at.cos() * f["head_height"] * 0.86 + ear_lean.cos() * ear_out,
        ear_z=-0.08 * one, ear_cos=ear_lean.cos(), ear_sin=ear_lean.sin(),
        ear_rx=f["ear_width"], ear_ry=f["ear_length"], ear_rz=0.13 * one, ear_point=f["ear_point"],
        eye_x=f["eye_spacing"], eye_y=f["eye_y"], eye_z=0 * one, eye_r=eye_r,
        lid_up=eye_r * (f["eye_open"] * 1.05 - 0.2), lid_low=eye_r * (-0.35 - 0.4 * f["eye_open"]),
        nose_y=f["snout_y"] + 0.5 * snout_ry, nose_z=snout_z + 0.88 * snout_rz,
        nose_rx=f["nose_size"], nose_ry=0.72 * f["nose_size"], nose_rz=0.75 * f["nose_size"],
        mane_y=-0.12 * one, mane_z=-0.35 * one, mane_rx=0.3 + 1.3 * f["mane"] ** 0.4,
        mane_rz=0.25 + 0.25 * f["mane"],
    )  # fmt: skip
    # Place the centres of the eyeballs 0.42 radii below the surface of the head.
    start = torch.stack((shape.eye_x, shape.eye_y, 2.2 * one), dim=-1)
    forward = torch.tensor([0.0, 0.0, -1.0], device=start.device).expand_as(start)
    surface = settle(start, forward, shape, flesh_only=True)[..., 2]
    return replace(shape, eye_z=surface - 0.42 * eye_r)
