"""Synthesised motion to learn from: sequences of codes, and points matched between their first and last images.

Auto DragGAN (2024, section 3.2): a code w_0 is moved toward another in small steps; the images of the first and the
last code are matched, and the matches that moved far enough are the drags that the sequence answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.data.latents import map_codes, mixed_codes, motion_sequence, uniform
from autodrag.data.pictures import match_pictures
from autodrag.nets.predictor import DragBatch, PredictorConfig
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.points import Size
from autodrag.tracking import match_features


@dataclass(frozen=True)
class MotionConfig:
    """How motion is synthesised and which points of it become drags. Pixels are meant at 512 px and are scaled."""

    psi: tuple[float, float] = (0.5, 1.0)
    """Truncation of the codes, drawn between the two."""
    mixed: float = 0.5
    """Share of the first codes whose layers differ; the others are as the mapping network gives them."""
    travel: tuple[float, float] = (0.1, 0.9)
    """Share of the way to the other code that the whole sequence goes, drawn between the two."""
    reach: float = 0.0
    """Share of the way that drags may go where that is farther than `travel`: matched on the way, points go straight on
    from there. What moves far is seldom matched, so that matched drags alone are shorter than those that people make.
    0: a drag ends where its point was found, as in the paper; critters so edited stayed nearer to unedited ones."""
    toward: bool = True
    """Toward the other code, as UserControllableLT; false goes away from it, as Eq. 7 is printed."""
    matcher: Literal["features", "sift", "loftr"] = "features"
    """Finds the pairs: the generator's own features (mutual nearest neighbours), OpenCV's SIFT, kornia's LoFTR."""
    weights: Path | None = None
    """Weights file of a learned matcher."""
    min_px: float = 50.0
    """A pair is a drag when it moved at least so far between the first and the last image."""
    min_px_many: float = 10.0
    """The same for samples of several drags, some of which should be short; the paper has one limit for all."""
    min_step_px: float = 30.0
    """The same between two neighbouring images, for the loss of every step."""
    candidates: int = 32
    """Random points that are looked for in the last image."""
    points: int = 12
    """Most drags of a sample."""
    single: float = 0.3
    """Share of the samples that have one drag alone."""
    masks: float = 0.25
    """Share of the samples with a random mask around their drags."""
    anchors: float = 0.25
    """Share of the samples with one to three points that must stay."""

    def __post_init__(self) -> None:
        if not 0 <= self.psi[0] <= self.psi[1] or not 0 < self.travel[0] <= self.travel[1] <= 1:
            raise ValueError(f"psi {self.psi}, travel {self.travel}: expected low <= high, and travel in (0, 1].")
        if not 0 <= self.reach <= 2:
            raise ValueError(f"reach {self.reach}: expected a share of the way, 0 to 2.")
        if self.candidates < self.points or self.points < 1:
            raise ValueError(f"points {self.points}: expected 1 to candidates ({self.candidates}).")
        if not all(0 <= share <= 1 for share in (self.mixed, self.single, self.masks, self.anchors)):
            raise ValueError("mixed, single, masks and anchors are shares: expected 0 to 1.")
        if self.matcher == "loftr" and self.weights is None:
            raise ValueError("matcher loftr: expected the path of its weights in `weights`.")


@dataclass(frozen=True)
class Motion:
    """B samples: what is known (the first code and the drags) and what is to be learned (the others)."""

    codes: Float[Tensor, "B T L D"]
    """w_0 ... w_n."""
    features: Features
    """Of w_0, up to the last block in which points are looked for."""
    maps: Float[Tensor, "B C h w"]
    """F_0."""
    drags: DragBatch
    """DragBatch, and after them anchors."""
    moving: Bool[Tensor, "B N"]
    """True where a row is a drag: neither an anchor nor padding."""
    free: Bool[Tensor, "B"]
    """True where neither mask nor anchors nor a longer way ask for something else than w_n."""


def rate(travel: Float[Tensor, " B"], steps: int, toward: bool) -> Float[Tensor, " B"]:
    """The lambda of Eq. 7 by which n steps go a share of the way to w*; away from it, the same distance."""
    if toward:
        return 1 - (1 - travel) ** (1 / steps)
    return 1 - (1 + travel) ** (1 / steps)


