"""Held-out drags for the curves of predictor training: how far from their targets are points after a closed loop?

The protocol of the landmark evaluation, small and batched: the landmarks of one image are to go where another image
has them, and are detected again. Where a checkpoint has no landmark net, matched points of the two images take the
place of landmarks, and the tracker says where they went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.data.latents import map_codes
from autodrag.nets.landmarks import LandmarkNet
from autodrag.nets.predictor import DragBatch, PredictorConfig
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.tracking import PULL, appearance, follow, match_features

if TYPE_CHECKING:
    from autodrag.train.predictor import LearnedEditor

COUNT = 64
ROUNDS = 3


@dataclass(frozen=True)
class HeldOut:
    """The drags: their images' codes, points and targets."""

    latent: Float[Tensor, "B L D"]
    """Codes of the images to drag, psi 0.7."""
    points: Float[Tensor, "B N 2"]
    """Where the points are."""
    targets: Float[Tensor, "B N 2"]
    """Where they should be."""
    net: LandmarkNet | None
    """Finds the points again; None: the tracker does."""
    config: PredictorConfig
    """The predictor's, for block and image size."""


@torch.no_grad()
def held_out_drags(
    generator: Generator, net: LandmarkNet | None, config: PredictorConfig, count: int = COUNT
) -> HeldOut:
    """The same drags for every training of a generator."""
    rng = torch.Generator().manual_seed(77_777)
    psi = torch.full((count,), 0.7)
    a, b = (map_codes(generator, count, psi, rng)[:, None].repeat(1, config.layers, 1) for _ in range(2))
    if net is not None and net.config.resolution == config.image_height == config.image_width:
        points, targets = (net(generator(latent).clamp(-1, 1)).points for latent in (a, b))
    else:
        net = None
        first, last = (
            generator.features(latent, block=config.track_block).outputs[config.tracked] for latent in (a, b)
        )
        extent = torch.tensor([config.image_width, config.image_height])
        points = torch.rand(count, 11, 2, generator=rng) * extent - 0.5
        targets, _ = match_features(first, last, points, config.image)
    return HeldOut(a, points, targets, net, config)


@torch.no_grad()
def measure_drags(
    held_out: HeldOut, generator: Generator, editor: LearnedEditor, rounds: int = ROUNDS
) -> tuple[dict[str, float], Float[Tensor, "3 H W"]]:
    """Mean distance left, as a share of the distance before, for 1, 5 and all points; and a sheet of eight edits.

    The sheet shows images before, and after drags of one and of all points.
    """
    device = generator.mapping.w_avg.device
    latent, points, targets = (t.to(device) for t in (held_out.latent, held_out.points, held_out.targets))
    image, left, shown = held_out.config.image, {}, [generator(latent[:8])]
    before = generator.features(latent, block=held_out.config.track_block)
    order = torch.rand(points.shape[:2], generator=torch.Generator().manual_seed(1)).argsort(dim=1).to(device)
    for count in (1, 5, points.shape[1]):
        chosen = order[:, :count, None]
        start, end = (torch.take_along_dim(p, chosen, 1) for p in (points, targets))
        after = closed_loop(editor, generator, latent, before, start, end, rounds)
        pictures = generator(after).clamp(-1, 1)
        if held_out.net is not None:
            found = torch.take_along_dim(held_out.net.to(device)(pictures).points, chosen, 1)
        else:
            maps, tracked = generator.features(after, block=held_out.config.track_block), held_out.config.tracked
            what = appearance(before.outputs[tracked], start, image)
            found, _ = follow(maps.outputs[tracked], what, image, near=end, pull=PULL)
        share = (found - end).norm(dim=2).mean() / (start - end).norm(dim=2).mean()
        left[f"{count}-points"] = round(float(share), 4)
        shown.append(pictures[:8])
    rows = torch.stack([shown[0], shown[1], shown[-1]]).float().clamp(-1, 1)
    return left, (rows.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3) + 1) / 2


def closed_loop(
    editor: LearnedEditor, generator: Generator, latent: Tensor, maps: Features, start: Tensor, end: Tensor, rounds: int
) -> Float[Tensor, "B L D"]:
    """A fixed number of rounds of: predict, synthesise features, find the points."""
    config = editor.predictor.config
    what, points = appearance(maps.outputs[config.tracked], start, config.image), start
    valid = torch.ones(start.shape[:2], dtype=torch.bool, device=start.device)
    for round_ in range(rounds):
        latent = editor.edit(latent, maps.outputs[config.feature_block], DragBatch(points, end, valid))[:, -1]
        if round_ < rounds - 1:
            maps = generator.features(latent, block=config.track_block)
            points, _ = follow(maps.outputs[config.tracked], what, config.image, near=end, pull=PULL)
    return latent
