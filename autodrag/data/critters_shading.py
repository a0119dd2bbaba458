"""Colours of a critter: materials at the hit points, light, and the out-of-focus background.

Colours are computed in linear light (sRGB squared). `develop` converts them to display values. Materials of paired
parts are functions of |x|, so that a mirrored critter gives the mirrored image.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.data.critters_factors import Factors
from autodrag.data.critters_sdf import Distances, Shape, ear_frame, mouth_frame

PARTS: tuple[str, ...] = (
    "background", "head", "muzzle", "jaw", "ear", "inner_ear", "eye", "nose", "mouth", "tongue", "teeth",
    "mane", "body",
)  # fmt: skip
PART = {name: index for index, name in enumerate(PARTS)}


def develop(color: Tensor) -> Tensor:
    """Convert linear light to display values in [-1, 1], with soft highlights."""
    return torch.sqrt(1 - torch.exp(-1.35 * color.clamp_min(0))) * 2 - 1


def _smoothstep(low: float, high: float, value: Tensor) -> Tensor:
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Interpolate colours (B, 3, R) or (B, 3, 1) with weights `share` (B, R)."""
    return a + (b - a) * share[:, None]


def _column(color: Tensor) -> Tensor:
    return (color * color)[:, :, None]  # (B, 3, 1) linear


def light_direction(f: Factors) -> Float[Tensor, "B 3"]:
    """Unit vector toward the key light, in world coordinates."""
    azimuth, elevation = f.light_azimuth * (math.pi / 180), f.light_elevation * (math.pi / 180)
    return torch.stack((azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()), dim=1)


