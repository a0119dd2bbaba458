"""The refiner: optimise a latent until the handles arrive at their targets (DragGAN, Pan et al. 2023, and beyond).

One step: synthesise up to the feature block, find the handles there, move the code so that they move on. The image is
made only when somebody looks. A result always belongs together: its latent is the one its points were found in.

Two loops. `draggan` is the published one: a hard tracker, and Adam on a loss that pulls every handle one pixel on.
`locate` is ours: the distance of a differentiable tracker's position to the target is itself the loss; it is minimised
in coordinates in which the generator's latents have unit variance, with a step as long as the distance left asks for,
and a step that does not help is taken back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.data.flow import load_raft
from autodrag.images import to_uint8
from autodrag.infer.motion import fixed_region, held_points, locate, motion_supervision, movable_share
from autodrag.infer.settings import RefineConfig
from autodrag.infer.tracking import References, follow_flow, likeness, take_references, track
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.points import side_by_side, square

__all__ = ["References", "RefineConfig", "RefineResult", "StepState", "feature_block", "refine"]

Reason = Literal["arrived", "steps", "budget", "stopped", "stalled", "lost"]

WINDOW = 2
"""Half width of the soft tracker's window in cells of the feature map: 5 x 5 positions."""


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


def feature_block(generator: Generator, config: RefineConfig) -> int:
    """The block that features are taken from: the configured one, or the last of a small generator."""
    return min(config.feature_block, len(generator.config.block_resolutions) - 1)


def _blocks(generator: Generator, config: RefineConfig, chosen: tuple[int, ...]) -> list[int]:
    """Chosen blocks from coarse to fine, each the last where a generator has fewer; of none, the feature block."""
    last = len(generator.config.block_resolutions) - 1
    return sorted({min(k, last) for k in chosen or (config.feature_block,)})


@torch.no_grad()
def take_first_look(
    generator: Generator, latent: Float[Tensor, "1 L D"], handles: Float[Tensor, "N 2"], config: RefineConfig
) -> References:
    """What the handles (px) look like in the image of `latent`: one feature each at whole pixels (published), or 3 x 3
    cells (ours)."""
    blocks = _blocks(generator, config, config.tracked_blocks)
    features = generator.features(latent, block=blocks[-1])
    maps, image = side_by_side([features.outputs[k] for k in blocks]), generator.config.image_size
    if config.objective == "draggan":
        return take_references(maps, handles.round(), image, offsets=torch.zeros(1, 2), norm=config.norm)
    return take_references(maps, handles, image, offsets=square(1, image[0] / maps.shape[2]), norm="l2")


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
    drag = _Drag(generator, latent.detach(), handles, targets, config, mask, anchors, references, stop, callback)
    if config.objective == "draggan":
        return _published(drag, config)
    return _located(drag, config, basis or LatentBasis.of(generator))


class _Drag:
    """What both loops share: the task, the features of a latent, what must stay, and when to end."""

    def __init__(
        self,
        generator: Generator,
        latent: Tensor,
        handles: Tensor,
        targets: Tensor,
        config: RefineConfig,
        mask: Tensor | None,
        anchors: Tensor | None,
        references: References | None,
        stop: threading.Event | None,
        callback: Callback | None,
    ) -> None:
        self.started = time.monotonic()
        self.generator, self.config, self.stop, self.callback = generator, config, stop, callback
        self.image = generator.config.image_size
        self.supervised = _blocks(generator, config, config.supervised_blocks)
        self.tracked = _blocks(generator, config, config.tracked_blocks)
        self.block = max(self.supervised[-1], self.tracked[-1])
        layers = min(config.edit_layers, latent.shape[1])
        self.start, self.kept = latent[:, :layers], latent[:, layers:]
        device = latent.device
        self.handles, self.targets = handles.to(device, torch.float32), targets.to(device, torch.float32)
        self.anchors = None if anchors is None or not len(anchors) else anchors.to(device, torch.float32)
        self.references = references or take_first_look(generator, latent, self.handles, config)
        height, width = self.references.maps.shape[2:]
        self.movable = movable_share(mask, (height, width))
        self.lost = torch.zeros(len(handles), dtype=torch.bool, device=device)
        self.loss = 0.0

    def features(self, edited: Float[Tensor, "1 E D"]) -> tuple[Tensor, Features]:
        """The whole latent of edited first layers, and its features."""
        latent = torch.cat([edited.expand_as(self.start), self.kept], dim=1)
        return latent, self.generator.features(latent, block=self.block)

    def keep(self, maps: Tensor) -> Tensor | None:
        """The loss on what must stay: outside the mask, and at anchors. None where everything may move."""
        loss = None
        if self.movable is not None:
            loss = self.config.mask_weight * fixed_region(maps, self.references.maps, self.movable)
        if self.anchors is not None:
            near = max(1, self.config.supervision_radius)
            held = held_points(maps, self.references.maps, self.anchors, self.image, near)
            loss = self.config.anchor_weight * held + (0 if loss is None else loss)
        return loss

    def result(self, latent: Tensor, points: Tensor, sure: Tensor, step: int) -> RefineResult:
        """The state in which `points` were found."""
        distances = (points - self.targets).norm(dim=1)
        seconds = time.monotonic() - self.started
        latent, points = latent.detach(), points.detach()
        return RefineResult(
            latent, points, distances.detach(), sure, self.lost, step, seconds, "steps", self.references
        )

    def tell(self, result: RefineResult, features: Features) -> None:
        """Calls the callback."""
        if self.callback is None:
            return
        kept = Features(tuple(output.detach() for output in features.outputs))

        @torch.no_grad()
        def render() -> Tensor:
            return self.generator.image(result.latent, kept)

        r = result
        self.callback(
            StepState(r.steps, r.points, r.distances, r.confidences, r.lost, self.loss, r.seconds, r.latent, render)
        )

    def reason(self, result: RefineResult) -> Reason | None:
        """Why to end with this state, if at all."""
        followed = result.distances[~result.lost]
        if not len(followed):
            return "lost"
        if bool((followed <= self.config.stop_px).all()):
            return "arrived"
        if self.stop is not None and self.stop.is_set():
            return "stopped"
        if self.config.budget_s is not None and time.monotonic() - self.started >= self.config.budget_s:
            return "budget"
        return "steps" if result.steps == self.config.steps else None

    def end(self, result: RefineResult, steps: int, reason: Reason) -> RefineResult:
        """The result with what the whole drag took."""
        return replace(result, steps=steps, reason=reason, seconds=time.monotonic() - self.started)


