"""The published optimisation loop of DragGAN (Pan et al., SIGGRAPH 2023): its losses, its tracker, its constants.

One step: synthesise features, track the handles by nearest-neighbour search, and take one Adam step on motion
supervision, the mask loss and, as our addition, a loss for anchors. Where the paper and the official code differ, this
follows the code: L2 tracking (paper: L1) in a square window clipped at the border, the mean instead of the sum in the
motion loss, 128 x 128 features, and a supervised disk that is measured on a grid stretched by h / (h - 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.infer.open_image import FEATURE_BLOCK, OpenImage, feature_block
from autodrag.infer.task import Control, Drag, DragResult, Reason, References, Start, renderer
from autodrag.points import Size, disk, last_pixel, resize_mask, sample, sample_resized, square


@dataclass(frozen=True)
class DragganConfig:
    """Settings of the published loop. Lengths are px of the output image; `for_image` scales them."""

    steps: int = 300
    """Maximum number of steps. The official code has no limit; the paper's landmark test uses 300."""
    lr: float = 1e-3
    """Adam's learning rate."""
    space: Literal["w", "w+"] = "w+"
    """`w+`: the edited layers change separately. `w`: they share one vector."""
    edit_layers: int = 6
    """Number of latent vectors, from the first, that may change."""
    feature_block: int = FEATURE_BLOCK
    """Block whose output is supervised and tracked, from 0."""
    supervision_radius: int = 3
    """Radius r1 of the supervised disk, px."""
    tracking_radius: int = 12
    """Half width r2 of the tracker's window, px."""
    stop_px: float = 2.0
    """A point has arrived at this distance from its target."""
    mask_weight: float = 20.0
    """Weight of the mask loss; both official interfaces send 20."""

    def __post_init__(self) -> None:
        if self.space not in ("w", "w+"):
            raise ValueError(f"space {self.space!r}: expected w or w+.")
        if self.steps < 0 or self.lr <= 0 or self.stop_px <= 0:
            raise ValueError("expected steps >= 0, lr > 0 and stop_px > 0.")
        if self.edit_layers < 1 or self.feature_block < 0:
            raise ValueError("expected edit_layers >= 1 and feature_block >= 0.")
        if self.supervision_radius < 0 or self.tracking_radius < 1:
            raise ValueError("expected supervision_radius >= 0 and tracking_radius >= 1.")

    @staticmethod
    def for_image(size: Size) -> DragganConfig:
        """The published constants, scaled from 512 px to images of `size` (H, W).

        A radius that would round to 0 (images under 128 px) is 1. The stop distance is at least 2 px.
        """
        scale = size[0] / 512
        return DragganConfig(
            supervision_radius=max(1, round(3 * scale)),
            tracking_radius=max(1, round(12 * scale)),
            stop_px=max(2 * scale, 2.0),
        )


def draggan(
    image: OpenImage,
    drag: Drag,
    config: DragganConfig,
    control: Control | None = None,
    start: Start | None = None,
) -> DragResult:
    """Moves the handles of an open image (B = 1) to their targets. No point is ever reported as lost."""
    control = control or Control()
    synthesis, size = image.synthesis, image.synthesis.config.image_size
    block = feature_block(synthesis.config, config.feature_block)
    references = drag.references or References(image.layers, drag.handles)
    origin = image.origin(references)
    initial = origin.output(block)
    reference = handle_features(initial, references.handles.round(), size)
    fixed = None if drag.mask is None else 1 - resize_mask(drag.mask, (initial.shape[2], initial.shape[3]))

    begin, points = (image.latent, drag.handles) if start is None else (start.latent, start.points)
    layers = min(config.edit_layers, begin.shape[1])
    edited, kept = begin[:, :layers].detach(), begin[:, layers:].detach()
    value = (edited if config.space == "w+" else edited[:, :1]).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([value], lr=config.lr)
    before = control.seconds
    for step in range(config.steps + 1):
        latent = torch.cat([value.expand_as(edited), kept], dim=1)
        features = synthesis.features(latent, block=block)
        maps = features.outputs[block]
        with torch.no_grad():
            points, confidences = track(maps, reference, points, size, radius=config.tracking_radius)
            distances = (points - drag.targets).norm(dim=1)
        result = DragResult(
            latent=latent.detach(),
            synthesis=synthesis,
            handles=drag.handles.double().cpu().numpy(),
            targets=drag.targets.double().cpu().numpy(),
            points=points.double().cpu().numpy(),
            distances=distances.double().cpu().numpy(),
            confidences=confidences.double().cpu().numpy(),
            lost=torch.zeros(len(points), dtype=torch.bool).numpy(),
            method="refine",
            steps=step,
            seconds=control.seconds,
            reason="steps",
            references=references,
            render=renderer(synthesis, latent.detach(), features),
        )
        if control.callback is not None:
            control.callback(result)
        reason = _reason(distances, step, config, control, control.seconds - before)
        before = control.seconds
        if reason is not None:
            return replace(result, reason=reason)
        loss = motion_supervision(maps, points, drag.targets, size, radius=config.supervision_radius)
        if fixed is not None:
            loss = loss + config.mask_weight * mask_loss(maps, initial, fixed)
        if drag.anchors is not None:
            loss = loss + anchor_loss(maps, initial, drag.anchors, size, max(1, config.supervision_radius))
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    raise AssertionError("the last step has a reason")