def materials(
    x: Tensor, y: Tensor, z: Tensor, normal_z: Tensor, d: Distances, s: Shape, f: Factors, light: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Albedo (B, 3, R), gloss (B, R) in [0, 1] and part id (B, R) of hit points in head coordinates.

    `light` is the direction (B, 3) of the key light in head coordinates, for the highlights in the eyes.
    """
    side, x = torch.sign(x), x.abs()
    fur, mark = _column(f.fur_color), _column(f.mark_color)
    strand = torch.sin(31 * x + 4 * torch.sin(7 * y + 3 * z)) * torch.sin(9 * y - 17 * z + 3 * torch.sin(11 * x))
    blotch = torch.sin(5 * x + 3 * y) * torch.sin(4 * z - 3 * y + 2 * x)
    texture = 1 + f.fur[:, None] * (0.13 * strand + 0.08 * blotch)

    muzzle = torch.minimum(d.snout - 0.03, d.jaw)
    pale = 1 - (1 - fur) * 0.28
    lightness = f.muzzle_light[:, None]
    muzzle_share = _smoothstep(0.16, 0.0, muzzle) * lightness
    under_share = _smoothstep(-0.30, -0.62, y) * 0.7 * lightness
    skin = _mix(fur.expand(-1, -1, x.shape[1]), pale, torch.maximum(muzzle_share, under_share))
    slant = f.stripe_count[:, None] * (1.15 * y + 0.45 * x) + 1.2 * torch.sin(3 * x)
    where = _smoothstep(0.1, 0.35, torch.maximum(x - 0.42, y - 0.38)) * (1 - torch.maximum(muzzle_share, under_share))
    skin = skin * (1 - 0.75 * f.stripes[:, None] * _smoothstep(0.1, 0.6, torch.sin(slant)) * where)[:, None]
    ring = _smoothstep(0.14, 0.03, d.eye) * f.eye_ring[:, None]
    skin = skin * (1 - 0.8 * (-ring).clamp_min(0))[:, None]
    skin = _mix(skin, pale, ring.clamp_min(0))
    # A dark outline keeps the eyes visible on any fur.
    skin = skin * (1 - 0.75 * _smoothstep(0.035, 0.01, d.eye))[:, None]

    ear_u, ear_v = ear_frame(x, y, s)
    ear_u, ear_v = ear_u / s.ear_rx, ear_v / s.ear_ry
    tip = _smoothstep(0.2, 0.75, ear_v) * f.ear_dark[:, None]
    ear = _mix(fur, mark, 0.5 + 0 * x) * (1 - 0.85 * tip)[:, None]
    narrowing = 1 - s.ear_point * ear_v.clamp(-1, 1)
    inside_ear = ((ear_u / narrowing) ** 2 + (ear_v + 0.08) ** 2) / 0.55
    inner = _mix(0.35 * fur, torch.tensor([0.62, 0.27, 0.22], device=x.device)[:, None], 0.72 + 0 * x)
    inner = inner * (0.45 + 0.55 * inside_ear.clamp(0, 1))[:, None]

    # Eyes: x is |x|, but the gaze is not mirrored, so the sign of x is restored.
    ex, ey, ez = (x - s.eye_x) / s.eye_r, (y - s.eye_y) / s.eye_r, (z - s.eye_z) / s.eye_r
    gaze_x, gaze_y = f.gaze_x[:, None] * (math.pi / 180), f.gaze_y[:, None] * (math.pi / 180)
    ex = ex * torch.where(side < 0, -1.0, 1.0)
    gaze = torch.cat((gaze_x.sin() * gaze_y.cos(), gaze_y.sin(), gaze_x.cos() * gaze_y.cos()), dim=1)
    towards = ex * gaze[:, 0:1] + ey * gaze[:, 1:2] + ez * gaze[:, 2:3]
    angle = torch.acos(towards.clamp(-0.999, 0.999)) * (180 / math.pi) / f.iris_size[:, None]
    iris = _column(f.iris_color) * (0.75 + 0.9 * _smoothstep(0.4, 0.95, angle) * _smoothstep(0.5, -0.6, ey))[:, None]
    eye = _mix(iris, 0 * iris + 0.012, torch.maximum(
        _smoothstep(0.08, -0.08, angle - f.pupil_size[:, None]), 0.85 * _smoothstep(0.82, 0.98, angle)
    ))  # fmt: skip
    eye = _mix(eye, 0 * eye + 0.84, _smoothstep(0.98, 1.08, angle))
    # The highlight lies between the gaze and the light, so that it always touches the pupil.
    spark = 1.2 * gaze + light
    spark = (spark / spark.norm(dim=1, keepdim=True))[:, :, None]
    sparkle = _smoothstep(0.95, 0.975, ex * spark[:, 0] + ey * spark[:, 1] + ez * spark[:, 2])
    eye = _mix(eye, 0 * eye + 1.6, sparkle)

    mouth_v, mouth_w = mouth_frame(x, y, z, s)
    in_mouth = (x / (s.cavity_rx + 0.012)) ** 2 + (mouth_v / (s.cavity_ry + 0.02)) ** 2 + (
        mouth_w / s.cavity_rz
    ) ** 2 < 1

    table = torch.stack((d.skin, d.lid, d.ear, d.eye, d.nose, d.tongue, d.teeth, d.mane))
    nearest = table.argmin(dim=0)
    on_skin = nearest <= 1
    on_ear = nearest == 2
    part = torch.where(d.snout < d.skull, PART["muzzle"], PART["head"])
    part = torch.where((d.jaw < d.snout) & (d.jaw < d.skull), PART["jaw"], part)
    part = torch.where(on_skin & (nearest == 0) & in_mouth, PART["mouth"], part)
    part = torch.where(on_ear, PART["ear"], part)
    part = torch.where(on_ear & (inside_ear < 1) & (normal_z > 0.15), PART["inner_ear"], part)
    for index, name in ((3, "eye"), (4, "nose"), (5, "tongue"), (6, "teeth"), (7, "mane")):
        part = torch.where(nearest == index, PART[name], part)

    albedo = skin * texture[:, None]
    tuft = 0.75 + 0.25 * torch.sin(26 * torch.atan2(y - s.mane_y, x + 1e-6))

    def paint(name: str, color: Tensor) -> None:
        nonlocal albedo
        albedo = torch.where((part == PART[name])[:, None], color, albedo)

    paint("ear", ear * texture[:, None])
    paint("inner_ear", inner)
    paint("eye", eye)
    for name, rgb in (
        ("nose", (0.018, 0.014, 0.016)),
        ("mouth", (0.10, 0.015, 0.018)),
        ("tongue", (0.60, 0.12, 0.14)),
        ("teeth", (0.85, 0.82, 0.74)),
    ):
        paint(name, albedo.new_tensor(rgb)[:, None])
    paint("mane", mark * (tuft * texture)[:, None])
    gloss = (part == PART["eye"]) * 0.5 + (part == PART["nose"]) * 0.7 + (part == PART["tongue"]) * 0.35
    return albedo, gloss + 0.04, part


def illuminate(
    albedo: Tensor, normal: Tensor, view: Tensor, open_sky: Tensor, lit: Tensor, gloss: Tensor, f: Factors
) -> Tensor:
    """Linear radiance (B, 3, R) toward `view` (B, 3, R): key light, sky and ground, gloss, rim light.

    `open_sky` and `lit` (B, R) are the unoccluded fractions of the ambient light and of the key light.
    """
    light = light_direction(f)[:, :, None]
    facing = (normal * light).sum(1)
    wrap = ((facing + 0.25) / 1.25).clamp_min(0)  # fur scatters light, so the shadow boundary is soft
    sky = 0.35 + 0.65 * _column(f.top_color)
    ground = 0.10 + 0.5 * _column(f.bottom_color)
    up = normal[:, 1] * 0.5 + 0.5
    ambient = _mix(ground, sky, up) * (0.55 * open_sky)[:, None]
    warm = albedo.new_tensor([1.12, 1.0, 0.86])[:, None]
    key = (1.05 * wrap * lit)[:, None] * warm
    half = light + view
    half = half * torch.rsqrt((half * half).sum(dim=1, keepdim=True))
    shine = (normal * half).sum(1).clamp_min(0) ** 24 * gloss * lit
    rim = (1 - (normal * view).sum(1).clamp(0, 1)) ** 3 * (0.35 + 0.65 * up) * 0.28 * open_sky
    return albedo * (ambient + key) + shine[:, None] * 0.9 + rim[:, None] * sky * (0.25 + albedo)


def body_albedo(normal: Tensor, f: Factors) -> Tensor:
    """Albedo of the shoulders, with a lighter chest: (B, 3, R)."""
    fur = _column(f.fur_color)
    chest = _smoothstep(0.75, 0.98, normal[:, 2] + 0.15 * normal[:, 1]) * f.muzzle_light[:, None]
    strand = torch.sin(34 * normal[:, 0].abs() + 3 * torch.sin(9 * normal[:, 1])) * torch.sin(17 * normal[:, 1])
    return _mix(fur, 1 - (1 - fur) * 0.3, chest) * (0.92 + 0.1 * f.fur[:, None] * strand)[:, None]


def background(f: Factors, size: int) -> Tensor:
    """Linear colours (B, 3, size, size): a vertical gradient with bright and dark out-of-focus discs."""
    axis = (torch.arange(size, device=f.yaw.device) + 0.5) / size - 0.5
    down = _smoothstep(-0.55, 0.55, axis)[None, :, None]  # (1, H, 1)
    top, bottom = _column(f.top_color)[..., None], _column(f.bottom_color)[..., None]
    color = top + (bottom - top) * down[:, None]  # (B, 3, H, 1)
    x, y, radius, glow = (v[..., None, None] for v in f.bokeh.unbind(-1))  # (B, K, 1, 1)
    distance = torch.sqrt((axis[None, None, None, :] - x) ** 2 + (axis[None, None, :, None] - y) ** 2) / radius
    discs = (_smoothstep(1.15, 0.75, distance) * glow).sum(1)  # (B, H, W)
    return color * (1 + discs[:, None]).clamp_min(0.3) + 0.05 * discs[:, None].clamp_min(0)