def _published(drag: _Drag, config: RefineConfig) -> RefineResult:
    """DragGAN's loop: track, supervise, Adam step; the codes themselves are the variables, in W one for all layers."""
    value = (drag.start if config.space == "w+" else drag.start[:, :1]).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([value], lr=config.lr)
    points, follow = drag.handles, _tracker(drag, config)
    for step in range(config.steps + 1):
        latent, features = drag.features(value)
        tracked, supervised = (
            side_by_side([features.outputs[k] for k in blocks]) for blocks in (drag.tracked, drag.supervised)
        )
        with torch.no_grad():
            points, sure = follow(tracked, points, partial(drag.generator.image, latent, features))
        drag.lost = drag.lost | (sure < config.lost_confidence)
        result = drag.result(latent, points, sure, step)
        drag.tell(result, features)
        reason = drag.reason(result)
        if reason is not None:
            return drag.end(result, step, reason)
        loss = motion_supervision(supervised, points, drag.targets, drag.image, radius=config.supervision_radius)
        keep = drag.keep(tracked)
        loss = loss if keep is None else loss + keep
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        drag.loss = float(loss.detach())
    raise AssertionError("the loop ends by a reason")


Follow = Callable[[Tensor, Tensor, Callable[[], Tensor]], tuple[Tensor, Tensor]]
"""(features, last points (N, 2), what makes the image) to the points now and their confidences."""


def _tracker(drag: _Drag, config: RefineConfig) -> Follow:
    """The tracker that the settings name; AutodragError where RAFT is not at hand."""
    references, image, norm = drag.references, drag.image, config.norm
    if config.tracker == "nearest":
        return lambda maps, points, _: track(maps, references, points, image, radius=config.tracking_radius, norm=norm)
    if config.tracker == "none":
        return lambda maps, _, __: (drag.handles, likeness(maps, references, drag.handles, image, norm))
    flow = load_raft(drag.handles.device, config.raft_weights)
    with torch.no_grad():
        before = to_uint8(drag.generator(torch.cat([drag.start, drag.kept], dim=1)))[0]

    def follow(maps: Tensor, _: Tensor, picture: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        points = follow_flow(flow, before, to_uint8(picture())[0], drag.handles)
        return points, likeness(maps, references, points, image, norm)

    return follow


def _located(drag: _Drag, config: RefineConfig, basis: LatentBasis) -> RefineResult:
    """Our loop: descend the squared distance of the soft tracker's positions, step by step, never uphill.

    The step is Polyak's, 2 pull / |gradient|^2 along the gradient: for one point the shortest move of the code that
    would close the distance, were the position linear in the code. That it is not, nor seen beyond the window, bounds
    it to `reach` cells. A step that does not lower the loss, or loses a point, is taken back and tried at half reach.
    """
    cell = drag.image[0] / drag.references.maps.shape[2]
    window = square(WINDOW, cell).to(drag.handles)
    rows = drag.start.shape[1] if config.space == "w+" else 1
    value = drag.start.new_zeros(1, rows, drag.start.shape[2])
    here, points, best, gradient = value, drag.handles, None, value
    best_loss, pull, reach, failures = float("inf"), 0.0, config.reach * cell, 0
    for step in range(config.steps + 1):
        value = value.detach().requires_grad_(True)
        latent, features = drag.features(drag.start + basis.offset(value))
        found, sure = locate(
            features.last, drag.references, points, drag.image, window=window, sharpness=config.sharpness
        )
        vanished = sure < config.lost_confidence
        if best is None:
            drag.lost = vanished
        followed = ~drag.lost
        distance = (found - drag.targets).square().sum(dim=1)[followed].sum() / 2
        keep = drag.keep(features.last)
        loss = distance if keep is None else distance + keep
        result = drag.result(latent, found, sure, step)
        drag.loss = float(loss.detach())
        drag.tell(result, features)
        if best is None or (drag.loss < best_loss and not bool((vanished & followed).any())):
            best, best_loss, pull, failures = result, drag.loss, float(distance.detach()), 0
            here, points = value.detach(), result.points
            reach = min(reach * 1.5, config.reach * cell)
        else:
            failures += 1
            reach /= 2
        reason = drag.reason(replace(best, steps=step)) or ("stalled" if failures >= config.patience else None)
        if reason is not None:
            return drag.end(best, step, reason)
        if failures == 0:
            (gradient,) = torch.autograd.grad(loss, value)
        share = min(1.0, reach / float(best.distances[followed].max()))
        length = 2 * pull * share / max(float(gradient.square().sum()), 1e-12)
        value = here - gradient * length
    raise AssertionError("the loop ends by a reason")
