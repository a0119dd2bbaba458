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
from autodrag.infer.motion import fixed_region, held_points, motion_supervision, movable_share
from autodrag.infer.tracking import Norm, References, take_references, track
from autodrag.nets.stylegan2 import Generator
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
        if (
            self.objective not in ("draggan", "locate")
            or self.space not in ("w", "w+")
            or self.norm not in ("l1", "l2")
        ):
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
        moved = self.value if self.basis is None else self.start + self.basis.offset(self.value)
        return torch.cat([moved.expand_as(self.start), self.kept], dim=1)


def feature_block(generator: Generator, config: RefineConfig) -> int:
    """The block that features are taken from: the configured one, or the last of a small generator."""
    return min(config.feature_block, len(generator.config.block_resolutions) - 1)


WINDOW = 3
"""Half width of the soft tracker's window in cells of the feature map: 7 x 7 positions."""


class _Progress:
    """The best state so far and how long ago it was found; sums only points that are still followed."""

    def __init__(self) -> None:
        self.best: RefineResult | None = None
        self.score = float("inf")
        self.age = 0

    def offer(self, result: RefineResult, always: bool) -> None:
        """Takes a state if it is better, or anyway with `always`."""
        followed = result.distances[~result.lost]
        score = float(followed.square().mean()) if len(followed) else float("inf")
        if always or self.best is None or score < self.score:
            self.best, self.score, self.age = result, score, 0
        else:
            self.age += 1


def _state(generator: Generator, result: RefineResult, features: Features, loss: float) -> StepState:
    kept = Features(tuple(output.detach() for output in features.outputs))

    @torch.no_grad()
    def render() -> Tensor:
        return generator.image(result.latent, kept)

    return StepState(
        step=result.steps,
        points=result.points,
        distances=result.distances,
        confidences=result.confidences,
        lost=result.lost,
        loss=loss,
        seconds=result.seconds,
        latent=result.latent,
        render=render,
    )


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
    device, image = latent.device, generator.config.image_size
    block = feature_block(generator, config)
    latent = latent.detach()
    points, targets = handles.to(device, torch.float32), targets.to(device, torch.float32)
    published = config.objective == "draggan"
    if not published:
        basis = basis or LatentBasis.of(generator)
    if references is None:
        references = _references(generator, latent, points, config, block)
    movable = movable_share(mask, references.maps.shape[2:])
    variable = _Variable(latent, config, None if published else basis)
    optimizer = torch.optim.Adam([variable.value], lr=config.lr) if published else None
    lost = torch.zeros(len(points), dtype=torch.bool, device=device)
    progress, loss_value = _Progress(), 0.0

    for step in range(config.steps + 1):
        current = variable.latent()
        features = generator.features(current, block=block)
        maps = features.last
        if published:
            with torch.no_grad():
                points, sure = track(maps, references, points, image, radius=config.tracking_radius, norm=config.norm)
            found = points
        else:
            window = square(WINDOW, image[0] / maps.shape[2]).to(points)
            found, sure = locate(maps, references, points, image, window=window, sharpness=config.sharpness)
            points = found.detach()
        lost = lost | (sure < config.lost_confidence)
        distances = (points - targets).norm(dim=1)
        seconds = time.monotonic() - started
        result = RefineResult(current.detach(), points, distances, sure, lost, step, seconds, "steps", references)
        if callback is not None:
            callback(_state(generator, result, features, loss_value))
        progress.offer(result, always=published)
        reason = _reason(result, config, stop, progress.age)
        if reason is not None:
            assert progress.best is not None
            return replace(progress.best, reason=reason, steps=step, seconds=time.monotonic() - started)

        if published:
            loss = motion_supervision(maps, points, targets, image, radius=config.supervision_radius)
        else:
            loss = ((found - targets).square().sum(dim=1) * ~lost).sum() / 2
        pull = loss
        if movable is not None:
            loss = loss + config.mask_weight * fixed_region(maps, references.maps, movable)
        if anchors is not None and len(anchors):
            near = max(1, config.supervision_radius)
            loss = loss + config.anchor_weight * held_points(maps, references.maps, anchors.to(device), image, near)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        else:
            variable.descend(loss, pull, distances, config)
        loss_value = float(loss.detach())
    raise AssertionError("the loop ends by a reason")


def _references(
    generator: Generator,
    latent: Float[Tensor, "1 L D"],
    handles: Float[Tensor, "N 2"],
    config: RefineConfig,
    block: int,
) -> References:
    """What the handles look like in the image of `latent`: one feature each (published), or a patch (ours)."""
    with torch.no_grad():
        maps = generator.features(latent, block=block).last
    image = generator.config.image_size
    if config.objective == "draggan":
        return take_references(maps, handles.round(), image, offsets=torch.zeros(1, 2), norm=config.norm)
    return take_references(maps, handles, image, offsets=square(1, image[0] / maps.shape[2]), norm="l2")


def _reason(result: RefineResult, config: RefineConfig, stop: threading.Event | None, age: int) -> Reason | None:
    """Why to end here, if at all."""
    followed = result.distances[~result.lost]
    if not len(followed):
        return "lost"
    if bool((followed <= config.stop_px).all()):
        return "arrived"
    if stop is not None and stop.is_set():
        return "stopped"
    if config.budget_s is not None and result.seconds >= config.budget_s:
        return "budget"
    if result.steps == config.steps:
        return "steps"
    return "stalled" if age >= config.patience else None
