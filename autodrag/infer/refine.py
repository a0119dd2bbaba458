"""The refiner: optimise a latent until the handles arrive at their targets (DragGAN, Pan et al. 2023, and beyond).

One step: synthesise up to the feature block, find the handles there, descend a loss that moves them on. The image is
made only when somebody looks. A result always belongs together: its latent is the one its points were found in.

Two objectives. `draggan` is the published one: a shifted-patch loss that pulls every handle one pixel on, with a
hard tracker. `locate` is ours: the distance of a differentiable tracker's position to the target, minimised in
coordinates in which the generator's latents have unit variance, with a step length taken from the distance left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.infer.latent_space import LatentBasis
from autodrag.infer.motion import fixed_region, held_points, locate, motion_supervision, movable_share
from autodrag.infer.tracking import Norm, References, take_references, track
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.points import Size, square

Reason = Literal["arrived", "steps", "budget", "stopped", "stalled", "lost"]


@dataclass(frozen=True)
class RefineConfig:
    """How to drag. Lengths are pixels of the output image; use `preset` to get them for an image size."""

    objective: Literal["draggan", "locate"] = "locate"
    """The published loss, or ours."""
    steps: int = 100
    """Most optimisation steps."""
    budget_s: float | None = None
    """Wall-clock limit in seconds; None for none."""
    lr: float = 0.05
    """Adam's learning rate; for `locate` in units of standard deviations of a latent direction."""
    space: Literal["w", "w+"] = "w+"
    """Move the edited layers together (W) or each on its own (W+)."""
    edit_layers: int = 6
    """The first so many latent vectors may change; the rest keep the appearance."""
    feature_block: int = 5
    """Block whose output is the feature map, from 0; the last one where a generator has fewer."""
    supervision_radius: int = 3
    """Radius r1 of the supervised disk, px."""
    tracking_radius: int = 12
    """Half width r2 of the tracker's window, px."""
    stop_px: float = 2.0
    """A point has arrived at this distance from its target."""
    mask_weight: float = 20.0
    """Weight of the change where nothing may move."""
    anchor_weight: float = 1.0
    """Weight of the change around points that must stay."""
    norm: Norm = "l2"
    """Feature distance of the tracker."""
    sharpness: float = 30.0
    """`locate`: sharpness of the soft tracker."""
    prior: float = 0.0
    """`locate`: weight of the squared distance from the start, in standard deviations per coordinate."""
    lost_confidence: float = 0.2
    """A point whose confidence is below this is lost: reported, and no longer followed or pulled."""
    patience: int = 30
    """`locate`: stop after so many steps without progress."""

    def __post_init__(self) -> None:
        if self.objective not in ("draggan", "locate") or self.space not in ("w", "w+") or self.norm not in ("l1", "l2"):
            raise ValueError(f"objective {self.objective!r}, space {self.space!r} or norm {self.norm!r} is unknown.")
        if self.steps < 0 or self.lr <= 0 or self.stop_px <= 0:
            raise ValueError("expected steps >= 0, lr > 0 and stop_px > 0.")
        if self.budget_s is not None and not self.budget_s > 0:
            raise ValueError(f"budget_s {self.budget_s}: expected a positive number of seconds, or none.")
        if self.edit_layers < 1 or self.feature_block < 0:
            raise ValueError("expected edit_layers >= 1 and feature_block >= 0.")
        if self.supervision_radius < 0 or self.tracking_radius < 1:
            raise ValueError("expected supervision_radius >= 0 and tracking_radius >= 1.")

    @staticmethod
    def preset(name: Literal["default", "draggan"], image_size: Size) -> RefineConfig:
        """The named settings for images of (H, W) px; raises ValueError for another name.

        `draggan` runs as the official code does where that and the paper differ: L2 tracking (paper: L1), a square
        window clipped at the border, mean instead of sum in the motion loss, the 128 x 128 features, radii and stop
        distance r1 = 3, r2 = 12, 2 px at 512 px scaled by the height, the last at least 2 px, Adam at 1e-3, mask
        weight 20 (what both of its interfaces send). Pixels are exact where its disk uses a grid stretched by
        h / (h - 1). Where a radius would round to 0 (images under 128 px) it is 1.
        """
        scale = image_size[0] / 512
        if name == "draggan":
            return RefineConfig(
                objective="draggan",
                steps=300,
                lr=1e-3,
                supervision_radius=max(1, round(3 * scale)),
                tracking_radius=max(1, round(12 * scale)),
                stop_px=max(2 * scale, 2.0),
                lost_confidence=0.0,
            )
        if name == "default":
            return RefineConfig(
                supervision_radius=max(1, round(3 * scale)),
                tracking_radius=max(3, round(12 * scale)),
                stop_px=max(scale, 0.5),
            )
        raise ValueError(f"preset {name!r}: expected default or draggan.")


@dataclass(frozen=True)
class StepState:
    """What a callback sees: the state before a step is taken."""

    step: int
    """Steps taken so far."""
    points: Float[Tensor, "N 2"]
    """Where the handles are now, px."""
    distances: Float[Tensor, " N"]
    """Their distances to the targets, px."""
    confidences: Float[Tensor, " N"]
    """How well each point looks like its handle, in [0, 1]."""
    lost: Bool[Tensor, " N"]
    """True where a point is no longer followed."""
    loss: float
    """Loss of the step before; 0 at the first call."""
    seconds: float
    """Since the start."""
    latent: Float[Tensor, "1 L D"]
    """The latent in which the points were found."""
    render: Callable[[], Float[Tensor, "1 3 H W"]]
    """Makes the image of this state; costs a synthesis from the feature block on."""