@torch.no_grad()
def draw_motion(
    generator: Generator,
    net: PredictorConfig,
    config: MotionConfig,
    count: int,
    rng: torch.Generator,
    keep: slice = slice(None),
) -> Motion:
    """The samples `keep` of a batch of `count`; every random number is drawn for the whole batch.

    Processes that share a batch therefore draw the same numbers, and each makes its own rows of it.
    """
    device = generator.mapping.w_avg.device
    image, layers = net.image, net.layers
    mixed = mixed_codes(generator, count, psi=config.psi, rng=rng)
    plain = map_codes(generator, count, uniform((count,), *config.psi, rng), rng)[:, None].expand(-1, layers, -1)
    is_mixed = (torch.rand(count, generator=rng) < config.mixed).to(device)
    start = torch.where(is_mixed[:, None, None], mixed, plain)
    end = map_codes(generator, count, uniform((count,), *config.psi, rng), rng)[:, None].expand(-1, layers, -1)
    travel = uniform((count,), *config.travel, rng)
    speed = rate(travel, net.steps, config.toward).to(device)
    points = torch.rand(count, config.candidates, 2, generator=rng) * torch.tensor([image[1], image[0]]) - 0.5
    points = points.to(device)[keep]
    chance = {name: torch.rand(count, generator=rng).to(device)[keep] for name in ("number", "mask", "anchors")}
    order = torch.rand(count, config.candidates, generator=rng).to(device)[keep]
    shape = torch.rand(count, 5, generator=rng).to(device)[keep]
    longer = torch.ones(count)
    if config.reach:
        longer = (1 + torch.rand(count, generator=rng) * (config.reach / travel - 1)).clamp_min(1)
    longer = longer.to(device)[keep]

    codes = motion_sequence(start[keep], end[keep], speed[keep], steps=net.steps, edit_layers=net.edit_layers)
    first = generator.features(codes[:, 0], block=net.track_block)
    points, found, mutual = _match(generator, config, net, codes, first, points)
    scale = image[0] / 512
    moved = (found - points).norm(dim=2)
    height, width = image
    inside = ((found >= -0.5) & (found <= found.new_tensor([width, height]) - 0.5)).all(dim=2)
    good = mutual & inside
    among = (chance["number"] - config.single) / max(1e-6, 1 - config.single)
    number = torch.where(among < 0, 1, 2 + (among * (config.points - 1)).long()).clamp_max(config.points)
    least = torch.where(number == 1, config.min_px, config.min_px_many) * scale
    far = good & (moved >= least[:, None])
    # A sample none of whose points moved far takes the one that moved most.
    best = torch.zeros_like(far).scatter_(1, torch.where(good, moved, -1.0).argmax(dim=1, keepdim=True), True)
    far = torch.where(far.any(dim=1, keepdim=True), far, best & good)
    rows = torch.arange(config.candidates, device=device)
    priority = torch.where(far, 2.0, 0.0) + order
    chosen = priority.argsort(dim=1, descending=True)
    drags = torch.take_along_dim(far, chosen, 1) & (rows < number[:, None])
    handles, targets = (torch.take_along_dim(p, chosen[..., None], 1) for p in (points, found))
    longer = longer.minimum(_room(handles, targets, drags, image))
    targets = handles + longer[:, None, None] * (targets - handles)
    # Anchors: places of the first image that no drag uses, other than those that moved far with them.
    wanted = torch.where(chance["anchors"] < config.anchors, 1 + (order[:, 0] * 3).long(), 0)
    later = ~torch.take_along_dim(far, chosen, 1)
    anchors = later & (later.cumsum(dim=1) <= wanted[:, None])
    valid = drags | anchors
    targets = torch.where(anchors[..., None], handles, targets)
    keep_rows = max(1, int(valid.sum(dim=1).amax()))
    front = valid.float().argsort(dim=1, descending=True, stable=True)[:, :keep_rows]
    handles, targets = (torch.take_along_dim(p, front[..., None], 1) for p in (handles, targets))
    valid, moving = torch.take_along_dim(valid, front, 1), torch.take_along_dim(drags, front, 1)
    masked = chance["mask"] < config.masks
    maps = first.outputs[net.feature_block].float()
    movable = _random_masks(handles, targets, moving, masked, shape, image, maps.shape[2:])
    free = ~(masked | (wanted > 0) | (longer > 1))
    return Motion(codes, first, maps, DragBatch(handles, targets, valid, movable), moving, free)


