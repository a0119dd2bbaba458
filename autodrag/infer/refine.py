"""The refiner: optimise a latent until the handles arrive at their targets (DragGAN, Pan et al. 2023, and beyond).

One step: synthesise up to the feature block, find the handles there, move the code so that they move on. The image is
made only when somebody looks. A result always belongs together: its latent is the one its points were found in.

Two loops. `draggan` is the published one: a hard tracker, and Adam on a loss that pulls every handle one pixel on.
`locate` is ours: the distance of a differentiable tracker's positions to the targets is itself the loss. A point is two
numbers and a code thousands, so that Gauss and Newton's step is cheap: the shortest change of the code, in coordinates
in which the generator's latents have unit variance, by which all points would move as asked.
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

from autodrag.eval.flow import RaftFlow as load_raft
from autodrag.images import to_uint8
from autodrag.infer.motion import fixed_region, held_points, motion_supervision, movable_share
from autodrag.infer.settings import RefineConfig
from autodrag.infer.tracking import follow_flow, likeness, take_references, track
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Features, Generator
from autodrag.points import side_by_side
from autodrag.tracking import PULL, appearance
from autodrag.tracking import follow as locate

__all__ = ["Origin", "RefineConfig", "RefineResult", "StepState", "feature_block", "refine"]

Reason = Literal["arrived", "steps", "budget", "stopped", "stalled", "lost"]

LEVELS = 3
"""`locate` looks for points in the outputs of so many blocks, the feature block and those before it."""
SKETCH = 32
"""Random combinations that stand for all that must not change, in the curvature of `locate`. With 8 of them critters'
masked drags ended no nearer and changed more outside (47 % of the change without a mask, against 41 %)."""
ROWS = 8
"""Gradients that are taken at once."""


@dataclass(frozen=True)
class Origin:
    """Where handles were first seen: what a drag tracks, over several edits if asked for."""

    latent: Float[Tensor, "1 L D"]
    """The image."""
    handles: Float[Tensor, "N 2"]
    """The handles in it, px."""


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
    references: Origin
    """Pass them to the next call to keep following what the handles first were."""


Callback = Callable[[StepState], None]


def feature_block(generator: Generator, config: RefineConfig) -> int:
    """The block that features are taken from: the configured one, or the last of a small generator."""
    return min(config.feature_block, len(generator.config.block_resolutions) - 1)


def _blocks(generator: Generator, config: RefineConfig, chosen: tuple[int, ...]) -> list[int]:
    """Chosen blocks from coarse to fine, each the last where a generator has fewer; of none, the feature block."""
    last = len(generator.config.block_resolutions) - 1
    return sorted({min(k, last) for k in chosen or (config.feature_block,)})


def refine(
    generator: Generator,
    latent: Float[Tensor, "1 L D"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    *,
    config: RefineConfig,
    mask: Bool[Tensor, "H W"] | None = None,
    anchors: Float[Tensor, "M 2"] | None = None,
    references: Origin | None = None,
    before: Float[Tensor, "1 L D"] | None = None,
    basis: LatentBasis | None = None,
    stop: threading.Event | None = None,
    callback: Callback | None = None,
) -> RefineResult:
    """Moves `handles` to `targets` (px) by optimising the first layers of `latent`.

    mask: True = may move. anchors: points (px) that must stay. references: what the handles looked like, from an
    earlier result; None takes them from `latent`. before: the code that `locate` counts the length of the edit from,
    where `latent` is a guess of where it leads; None is `latent`. basis: standard coordinates of the generator's
    latents; made here when `locate` needs them and none are given. stop: set it from any thread to end after the
    current step. callback: called before every step and at the end, in this thread.
    """
    drag = _Drag(generator, latent.detach(), handles, targets, config, mask, anchors, references, stop, callback)
    if config.objective == "draggan":
        return _published(drag, config)
    return _located(drag, config, basis or LatentBasis.of(generator), latent if before is None else before)


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
        references: Origin | None,
        stop: threading.Event | None,
        callback: Callback | None,
    ) -> None:
        self.started = time.monotonic()
        self.generator, self.config, self.stop, self.callback = generator, config, stop, callback
        self.image = generator.config.image_size
        self.supervised = _blocks(generator, config, config.supervised_blocks)
        self.tracked = _blocks(generator, config, config.tracked_blocks)
        self.block = max(self.supervised[-1], self.tracked[-1])
        # Of a mask the published loop reads the finest block that it tracks, ours the one before it, at a quarter.
        self.kept_block = self.tracked[-1] if config.objective == "draggan" else max(0, self.block - 1)
        layers = min(config.edit_layers, latent.shape[1])
        self.start, self.kept = latent[:, :layers], latent[:, layers:]
        device = latent.device
        self.handles, self.targets = handles.to(device, torch.float32), targets.to(device, torch.float32)
        self.anchors = None if anchors is None or not len(anchors) else anchors.to(device, torch.float32)
        self.references = references or Origin(latent, self.handles)
        with torch.no_grad():
            self.first = generator.features(self.references.latent, block=self.block)
        rows, columns = self.first.outputs[self.kept_block].shape[2:]
        self.movable = movable_share(mask, (rows, columns))
        self.lost = torch.zeros(len(handles), dtype=torch.bool, device=device)
        self.loss = 0.0

    def features(self, edited: Float[Tensor, "1 E D"]) -> tuple[Tensor, Features]:
        """The whole latent of edited first layers, and its features."""
        latent = torch.cat([edited.expand_as(self.start), self.kept], dim=1)
        return latent, self.generator.features(latent, block=self.block)

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
    initial = side_by_side([drag.first.outputs[k] for k in drag.tracked])
    points, follow = drag.handles, _tracker(drag, config, initial)
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
        if drag.movable is not None:
            loss = loss + config.mask_weight * fixed_region(tracked, initial, drag.movable)
        if drag.anchors is not None:
            near = max(1, config.supervision_radius)
            loss = loss + config.anchor_weight * held_points(tracked, initial, drag.anchors, drag.image, near)
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        drag.loss = float(loss.detach())
    raise AssertionError("the loop ends by a reason")


Follow = Callable[[Tensor, Tensor, Callable[[], Tensor]], tuple[Tensor, Tensor]]
"""(features, last points (N, 2), what makes the image) to the points now and their confidences."""


def _tracker(drag: _Drag, config: RefineConfig, initial: Tensor) -> Follow:
    """The tracker that the settings name; AutodragError where RAFT is not at hand."""
    image, norm = drag.image, config.norm
    seen = drag.references.handles.round()
    references = take_references(initial, seen, image, offsets=torch.zeros(1, 2), norm=norm)
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


def _located(drag: _Drag, config: RefineConfig, basis: LatentBasis, before: Float[Tensor, "1 L D"]) -> RefineResult:
    """Our loop: Levenberg and Marquardt's on the positions of a soft tracker, never uphill.

    Anchors are points whose targets are their places. A step asks every point for at most `reach` of the image's
    height, for what is seen beyond the tracker's window is not seen well; where it brings nothing, it is taken back,
    and tried again shorter and more damped. The tracker looks near where a step was to take the points.
    """
    apart = config.space == "w+" or (config.space == "auto" and drag.movable is not None)
    rows, count, height = drag.start.shape[1] if apart else 1, len(drag.handles), drag.image[0]
    levels = slice(max(0, drag.block + 1 - LEVELS), drag.block + 1)
    seen, targets, weight = drag.references.handles, drag.targets, drag.targets.new_ones(count)
    points = drag.handles
    if drag.anchors is not None:
        seen, targets, points = (torch.cat([x, drag.anchors]) for x in (seen, targets, points))
        weight = torch.cat([weight, weight.new_full((len(drag.anchors),), config.anchor_weight)])
    with torch.no_grad():
        what = appearance(drag.first.outputs[levels], seen[None], drag.image)
    rng = torch.Generator().manual_seed(0)
    here = value = drag.start.new_zeros(1, rows, drag.start.shape[2])
    away = basis.coordinates(drag.start - before[:, : drag.start.shape[1]].to(drag.start))
    away = away if apart else away.mean(dim=1, keepdim=True)
    best, best_loss, failures, slopes, expected = None, float("inf"), 0, None, points
    prior = config.prior * (height / 64) ** 2
    damping, reach, age = config.damping, config.reach * height, 0
    for step in range(config.steps + 1):
        value = value.detach().requires_grad_(True)
        latent, features = drag.features(drag.start + basis.offset(value))
        found, sure = locate(features.outputs[levels], what, drag.image, near=expected[None], pull=PULL)
        found, sure = found[0], sure[0, :count].detach()
        vanished = sure < config.lost_confidence
        if best is None:
            drag.lost = vanished
        share = weight.clone()
        share[:count][drag.lost] = 0
        errors = (found - targets) * share.sqrt()[:, None]
        change = _change(drag, features, config)
        squares = errors.square().sum() + prior * (away + value).square().sum()
        squares = squares if change is None else squares + change.square().sum()
        loss = float(squares.detach()) / 2
        result = drag.result(latent, found[:count], sure, step)
        drag.loss = loss
        drag.tell(result, features)
        if best is None or (loss < best_loss and not bool((vanished & ~drag.lost).any())):
            failures = failures + 1 if loss > best_loss * (1 - config.gain) else 0
            if best is not None:
                damping, reach = damping * 0.6, min(reach * 1.5, config.reach * height)
            best, best_loss, here, points, fresh = result, loss, value.detach(), found.detach(), True
        else:
            failures, damping, reach, fresh = failures + 1, damping * 3, reach / 2, False
        reason = drag.reason(replace(best, steps=step)) or ("stalled" if failures >= config.patience else None)
        if reason is not None:
            return drag.end(best, step, reason)
        if slopes is None or (fresh and (age >= config.reuse or change is not None)):
            slopes, age = take_slopes(errors, change, value, rng), 0
        elif change is None:
            slopes, age = slopes.learn(taken, errors.detach().flatten(), stay=not fresh), age + fresh
        taken = slopes.step((away + here).flatten(), reach, prior, damping)
        value = here + taken.view_as(here)
        expected = points + slopes.motion(taken) / share.sqrt().clamp_min(1e-3)[:, None]
    raise AssertionError("the loop ends by a reason")


def _change(drag: _Drag, features: Features, config: RefineConfig) -> Tensor | None:
    """What has changed where nothing may, in standard deviations of the channels, (C, h, w); None without a mask.

    Its squares are summed beside those of the errors in px: a mean change by one deviation counts as `mask_weight`
    square px at 512 for each of the drags, whose errors are summed too.
    """
    if drag.movable is None:
        return None
    first, now = (f.outputs[drag.kept_block][0].float() for f in (drag.first, features))
    held = (1 - drag.movable).sqrt()
    price = len(drag.handles) * config.mask_weight * (drag.image[0] / 512) ** 2
    share = price / (held.square().sum() * len(first)).clamp_min(1e-6)
    return (now - first) / first.std(dim=(1, 2), keepdim=True).clamp_min(1e-4) * held * share.sqrt()


@dataclass(frozen=True)
class Slopes:
    """The residuals of one state and how they depend on the P coordinates."""

    errors: Float[Tensor, "E"]
    """Errors of positions, x and y in turn."""
    jacobian: Float[Tensor, "R P"]
    """Rows of the errors, and of the sketch of what must not change."""
    uphill: Float[Tensor, "P"] | None
    """Gradient of half the squared change of what must not change."""
    scale: Float[Tensor, ""]
    """Mean squared length of the rows of the errors: the unit of damping."""

    def step(self, here: Float[Tensor, "P"], reach: float, prior: float, damping: float) -> Float[Tensor, "P"]:
        """Toward the least of squared errors, `prior` times the squared length of `here`, and what must not change.

        No position is asked for more than `reach` px, and of the way back, which the price and what must not change ask
        for, no more than of the way there: in full they would outweigh it far from a target, where steps went back.

        (J^T J + m I)^-1 (J^T asked - part * uphill), by a system of R unknowns instead of P.
        """
        length = self.errors.view(-1, 2).norm(dim=1, keepdim=True)
        asked = -self.errors.view(-1, 2) * (reach / length.clamp_min(1e-6)).clamp_max(1.0)
        part = asked.norm() / length.norm().clamp_min(1e-6)
        jacobian, m = self.jacobian.double(), prior + damping * self.scale.double().clamp_min(1e-12)
        small = jacobian @ jacobian.t() + m * torch.eye(len(jacobian), dtype=torch.float64, device=m.device)
        padded = torch.cat([asked.flatten(), asked.new_zeros(len(jacobian) - asked.numel())]).double()
        uphill = part * (prior * here.double() + (0 if self.uphill is None else self.uphill.double()))
        step = jacobian.t() @ torch.linalg.solve(small, padded + jacobian @ uphill / m) - uphill / m
        return step.to(here.dtype)

    def motion(self, step: Float[Tensor, "P"]) -> Float[Tensor, "N 2"]:
        """How far the errors of positions change by a step."""
        return (self.jacobian[: len(self.errors)] @ step).view(-1, 2)

    def learn(self, step: Float[Tensor, "P"], errors: Float[Tensor, "E"], *, stay: bool) -> Slopes:
        """What a step has taught: Broyden's update, the least change of the slopes that explains the errors after it.

        It costs no gradient. stay: the step is taken back, and the errors are still those before it.
        """
        surprise = errors - self.errors - self.jacobian @ step
        jacobian = self.jacobian + torch.outer(surprise, step / step.square().sum().clamp_min(1e-12))
        return Slopes(self.errors if stay else errors, jacobian, None, self.scale)


def take_slopes(errors: Tensor, change: Tensor | None, value: Tensor, rng: torch.Generator) -> Slopes:
    """Gradients of all errors, and of `SKETCH` random combinations of what must not change with its own gradient.

    The combinations' signs are products of one for each channel and one for each cell: their squares sum to that of
    the whole on average, and so do their curvatures.
    """
    residuals = [errors.flatten()]
    if change is not None:
        channels, height, width = change.shape
        signs = [torch.randint(2, (SKETCH, n), generator=rng).to(change) * 2 - 1 for n in (channels, height * width)]
        sketch = torch.einsum("kc,cp,kp->k", signs[0], change.flatten(1), signs[1]) / SKETCH**0.5
        residuals += [sketch, change.square().sum()[None] / 2]
    outputs = torch.cat(residuals)
    rows = [
        torch.autograd.grad(outputs, value, part, is_grads_batched=True, retain_graph=True)[0].flatten(1)
        for part in torch.eye(len(outputs), device=outputs.device).split(ROWS)
    ]
    jacobian = torch.cat(rows)
    count = errors.numel()
    scale = jacobian[:count].square().sum(dim=1).mean()
    if change is None:
        return Slopes(errors.detach().flatten(), jacobian, None, scale)
    return Slopes(errors.detach().flatten(), jacobian[:-1], jacobian[-1], scale)