def _reason(distances: Tensor, step: int, config: DragganConfig, control: Control, seconds: float) -> Reason | None:
    """Why to end now, if at all. seconds: length of the last step."""
    if bool((distances <= config.stop_px).all()):
        return "arrived"
    if control.stopped:
        return "stopped"
    if control.expires(within=seconds):
        return "budget"
    return "steps" if step == config.steps else None


# --- losses ----------------------------------------------------------------------------------------------------------


def motion_supervision(
    maps: Float[Tensor, "1 C h w"],
    points: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    image: Size,
    *,
    radius: int,
) -> Float[Tensor, ""]:
    """Motion supervision (DragGAN, Eq. 1): features one pixel toward the target shall equal those at the point.

    For every point farther than 1 px from its target: mean L1 over channels and over the pixels of a disk, shifted by
    the unit vector toward the target; the source patch is constant. Summed over points; 0 if every point is within
    1 px.

    As in the official code, pixel k of n counts as if it lay at k * n / (n - 1) when its distance to the point is
    compared with `radius` px. At 512 px a disk of radius 3 then has about 28 pixels instead of 25, at 64 px one of
    radius 1 has 2 to 4 instead of 1. Where the official disk would be empty, we take the nearest pixel. Shifted
    positions outside the image repeat the border; the official code reads zeros there.
    """
    displacement = targets - points
    length = displacement.norm(dim=1, keepdim=True)
    direction = displacement / (length + 1e-7)
    last = last_pixel(image, points)
    patch = points.round()[:, None] + square(radius + 1).to(points)  # (N, P, 2)
    gap = (patch * (last + 1) / last - points[:, None]).norm(dim=2)
    gap = torch.where(((patch >= 0) & (patch <= last)).all(dim=2), gap, torch.inf)
    inside = (gap < radius) | (gap == gap.amin(dim=1, keepdim=True))
    shifted = patch + direction[:, None]
    count = patch.shape[:2]
    source = sample(maps.detach(), patch.flatten(0, 1)[None], image)[0].unflatten(1, count)  # (C, N, P)
    moved = sample_resized(maps, shifted.flatten(0, 1)[None], image)[0].unflatten(1, count)
    change = (source - moved).abs().mean(dim=0) * inside  # (N, P)
    return (change.sum(dim=1) / inside.sum(dim=1) * (length[:, 0] > 1)).sum()


def mask_loss(
    maps: Float[Tensor, "1 C h w"], initial: Float[Tensor, "1 C h w"], fixed: Float[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """Mask loss (DragGAN, Eq. 1): mean L1 change of the features in the fixed region, over the whole map."""
    return ((maps - initial) * fixed).abs().mean()


def anchor_loss(
    maps: Float[Tensor, "1 C h w"],
    initial: Float[Tensor, "1 C h w"],
    anchors: Float[Tensor, "M 2"],
    image: Size,
    radius: int,
) -> Float[Tensor, ""]:
    """Mean L1 change of the features within `radius` px of the anchors, summed over anchors. Not in the paper."""
    patch = (anchors[:, None] + disk(radius).to(anchors)).flatten(0, 1)[None]
    change = (sample(maps, patch, image) - sample(initial, patch, image)).abs()
    return change.mean() * len(anchors)


# --- tracker ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HandleFeatures:
    """Features of the handles before the edit."""

    features: Float[Tensor, "N C"]
    scale: Float[Tensor, " N"]
    """Median distance of each handle's feature to all features of the map: the distance of an unrelated place."""


def handle_features(maps: Float[Tensor, "1 C h w"], handles: Float[Tensor, "N 2"], image: Size) -> HandleFeatures:
    """Reads the features at `handles` (px) from the map of the unedited image of size `image` (H, W)."""
    maps = maps.detach()
    features = sample(maps, handles[None], image)[0].t()  # (N, C)
    cells = maps[0].flatten(1)  # (C, h * w)
    scale = torch.stack([(cells - f[:, None]).square().sum(dim=0).sqrt().median() for f in features])
    return HandleFeatures(features, scale.clamp_min(1e-12))


def track(
    maps: Float[Tensor, "1 C h w"],
    reference: HandleFeatures,
    points: Float[Tensor, "N 2"],
    image: Size,
    *,
    radius: int,
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Point tracking (DragGAN, section 3.3): the nearest feature within `radius` px of the rounded last position.

    Returns positions in whole px, and confidences: 1 - distance / (distance of an unrelated place), clipped to [0, 1].
    The window is clipped at the border of the image.
    """
    limit = last_pixel(image, points)
    candidates = (points.round()[:, None] + square(radius).to(points)).clamp_min(0).minimum(limit)  # (N, P, 2)
    features = sample(maps, candidates.flatten(0, 1)[None], image)[0].unflatten(1, candidates.shape[:2])  # (C, N, P)
    distances = (features - reference.features.t()[:, :, None]).square().sum(dim=0).sqrt()  # (N, P)
    best, index = distances.min(dim=1)
    found = candidates[torch.arange(len(points), device=points.device), index]
    return found, (1 - best / reference.scale).clamp(0, 1)