@dataclass(frozen=True)
class RefineResult:
    """The end of a drag; `points`, `distances` and `confidences` were found in `latent`."""

    latent: Float[Tensor, "1 L D"]
    points: Float[Tensor, "N 2"]
    distances: Float[Tensor, " N"]
    confidences: Float[Tensor, " N"]
    lost: Bool[Tensor, " N"]
    steps: int
    seconds: float
    reason: Reason
    references: References
    """Pass them to the next call to keep following what the handles first were."""


Callback = Callable[[StepState], None]


class _Variable:
    """What is optimised, and the latent it stands for."""

    def __init__(self, latent: Float[Tensor, "1 L D"], config: RefineConfig, basis: LatentBasis | None) -> None:
        layers = min(config.edit_layers, latent.shape[1])
        self.kept = latent[:, layers:]
        self.start = latent[:, :layers]
        self.basis = basis
        if basis is None:
            # DragGAN: the codes themselves; in W one vector stands for all edited layers.
            self.value = (self.start if config.space == "w+" else self.start[:, :1]).clone().requires_grad_(True)
        else:
            rows = layers if config.space == "w+" else 1
            self.value = torch.zeros(1, rows, latent.shape[2], device=latent.device).requires_grad_(True)

    def latent(self) -> Float[Tensor, "1 L D"]:
        """The latent of the present value, differentiable in it."""
        if self.basis is None:
            edited = self.value.expand_as(self.start)
        else:
            edited = self.start + self.basis.offset(self.value)
        return torch.cat([edited, self.kept], dim=1)


def feature_block(generator: Generator, config: RefineConfig) -> int:
    """The block that features are taken from: the configured one, or the last of a small generator."""
    return min(config.feature_block, len(generator.config.block_resolutions) - 1)


def refine(
    generator: Generator,
    latent: Float[Tensor, "1 L D"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    *,
    config: RefineConfig,
    mask: Bool[Tensor, "H W"] | None = None,
    anchors: Float[Tensor, "M 2"] | None = None,
    references: References | None = None,
    basis: LatentBasis | None = None,
    stop: threading.Event | None = None,
    callback: Callback | None = None,
) -> RefineResult:
    """Moves `handles` to `targets` (px) by optimising the first layers of `latent`.

    mask: True = may move. anchors: points (px) that must stay. references: what the handles looked like, from an
    earlier result; None takes them from `latent`. basis: standard coordinates of the generator's latents; made here
    when `locate` needs them and none are given. stop: set it from any thread to end after the current step.
    callback: called before every step and at the end, in this thread.
    """
    started = time.monotonic()
    device = latent.device
    image = generator.config.image_size
    block = feature_block(generator, config)
    points, targets = handles.to(device, torch.float32), targets.to(device, torch.float32)
    latent = latent.detach()
    if config.objective == "locate":
        basis = basis or LatentBasis.of(generator)
        cell = image[0] / generator.config.block_resolutions[block]
        around = square(1, cell)
    else:
        around = torch.zeros(1, 2)
    with torch.no_grad():
        features = generator.features(latent, block=block)
    if references is None:
        start = points.round() if config.objective == "draggan" else points
        references = take_references(features.last, start, image, offsets=around, norm=config.norm)
    movable = movable_share(mask, features.last.shape[2:])
    variable = _Variable(latent, config, basis if config.objective == "locate" else None)
    optimizer = torch.optim.Adam([variable.value], lr=config.lr)
    lost = torch.zeros(len(points), dtype=torch.bool, device=device)
    best: RefineResult | None = None
    since_best, loss_value = 0, 0.0

    for step in range(config.steps + 1):
        current = variable.latent()
        features = generator.features(current, block=block)
        maps = features.last
        if config.objective == "draggan":
            with torch.no_grad():
                points, confidence = track(
                    maps, references, points, image, radius=config.tracking_radius, norm=config.norm
                )
            soft = points
        else:
            points, confidence, soft = _follow(maps, references, points, image, config)
        lost = lost | (confidence < config.lost_confidence)
        distances = (points - targets).norm(dim=1)
        seconds = time.monotonic() - started
        result = RefineResult(
            current.detach(), points, distances, confidence, lost, step, seconds, "steps", references
        )
        if callback is not None:
            callback(_state(generator, result, features, loss_value))
        # The only waits for the device: one for the distances, one for the loss.
        active = distances[~lost]
        if best is None or config.objective == "draggan" or _score(result) < _score(best):
            best, since_best = result, 0
        else:
            since_best += 1
        reason: Reason | None = None
        if not len(active):
            reason = "lost"
        elif bool((active <= config.stop_px).all()):
            reason = "arrived"
        elif stop is not None and stop.is_set():
            reason = "stopped"
        elif config.budget_s is not None and seconds >= config.budget_s:
            reason = "budget"
        elif step == config.steps:
            reason = "steps"
        elif config.objective == "locate" and since_best >= config.patience:
            reason = "stalled"
        if reason is not None:
            return replace(best, reason=reason, steps=step, seconds=time.monotonic() - started)

        if config.objective == "draggan":
            loss = motion_supervision(maps, points, targets, image, radius=config.supervision_radius)
        else:
            loss = _distance_loss(soft, targets, lost, config) + config.prior * variable.size()
        if movable is not None:
            loss = loss + config.mask_weight * fixed_region(maps, references.maps, movable)
        if anchors is not None and len(anchors):
            near = max(1, config.supervision_radius)
            loss = loss + config.anchor_weight * held_points(maps, references.maps, anchors.to(device), image, near)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_value = float(loss.detach())
    raise AssertionError("unreachable: the loop ends by a reason")
