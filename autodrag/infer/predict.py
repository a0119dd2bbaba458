"""The closed loop of the learned editor: predict an edit, synthesise its features, track the points, predict again.

Auto DragGAN (2024) predicts once, open loop: `rounds=1`. Tracking the points after each prediction costs part of a
synthesis and lets the next prediction correct the last one. A round that brings the points no nearer is discarded.
Edits by users, held-out validation and evaluation all run this function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from autodrag.infer.open_image import OpenImage
from autodrag.infer.task import Control, Drag, arrival_distance
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Features
from autodrag.tracking import PULL, follow

ROUNDS = (2, 6)
"""Default limits for one point and for several points: several points still gain from later rounds."""
GAIN = 0.02
"""The loop ends after a round that shortens the distance left by less than this share."""


@dataclass(frozen=True)
class PredictConfig:
    """When the closed loop ends."""

    rounds: int | None = None
    """Maximum number of predictions; 1 is an open loop. None: 2 for one point and 6 for several, and 1 for a predictor
    of the paper's variant."""
    stop_px: float = 0.5
    """A point has arrived at this distance from its target, px, and in any case no farther than half its drag."""

    def __post_init__(self) -> None:
        if (self.rounds is not None and self.rounds < 1) or self.stop_px < 0:
            raise ValueError(f"rounds {self.rounds}, stop_px {self.stop_px}: expected rounds >= 1 and stop_px >= 0.")

    def limit(self, drags: DragBatch, variant: str) -> Int[Tensor, " B"]:
        """Maximum number of predictions for each image by a predictor of `variant`; anchors do not count as points."""
        if self.rounds is not None or variant == "paper":
            return torch.full((len(drags.valid),), self.rounds or 1, device=drags.valid.device)
        moving = drags.valid & (drags.targets != drags.handles).any(dim=2)
        return torch.where(moving.sum(dim=1) > 1, ROUNDS[1], ROUNDS[0])


@dataclass(frozen=True)
class Prediction:
    """B edited images and the points found in them. Padded points have distance 0."""

    latent: Float[Tensor, "B L D"]
    features: Features
    """Block outputs of `latent`."""
    points: Float[Tensor, "B N 2"]
    """px."""
    confidences: Float[Tensor, "B N"]
    distances: Float[Tensor, "B N"]
    """To the targets, px."""
    rounds: int = 0
    """Predictions made."""
    cut: bool = False
    """Whether the next round would have ended after the time budget."""


def batch_of(drag: Drag) -> DragBatch:
    """One drag as the network's input: its points, then its anchors."""
    handles, targets = drag.with_anchors()
    valid = torch.ones(1, len(handles), dtype=torch.bool, device=handles.device)
    return DragBatch(handles[None], targets[None], valid)


@torch.no_grad()
def predict(
    image: OpenImage, drags: DragBatch, config: PredictConfig | None = None, control: Control | None = None
) -> Prediction:
    """Moves the handles of B open images to their targets by repeated predictions.

    The result does not depend on the order of the points, to the last bit: they are sorted first. The first prediction
    is always made and always kept; afterwards a round is kept only if it shortens the sum of distances.
    """
    config, control = config or PredictConfig(), control or Control()
    editor = image.editor
    assert editor is not None
    net = editor.predictor.config
    order = _order(drags)
    drags = _permuted(drags, order)
    reference = image.look(net.tracked).at(drags.handles, net.image)
    limit = config.limit(drags, net.variant)
    moving = (drags.targets != drags.handles).any(dim=2)  # anchors have no drag to halve
    stop = torch.where(moving, arrival_distance(drags.handles, drags.targets, config.stop_px), config.stop_px)
    first = torch.ones_like(drags.handles[..., 0])
    best = latest = _measured(image.latent, image.features, drags.handles, first, drags)
    done = torch.zeros(len(image.latent), dtype=torch.bool, device=image.latent.device)  # images that are left alone
    made, cut = 0, False
    for made in range(1, int(limit.max()) + 1):
        maps = latest.features.outputs[net.feature_block]
        memory = image.memory if made == 1 else replace(image.memory, map_tokens=None)
        latent = editor.edit(latest.latent, maps, replace(drags, handles=latest.points), memory)[:, -1]
        features = image.synthesis.features(latent, block=net.track_block)
        # A prediction should move the points all the way, so they are expected near their targets.
        points, confidences = follow(features.outputs[net.tracked], reference, net.image, near=drags.targets, pull=PULL)
        latest = _measured(latent, features, points, confidences, drags)
        left, before = latest.distances.sum(dim=1), best.distances.sum(dim=1)
        # The distance before the first round is exact and the tracked one is not, so the two are not compared.
        better = torch.ones_like(done) if made == 1 else left < before
        best = _choose(better & ~done, latest, best)
        arrived = ((best.distances <= stop) | ~drags.valid).all(dim=1)
        stalled = best.distances.sum(dim=1) > before * (1 - GAIN)
        done = (done | arrived | stalled if made > 1 else arrived) | (limit <= made)
        if bool(done.all()) or control.stopped:
            break
        cut = control.budget_s is not None and control.seconds * (made + 1) / made > control.budget_s
        if cut:
            break
    back = order.argsort(dim=1)
    return replace(
        best,
        points=torch.take_along_dim(best.points, back[..., None], 1),
        distances=torch.take_along_dim(best.distances, back, 1),
        confidences=torch.take_along_dim(best.confidences, back, 1),
        rounds=made,
        cut=cut,
    )


def _order(drags: DragBatch) -> Int[Tensor, "B N"]:
    """The order of points by handle, then target."""
    keys = torch.cat([drags.handles, drags.targets], dim=2)
    order = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[:2])
    if keys.shape[1] == 1:
        return order
    for k in range(3, -1, -1):  # stable sorts, least significant key first
        step = torch.take_along_dim(keys[..., k], order, 1).argsort(dim=1, stable=True)
        order = torch.take_along_dim(order, step, 1)
    return order


def _permuted(drags: DragBatch, order: Int[Tensor, "B N"]) -> DragBatch:
    return replace(
        drags,
        handles=torch.take_along_dim(drags.handles, order[..., None], 1),
        targets=torch.take_along_dim(drags.targets, order[..., None], 1),
        valid=torch.take_along_dim(drags.valid, order, 1),
    )


def _measured(latent: Tensor, features: Features, points: Tensor, confidences: Tensor, drags: DragBatch) -> Prediction:
    return Prediction(latent, features, points, confidences, (points - drags.targets).norm(dim=2) * drags.valid)


def _choose(better: Tensor, latest: Prediction, best: Prediction) -> Prediction:
    """Image by image, the better of two predictions."""
    if bool(better.all()):
        return latest
    if not bool(better.any()):
        return best

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b)

    outputs = zip(latest.features.outputs, best.features.outputs, strict=False)
    return Prediction(
        pick(latest.latent, best.latent),
        Features(tuple(pick(a, b) for a, b in outputs)),
        pick(latest.points, best.points),
        pick(latest.confidences, best.confidences),
        pick(latest.distances, best.distances),
    )
