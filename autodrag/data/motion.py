"""Synthetic motion for training: sequences of codes, and points matched between their first and last images.

Auto DragGAN (2024, section 3.2): a code w_0 moves toward another code in small steps. Points are matched between the
images of the first and the last code. Matches that moved far enough become the drags, and the sequence of codes is the
ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.data.latents import map_codes, mixed_codes, motion_sequence, uniform
from autodrag.nets.predictor import DragBatch, PredictorConfig
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.tracking import match_features

SINGLE_SHARE = 0.3
"""Fraction of the samples with one drag."""


@dataclass(frozen=True)
class MotionConfig:
    """How motion is synthesised and which of its points become drags. Pixels are given for 512 px and scaled."""

    psi: tuple[float, float] = (0.5, 1.0)
    """Truncation of the codes, drawn from this range."""
    mixed_share: float = 0.5
    """Share of the first codes whose layers differ. The others are as the mapping network gives them."""
    travel_share: tuple[float, float] = (0.1, 0.9)
    """Share of the distance to the other code that a sequence covers, drawn from this range."""
    min_drag_px: float = 50.0
    """A match is a drag if it moved at least this far between the first and the last image (the paper's limit)."""
    min_drag_px_many: float = 10.0
    """The same for samples of several drags, some of which should be short."""
    n_candidates: int = 32
    """Random points that are matched in each sample."""
    max_points: int = 12
    """Most drags of a sample."""
    anchor_share: float = 0.25
    """Share of the samples with one to three anchors: points that must stay."""

    def __post_init__(self) -> None:
        if not 0 <= self.psi[0] <= self.psi[1]:
            raise ValueError(f"psi {self.psi}: expected low <= high, both at least 0.")
        check_travel(self.travel_share)
        if not 1 <= self.max_points <= self.n_candidates:
            raise ValueError(f"max_points {self.max_points}: expected 1 to n_candidates ({self.n_candidates}).")
        if not all(0 <= share <= 1 for share in (self.mixed_share, self.anchor_share)):
            raise ValueError("expected mixed_share and anchor_share in [0, 1].")


def check_travel(share: tuple[float, float]) -> None:
    """Raise ValueError if a range of travel shares is invalid."""
    if not 0 < share[0] <= share[1] <= 1:
        raise ValueError(f"travel_share {share}: expected low <= high, both in (0, 1].")


@dataclass(frozen=True)
class Motion:
    """B samples: inputs of an editor (first code, its features, drags) and the codes of the whole sequence."""

    codes: Float[Tensor, "B T L D"]
    """w_0 ... w_n."""
    features: Features
    """Features of w_0, up to the last tracked block."""
    maps: Float[Tensor, "B C h w"]
    """Feature map F of w_0, the input of the predictor."""
    drags: DragBatch
    """Drags, then anchors, then padding."""
    moving: Bool[Tensor, "B N"]
    """True for drags, False for anchors and padding."""


def step_rate(travel_share: Float[Tensor, " B"], steps: int) -> Float[Tensor, " B"]:
    """Lambda of Eq. 7 with which `steps` steps cover the fraction `travel_share` of the distance to w*."""
    return 1 - (1 - travel_share) ** (1 / steps)


@torch.no_grad()
def draw_motion(
    generator: Generator,
    net: PredictorConfig,
    config: MotionConfig,
    count: int,
    rng: torch.Generator,
    rows: slice = slice(None),
) -> Motion:
    """Draw the samples `rows` of a batch of `count`.

    Processes that share a batch draw the same random numbers for the whole batch. Each process synthesises only its own
    rows.
    """
    device = generator.mapping.w_avg.device
    image, layers = net.image, net.layers
    mixed = mixed_codes(generator, count, psi=config.psi, rng=rng)
    plain = map_codes(generator, count, uniform((count,), *config.psi, rng), rng)[:, None].expand(-1, layers, -1)
    is_mixed = (torch.rand(count, generator=rng) < config.mixed_share).to(device)
    start = torch.where(is_mixed[:, None, None], mixed, plain)
    end = map_codes(generator, count, uniform((count,), *config.psi, rng), rng)[:, None].expand(-1, layers, -1)
    rate = step_rate(uniform((count,), *config.travel_share, rng), net.steps).to(device)
    points = torch.rand(count, config.n_candidates, 2, generator=rng) * torch.tensor([image[1], image[0]]) - 0.5
    points = points.to(device)[rows]
    chance = {name: torch.rand(count, generator=rng).to(device)[rows] for name in ("number", "anchors")}
    order = torch.rand(count, config.n_candidates, generator=rng).to(device)[rows]

    codes = motion_sequence(start[rows], end[rows], rate[rows], steps=net.steps, edit_layers=net.edit_layers)
    first = generator.features(codes[:, 0], block=net.track_block)
    last = generator.features(codes[:, -1], block=net.track_block)
    found, mutual = match_features(first.outputs[net.tracked], last.outputs[net.tracked], points, image)
    inside = ((found >= -0.5) & (found <= found.new_tensor([image[1], image[0]]) - 0.5)).all(dim=2)
    matched, moved = mutual & inside, (found - points).norm(dim=2)

    # Drags: a random choice of the matches that moved far enough; if there are none, the match that moved most.
    many = (chance["number"] - SINGLE_SHARE) / (1 - SINGLE_SHARE)
    number = torch.where(many < 0, 1, 2 + (many * (config.max_points - 1)).long()).clamp_max(config.max_points)
    limit = torch.where(number == 1, config.min_drag_px, config.min_drag_px_many) * image[0] / 512
    far = matched & (moved >= limit[:, None])
    most = torch.zeros_like(far).scatter_(1, torch.where(matched, moved, -1.0).argmax(dim=1, keepdim=True), True)
    far = torch.where(far.any(dim=1, keepdim=True), far, most & matched)
    chosen = (torch.where(far, 2.0, 0.0) + order).argsort(dim=1, descending=True)
    far = torch.take_along_dim(far, chosen, 1)
    handles, targets = (torch.take_along_dim(p, chosen[..., None], 1) for p in (points, found))
    drags = far & (torch.arange(config.n_candidates, device=device) < number[:, None])

    # Anchors: other candidates, except those that moved far.
    wanted = torch.where(chance["anchors"] < config.anchor_share, 1 + (order[:, 0] * 3).long(), 0)
    anchors = ~far & ((~far).cumsum(dim=1) <= wanted[:, None])
    targets = torch.where(anchors[..., None], handles, targets)

    # Drags first, then anchors, then as little padding as possible.
    valid = drags | anchors
    front = valid.float().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(valid.sum(dim=1).amax()))]
    handles, targets = (torch.take_along_dim(p, front[..., None], 1) for p in (handles, targets))
    valid, moving = torch.take_along_dim(valid, front, 1), torch.take_along_dim(drags, front, 1)
    maps = first.outputs[net.feature_block].float()
    return Motion(codes, first, maps, DragBatch(handles, targets, valid), moving)