def _match(
    generator: Generator, config: MotionConfig, net: PredictorConfig, codes: Tensor, first: Features, points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the first image, where they are in the last one, and which pairs to trust."""
    if config.matcher == "features":
        last = generator.features(codes[:, -1], block=net.track_block)
        found, mutual = match_features(first.outputs[net.tracked], last.outputs[net.tracked], points, net.image)
        return points, found, mutual
    before, after = generator(codes[:, 0]), generator(codes[:, -1])
    return match_pictures(before, after, points, matcher=config.matcher, weights=config.weights)


def _room(handles: Tensor, targets: Tensor, drags: Tensor, image: Size) -> Float[Tensor, " B"]:
    """How many times as long all drags of a sample can be without a target outside of the image; 1 at least."""
    limit = targets.new_tensor([image[1], image[0]]) - 0.5
    way = targets - handles
    border = torch.where(way > 0, limit, -0.5)
    most = torch.where(way == 0, torch.inf, (border - handles) / way).amin(dim=2)
    return torch.where(drags, most, torch.inf).amin(dim=1).clamp_min(1)


def _random_masks(
    handles: Tensor, targets: Tensor, moving: Tensor, masked: Tensor, shape: Tensor, image: Size, size: torch.Size
) -> Float[Tensor, "B h w"] | None:
    """Regions that hold all drags with some room, 1 everywhere for samples without a mask.

    In equal shares an ellipse, a brush stroke along every drag, and all that lies on one side of a line. `shape` holds
    five numbers in [0, 1) per sample.
    """
    height, width = int(size[0]), int(size[1])
    unit = torch.tensor([image[1], image[0]], device=handles.device, dtype=handles.dtype)
    y = (torch.arange(height, device=handles.device) + 0.5) * image[0] / height - 0.5
    x = (torch.arange(width, device=handles.device) + 0.5) * image[1] / width - 0.5
    cells = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=2)  # (h, w, 2)
    both = torch.cat([handles, targets], dim=1)
    known = torch.cat([moving, moving], dim=1)[..., None]
    low = torch.where(known, both, torch.inf).amin(dim=1)
    high = torch.where(known, both, -torch.inf).amax(dim=1)
    centre = (low + high) / 2 + (shape[:, :2] - 0.5) * 0.1 * unit
    room = (high - low) / 2 * 1.5 + (0.08 + 0.25 * shape[:, 2:4]) * unit
    ellipse = ((cells - centre[:, None, None]) / room[:, None, None]).square().sum(dim=3) <= 1
    way = (targets - handles)[:, :, None, None]
    off = cells - handles[:, :, None, None]  # (B, N, h, w, 2)
    along = ((off * way).sum(dim=4) / way.square().sum(dim=4).clamp_min(1e-6)).clamp(0, 1)
    reach = (0.05 + 0.2 * shape[:, 2]) * image[0]
    near = (off - along[..., None] * way).norm(dim=4) <= reach[:, None, None, None]
    stroke = (near & moving[:, :, None, None]).any(dim=1)
    angle = shape[:, 0] * 2 * math.pi
    normal = torch.stack([angle.cos(), angle.sin()], dim=1)
    furthest = torch.where(known[..., 0], (both * normal[:, None]).sum(dim=2), -torch.inf).amax(dim=1)
    limit = furthest + (0.04 + 0.3 * shape[:, 1]) * image[0]
    side = (cells * normal[:, None, None]).sum(dim=3) <= limit[:, None, None]
    kind = (shape[:, 4] * 3).long()[:, None, None]
    inside = torch.where(kind == 0, ellipse, torch.where(kind == 1, stroke, side))
    alone = ~masked | ~moving.any(dim=1)
    return (inside | alone[:, None, None]).to(handles.dtype)


@dataclass(frozen=True)
class StepPairs:
    """Pairs of neighbouring images of sequences, for the drag loss of every step; rows are samples x steps."""

    maps: Float[Tensor, "M C h w"]
    """F_i."""
    handles: Float[Tensor, "M N 2"]
    """Points of image i."""
    targets: Float[Tensor, "M N 2"]
    """Where they are in image i + 1."""
    valid: Bool[Tensor, "M N"]
    """Mutual, and moved far enough."""


@torch.no_grad()
def step_pairs(
    generator: Generator,
    net: PredictorConfig,
    config: MotionConfig,
    codes: Float[Tensor, "B T L D"],
    count: int,
    rng: torch.Generator,
    keep: slice = slice(None),
) -> StepPairs:
    """Matches between neighbouring images (Eq. 13), those kept that moved at least `min_step_px`.

    `codes` are the samples `keep` of a batch of `count`, as in `draw_motion`.
    """
    before, after = codes[:, :-1].flatten(0, 1), codes[:, 1:].flatten(0, 1)
    first = generator.features(before, block=net.track_block)
    maps = first.outputs[net.feature_block].float()
    image = net.image
    points = torch.rand(count, net.steps, config.candidates, 2, generator=rng)[keep].flatten(0, 1)
    points = points * torch.tensor([image[1], image[0]]) - 0.5
    pair = torch.stack([before, after], dim=1)
    points, found, mutual = _match(generator, config, net, pair, first, points.to(maps.device))
    far = (found - points).norm(dim=2) >= config.min_step_px * image[0] / 512
    return StepPairs(maps, points, found, mutual & far)
