"""The independent factors of a critter: shape, pose, light and colour."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.errors import AutodragError

BOKEH_DISCS = 7

# (low, high) of the uniform distributions; units as in Factors. sample_factors then transforms mane, stripes, ear_dark
# and mouth_open so that they are often zero.
RANGES: dict[str, tuple[float, float]] = {
    "yaw": (-40, 40), "pitch": (-16, 20), "roll": (-14, 14),
    "x": (-0.08, 0.08), "y": (-0.02, 0.12), "scale": (0.50, 0.62),
    "head_width": (0.94, 1.12), "head_height": (0.88, 1.04),
    "cheek": (0.28, 0.48),
    "snout_length": (0.30, 0.80), "snout_width": (0.32, 0.46), "snout_y": (-0.30, -0.14),
    "mouth_open": (0, 1), "mouth_width": (0.85, 1.2), "smile": (0, 1), "jaw": (0.85, 1.2),
    "ear_length": (0.26, 0.80), "ear_width": (0.20, 0.33), "ear_spread": (22, 50), "ear_tilt": (-8, 22),
    "ear_point": (0.05, 0.6),
    "eye_size": (0.20, 0.30), "eye_open": (0.6, 1), "eye_spacing": (0.36, 0.47), "eye_y": (0.12, 0.27),
    "gaze_x": (-24, 24), "gaze_y": (-14, 14), "iris_size": (38, 52), "pupil_size": (0.45, 0.7),
    "nose_size": (0.13, 0.21), "mane": (0, 1),
    "muzzle_light": (0.1, 0.95), "stripes": (0, 1), "stripe_count": (7, 12), "ear_dark": (0, 1),
    "eye_ring": (-0.7, 0.8), "fur": (0.4, 1), "light_azimuth": (-60, 60), "light_elevation": (18, 62),
}  # fmt: skip

# sRGB palettes. A colour is interpolated between two entries, with jitter.
_FUR = (
    (0.46, 0.28, 0.17), (0.86, 0.46, 0.17), (0.86, 0.64, 0.33), (0.90, 0.80, 0.62), (0.56, 0.53, 0.50),
    (0.33, 0.26, 0.23), (0.92, 0.89, 0.85), (0.62, 0.31, 0.17), (0.50, 0.54, 0.60), (0.70, 0.55, 0.40),
)  # fmt: skip
_IRIS = (
    (0.36, 0.19, 0.07), (0.75, 0.48, 0.10), (0.30, 0.52, 0.20), (0.20, 0.50, 0.72), (0.62, 0.68, 0.22),
    (0.16, 0.60, 0.55),
)  # fmt: skip
_BACKDROP = (
    (0.30, 0.42, 0.24), (0.50, 0.60, 0.34), (0.62, 0.77, 0.88), (0.35, 0.52, 0.66), (0.80, 0.70, 0.54),
    (0.44, 0.36, 0.32), (0.88, 0.84, 0.78), (0.24, 0.33, 0.34), (0.72, 0.58, 0.56), (0.58, 0.60, 0.68),
    (0.28, 0.28, 0.40), (0.82, 0.62, 0.42),
)  # fmt: skip


@dataclass(frozen=True)
class Factors:
    """A batch of critters, one tensor per factor, first dimension B. Lengths are in skull radii."""

    yaw: Float[Tensor, " B"]
    """Rotation about the vertical axis, degrees, positive toward image right (the critter's left)."""
    pitch: Float[Tensor, " B"]
    """Nod, degrees, positive looks down."""
    roll: Float[Tensor, " B"]
    """Rotation in the image plane, degrees, positive counter-clockwise in the image."""
    x: Float[Tensor, " B"]
    """Offset of the head centre to the right of the image centre, as a fraction of the image size."""
    y: Float[Tensor, " B"]
    """Offset of the head centre below the image centre, as a fraction of the image size."""
    scale: Float[Tensor, " B"]
    """Skull diameter as a fraction of the image size."""
    head_width: Float[Tensor, " B"]
    """Half-width of the skull."""
    head_height: Float[Tensor, " B"]
    """Half-height of the skull."""
    cheek: Float[Tensor, " B"]
    """Radius of the cheeks."""
    snout_length: Float[Tensor, " B"]
    """Length of the snout."""
    snout_width: Float[Tensor, " B"]
    """Half-width of the snout."""
    snout_y: Float[Tensor, " B"]
    """Height of the snout's axis above the head centre."""
    mouth_open: Float[Tensor, " B"]
    """Opening of the jaw: 0 closed, 1 open by 30 degrees."""
    mouth_width: Float[Tensor, " B"]
    """Half-width of the mouth, relative to the half-width of the snout."""
    smile: Float[Tensor, " B"]
    """Lift of the corners of the mouth, 0..1."""
    jaw: Float[Tensor, " B"]
    """Length of the jaw, relative to its default."""
    ear_length: Float[Tensor, " B"]
    """Half-length of an ear."""
    ear_width: Float[Tensor, " B"]
    """Half-width of an ear."""
    ear_spread: Float[Tensor, " B"]
    """Position of the ears: angle from the crown, degrees."""
    ear_tilt: Float[Tensor, " B"]
    """Outward tilt of the ears, degrees, in addition to a third of the spread."""
    ear_point: Float[Tensor, " B"]
    """Shape of the ears: 0 round, 1 pointed."""
    eye_size: Float[Tensor, " B"]
    """Radius of an eyeball."""
    eye_open: Float[Tensor, " B"]
    """Opening of the lids, 0..1."""
    eye_spacing: Float[Tensor, " B"]
    """Distance of an eye from the plane of symmetry."""
    eye_y: Float[Tensor, " B"]
    """Height of the eyes above the head centre."""
    gaze_x: Float[Tensor, " B"]
    """Gaze relative to the head, degrees toward image right."""
    gaze_y: Float[Tensor, " B"]
    """Gaze relative to the head, degrees upward."""
    iris_size: Float[Tensor, " B"]
    """Angular radius of the iris on the eyeball, degrees."""
    pupil_size: Float[Tensor, " B"]
    """Radius of the pupil relative to the iris, 0..1."""
    nose_size: Float[Tensor, " B"]
    """Half-width of the nose."""
    mane: Float[Tensor, " B"]
    """Size of the mane: 0 none, 1 full. Sampled as 0 with probability 0.7 and otherwise uniformly from 0.5..1."""
    muzzle_light: Float[Tensor, " B"]
    """Lightening of muzzle, cheeks and chest, 0..1."""
    stripes: Float[Tensor, " B"]
    """Strength of the dark stripes, 0..1."""
    stripe_count: Float[Tensor, " B"]
    """Stripes per unit length (radians per skull radius)."""
    ear_dark: Float[Tensor, " B"]
    """Darkness of the tips of the ears, 0..1."""
    eye_ring: Float[Tensor, " B"]
    """Ring of fur around the eyes, from -1 (black) to 1 (white)."""
    fur: Float[Tensor, " B"]
    """Strength of the fur texture, 0..1."""
    light_azimuth: Float[Tensor, " B"]
    """Azimuth of the key light, degrees, positive from image right."""
    light_elevation: Float[Tensor, " B"]
    """Elevation of the key light above the horizon, degrees."""
    fur_color: Float[Tensor, "B 3"]
    """sRGB in [0, 1]."""
    mark_color: Float[Tensor, "B 3"]
    """Colour of the mane and the backs of the ears, sRGB in [0, 1]."""
    iris_color: Float[Tensor, "B 3"]
    """sRGB in [0, 1]."""
    top_color: Float[Tensor, "B 3"]
    """Colour of the background's upper edge, sRGB in [0, 1]."""
    bottom_color: Float[Tensor, "B 3"]
    """Colour of the background's lower edge, sRGB in [0, 1]."""
    bokeh: Float[Tensor, "B 7 4"]
    """Out-of-focus discs: offset x, y from the image centre and radius (fractions of the image), signed brightness."""

    def __len__(self) -> int:
        return self.yaw.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Factors:
        """Select critters with a slice or a (K,) tensor; the batch dimension is kept."""
        return Factors(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Factors:
        """Move all factors to a device."""
        return Factors(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def _palette(
    anchors: tuple[tuple[float, float, float], ...], count: int, jitter: float, generator: torch.Generator
) -> Tensor:
    table = torch.tensor(anchors)
    pick = torch.randint(len(anchors), (2, count), generator=generator)
    share = torch.rand(count, 1, generator=generator) ** 2 * 0.6
    color = table[pick[0]] * (1 - share) + table[pick[1]] * share
    brightness = 1 + jitter * torch.randn(count, 1, generator=generator)
    return (color * brightness + 0.3 * jitter * torch.randn(count, 3, generator=generator)).clamp(0.08, 0.96)


def sample_factors(count: int, generator: torch.Generator) -> Factors:
    """Sample independent factors of `count` critters on the CPU, so that they are the same on any device.

    A mane is present with probability 0.3. Its rim then extends at least 0.16 skull radii beyond the head.

    Raises AutodragError if `count` is not positive.
    """
    if count < 1:
        raise AutodragError(f"cannot draw {count} critters: pass a count of at least 1")
    values: dict[str, Tensor] = {}
    for name, (low, high) in RANGES.items():
        values[name] = low + (high - low) * torch.rand(count, generator=generator)
    # Many critters have no mane, no stripes, no dark ears or a closed mouth.
    with_mane = values["mane"] > 0.7
    values["mane"] = torch.where(with_mane, 0.5 + (values["mane"] - 0.7) * (0.5 / 0.3), 0.0)
    values["stripes"] = (values["stripes"] * 2 - 1).clamp_min(0)
    values["ear_dark"] = (values["ear_dark"] * 2 - 1).clamp_min(0)
    values["mouth_open"] = (values["mouth_open"] * 1.4 - 0.4).clamp_min(0)
    values["fur_color"] = _palette(_FUR, count, 0.08, generator)
    values["mark_color"] = 0.55 * values["fur_color"] + 0.35 * _palette(_FUR, count, 0.08, generator)
    values["iris_color"] = _palette(_IRIS, count, 0.10, generator)
    values["top_color"] = _palette(_BACKDROP, count, 0.10, generator)
    values["bottom_color"] = 0.25 * values["top_color"] + 0.7 * _palette(_BACKDROP, count, 0.10, generator)
    uniform = torch.rand(count, BOKEH_DISCS, 4, generator=generator)
    least, span = torch.tensor([-0.55, -0.55, 0.07, -0.16]), torch.tensor([1.1, 0.9, 0.15, 0.44])
    values["bokeh"] = least + span * uniform
    return Factors(**values)


def mirror(factors: Factors) -> Factors:
    """Factors of the mirrored critters: the image is flipped horizontally, left and right landmarks are swapped.

    Landmarks and shapes are exact. Shading differs at creases (about 3 % of the pixels; mean difference over all pixels
    0.002, in a value range of 2), because normals are sampled on a tetrahedron, which is not symmetric in x.
    """
    signed = {"yaw", "roll", "x", "gaze_x", "light_azimuth"}
    values = {f.name: getattr(factors, f.name) for f in fields(factors)}
    values |= {name: -values[name] for name in signed}
    values["bokeh"] = values["bokeh"] * values["bokeh"].new_tensor([-1.0, 1.0, 1.0, 1.0])
    return Factors(**values)


def rotation(factors: Factors) -> Float[Tensor, "B 3 3"]:
    """Matrices from head coordinates to world coordinates (x image right, y up, z toward the viewer)."""
    yaw, pitch, roll = (v * (math.pi / 180) for v in (factors.yaw, factors.pitch, factors.roll))
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=-1).view(-1, 3, 3)

    turn = matrix(yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos())
    nod = matrix(one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos())
    tilt = matrix(roll.cos(), -roll.sin(), zero, roll.sin(), roll.cos(), zero, zero, zero, one)
    return tilt @ turn @ nod
