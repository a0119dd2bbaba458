"""Our refiner: Levenberg-Marquardt on the positions of the differentiable tracker.

The residuals are the displacements from the tracked points to their targets. A point is two numbers and a latent has
thousands, so one step solves a small linear system: the shortest change of the latent, in coordinates with unit
variance, that moves all points as wanted. Every second step reuses the last Jacobian with Broyden's update and computes
no gradients.

Minimised: half the sum of squared displacements (px)
  + half `prior` * squared length of the edit (standard coordinates).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.infer.open_image import FEATURE_BLOCK, OpenImage, feature_block, tracked_blocks
from autodrag.infer.task import Control, Drag, DragResult, Reason, References, Start, arrival_distance, renderer
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.stylegan2 import Features
from autodrag.points import Size
from autodrag.tracking import PULL, Appearance, follow

REACH = 1 / 32
"""Maximum displacement that one step asks of a point, as a share of the image height; halved after a failed step.
The tracker is less accurate farther away."""
DAMPING = 0.5
"""Initial damping, as a share of the mean squared gradient of a position."""
MIN_GAIN = 0.02
"""A step that lowers the loss by less than this share counts as a failure."""
PATIENCE = 3
"""The loop ends after this many failures in a row."""
LOST_CONFIDENCE = 0.35
"""A point below this confidence is lost: it is reported and no longer pulled."""
GRADIENTS = 8
"""Gradients that are computed in one backward pass."""


@dataclass(frozen=True)
class LocateConfig:
    """Settings of our refiner. Lengths are px of the output image; `for_image` scales them."""

    steps: int = 30
    """Maximum number of steps."""
    space: Literal["w", "w+"] = "w"
    """`w`: the edited layers change together, which keeps images plausible. `w+`: they change separately."""
    edit_layers: int = 6
    """Number of latent vectors, from the first, that may change."""
    feature_block: int = FEATURE_BLOCK
    """Finest block that is tracked, from 0."""
    stop_px: float = 1.0
    """A point has arrived at this distance from its target, and in any case no farther than half its drag."""
    prior: float = 5.0
    """Penalty in square px, at 64 px, of an edit of one standard deviation. Smaller values bring single points nearer,
    larger values keep edits shorter."""

    def __post_init__(self) -> None:
        if self.space not in ("w", "w+"):
            raise ValueError(f"space {self.space!r}: expected w or w+.")
        if self.steps < 0 or self.stop_px <= 0 or self.prior < 0:
            raise ValueError("expected steps >= 0, stop_px > 0 and prior >= 0.")
        if self.edit_layers < 1 or self.feature_block < 0:
            raise ValueError("expected edit_layers >= 1 and feature_block >= 0.")

    @staticmethod
    def for_image(size: Size) -> LocateConfig:
        """The default settings for images of `size` (H, W): the stop distance is 1 px at 512 px, and at least 0.5."""
        return LocateConfig(stop_px=max(size[0] / 512, 0.5))


def locate(
    image: OpenImage,
    drag: Drag,
    config: LocateConfig,
    basis: LatentBasis,
    control: Control | None = None,
    start: Start | None = None,
) -> DragResult:
    """Moves the handles of an open image (B = 1) to their targets; the length of the edit counts from that image.

    `drag.mask` is not read: with a mask, the image is opened in layers (see `OpenImage.within`).
    """
    control = control or Control()
    problem = LocateProblem(image, drag, config, basis, start)
    state: LocateState | None = None
    for step in range(config.steps + 1):
        began = control.seconds
        state = problem.first_state() if state is None else take_step(problem, state)
        if control.callback is not None:
            control.callback(_result(problem, state.trial, step, "steps", control))
        reason = _reason(problem, state, step, control, control.seconds - began)
        if reason is not None:
            return _result(problem, state.best, step, reason, control)
    raise AssertionError("the last step has a reason")


@dataclass(frozen=True)
class Evaluation:
    """Points, residuals and loss at one value of the coordinates."""

    value: Float[Tensor, "1 R D"]
    """Standard coordinates of the edit from the start; R = 1 (W) or the number of edited layers (W+)."""
    latent: Float[Tensor, "1 L D"]
    features: Features
    points: Float[Tensor, "K 2"]
    """All tracked points, anchors last, px."""
    confidences: Float[Tensor, " H"]
    """Of the H handles, without the anchors."""
    errors: Float[Tensor, "E"]
    """Weighted displacements from targets to points, x and y in turn."""
    loss: float


@dataclass(frozen=True)
class LocateState:
    """The optimisation between two steps."""

    best: Evaluation
    """Lowest loss so far."""
    trial: Evaluation
    """The last evaluation; the same object as `best` if the last step was accepted."""
    model: LinearModel | None
    """Linear model of the residuals around `best`; None before the first step."""
    step: Float[Tensor, "P"] | None
    """The last step of the coordinates."""
    damping: float
    reach: float
    """Displacement asked of each point, px."""
    failures: int
    """Steps in a row without progress."""
    age: int
    """Accepted steps since gradients were computed."""


def take_step(problem: LocateProblem, state: LocateState) -> LocateState:
    """One step: linearise at the best point, solve for the step, evaluate there, accept it or increase the damping."""
    accepted = state.trial is state.best
    model, age = state.model, state.age
    if model is None or (accepted and age >= 1):
        model, age = linearise(state.best), 0
    else:
        assert state.step is not None
        model, age = model.updated(state.step, state.trial.errors.detach(), accepted=accepted), age + accepted

    step = model.solve((problem.offset + state.best.value).flatten(), state.reach, problem.prior, state.damping)
    expected = state.best.points + model.motion(step) / problem.weights.sqrt().clamp_min(1e-3)[:, None]
    trial = problem.evaluate(state.best.value + step.view_as(state.best.value), expected)

    newly_lost = (trial.confidences < LOST_CONFIDENCE) & ~problem.lost
    if trial.loss < state.best.loss and not bool(newly_lost.any()):
        failed = trial.loss > state.best.loss * (1 - MIN_GAIN)
        return LocateState(
            best=trial,
            trial=trial,
            model=model,
            step=step,
            damping=state.damping * 0.6,
            reach=min(state.reach * 1.5, problem.reach),
            failures=state.failures + 1 if failed else 0,
            age=age,
        )
    return replace(
        state,
        trial=trial,
        model=model,
        step=step,
        damping=state.damping * 3,
        reach=state.reach / 2,
        failures=state.failures + 1,
        age=age,
    )


class LocateProblem:
    """Everything that stays constant during one optimisation."""

    def __init__(
        self, image: OpenImage, drag: Drag, config: LocateConfig, basis: LatentBasis, start: Start | None
    ) -> None:
        self.image, self.drag, self.config, self.basis = image, drag, config, basis
        self.synthesis, self.size = image.synthesis, image.synthesis.config.image_size
        height = self.size[0]
        self.block = feature_block(self.synthesis.config, config.feature_block)
        self.blocks = tracked_blocks(self.synthesis.config, config.feature_block)
        self.prior = config.prior * (height / 64) ** 2
        self.reach = REACH * height

        begin = image.latent if start is None else start.latent
        self.first_points = drag.handles if start is None else start.points
        layers = min(config.edit_layers, begin.shape[1])
        self.start, self.kept = begin[:, :layers].detach(), begin[:, layers:].detach()
        separate = config.space == "w+"
        self.rows = layers if separate else 1
        offset = basis.coordinates(self.start - image.latent[:, :layers])
        self.offset = offset if separate else offset.mean(dim=1, keepdim=True)  # (1, R, D) from the image to the start

        self.references = drag.references or References(image.layers, drag.handles)
        self.origin = image.origin(self.references)
        seen = self.references.handles
        _, self.targets = drag.with_anchors()
        self.n_handles = len(drag.handles)
        if drag.anchors is not None:
            seen = torch.cat([seen, drag.anchors])
            self.first_points = torch.cat([self.first_points, drag.anchors])
        self.reference: Appearance = self.origin.look(self.blocks).at(seen[None], self.size)
        self.stop = arrival_distance(drag.handles, drag.targets, config.stop_px)
        self.weights = self.targets.new_ones(len(self.targets))
        self.lost = torch.zeros(self.n_handles, dtype=torch.bool, device=self.targets.device)

    def first_state(self) -> LocateState:
        """The evaluation at the start. Points that are not recognised there are lost."""
        value = self.start.new_zeros(1, self.rows, self.start.shape[2])
        first = self.evaluate(value, self.first_points)
        self.lost = first.confidences < LOST_CONFIDENCE
        if bool(self.lost.any()):
            self.weights[: self.n_handles][self.lost] = 0
            first = self.evaluate(value, self.first_points)
        return LocateState(first, first, None, None, DAMPING, self.reach, failures=0, age=0)

    def evaluate(self, value: Float[Tensor, "1 R D"], expected: Float[Tensor, "N 2"]) -> Evaluation:
        """Synthesises features at `value` and tracks the points, which are expected at `expected` px."""
        value = value.detach().requires_grad_(True)
        edited = (self.start + self.basis.offset(value)).expand_as(self.start)
        latent = torch.cat([edited, self.kept], dim=1)
        features = self.synthesis.features(latent, block=self.block)
        points, confidences = follow(
            features.outputs[self.blocks], self.reference, self.size, near=expected[None], pull=PULL
        )
        errors = (points[0] - self.targets) * self.weights.sqrt()[:, None]
        squares = errors.square().sum() + self.prior * (self.offset + value).square().sum()
        return Evaluation(
            value,
            latent,
            features,
            points[0].detach(),
            confidences[0, : self.n_handles].detach(),
            errors.flatten(),
            float(squares.detach()) / 2,
        )


@dataclass(frozen=True)
class LinearModel:
    """Residuals at one point and their derivatives with respect to the P coordinates."""

    errors: Float[Tensor, "E"]
    """Displacements, x and y in turn."""
    jacobian: Float[Tensor, "E P"]
    scale: Float[Tensor, ""]
    """Mean squared length of the rows of the errors: the unit of the damping."""

    def solve(self, edit: Float[Tensor, "P"], reach: float, prior: float, damping: float) -> Float[Tensor, "P"]:
        """The damped Gauss-Newton step for the penalised least-squares problem around the present `edit`.

        No point is asked to move more than `reach` px. The gradient of the prior is scaled by the same share
        as the wanted displacement; unscaled, it would outweigh it far from the target and steps would go back.

        Solves (J^T J + m I) step = J^T wanted - share * gradient by a system of E instead of P unknowns.
        """
        length = self.errors.view(-1, 2).norm(dim=1, keepdim=True)
        wanted = -self.errors.view(-1, 2) * (reach / length.clamp_min(1e-6)).clamp_max(1.0)
        share = wanted.norm() / length.norm().clamp_min(1e-6)
        jacobian, m = self.jacobian.double(), prior + damping * self.scale.double().clamp_min(1e-12)
        small = jacobian @ jacobian.t() + m * torch.eye(len(jacobian), dtype=torch.float64, device=m.device)
        gradient = share * prior * edit.double()
        right = wanted.flatten().double() + jacobian @ gradient / m
        step = jacobian.t() @ torch.linalg.solve(small, right) - gradient / m
        return step.to(edit.dtype)

    def motion(self, step: Float[Tensor, "P"]) -> Float[Tensor, "N 2"]:
        """Predicted change of the errors of positions by a step."""
        return (self.jacobian @ step).view(-1, 2)

    def updated(self, step: Float[Tensor, "P"], errors: Float[Tensor, "E"], *, accepted: bool) -> LinearModel:
        """Broyden's update: the smallest change of the Jacobian that explains the `errors` found after a step.

        If the step was not accepted, the residuals stay those before it.
        """
        surprise = errors - self.errors - self.jacobian @ step
        jacobian = self.jacobian + torch.outer(surprise, step / step.square().sum().clamp_min(1e-12))
        return LinearModel(errors if accepted else self.errors, jacobian, self.scale)


def linearise(at: Evaluation) -> LinearModel:
    """The linear model at an evaluation, from the gradients of all errors."""
    rows = [
        torch.autograd.grad(at.errors, at.value, part, is_grads_batched=True, retain_graph=True)[0].flatten(1)
        for part in torch.eye(len(at.errors), device=at.errors.device).split(GRADIENTS)
    ]
    jacobian = torch.cat(rows)
    return LinearModel(at.errors.detach(), jacobian, jacobian.square().sum(dim=1).mean())


def _reason(problem: LocateProblem, state: LocateState, step: int, control: Control, seconds: float) -> Reason | None:
    """Why to end now, if at all. seconds: length of the last step."""
    followed = _distances(problem, state.best)[~problem.lost]
    if not len(followed):
        return "lost"
    if bool((followed <= problem.stop[~problem.lost]).all()):
        return "arrived"
    if control.stopped:
        return "stopped"
    if control.expires(within=seconds):
        return "budget"
    if step == problem.config.steps:
        return "steps"
    return "stalled" if state.failures >= PATIENCE else None


def _distances(problem: LocateProblem, at: Evaluation) -> Float[Tensor, " N"]:
    return (at.points[: problem.n_handles] - problem.drag.targets).norm(dim=1)


def _result(problem: LocateProblem, at: Evaluation, step: int, reason: Reason, control: Control) -> DragResult:
    latent = at.latent.detach()
    return DragResult(
        latent=latent,
        synthesis=problem.synthesis,
        handles=problem.drag.handles.double().cpu().numpy(),
        targets=problem.drag.targets.double().cpu().numpy(),
        points=at.points[: problem.n_handles].double().cpu().numpy(),
        distances=_distances(problem, at).double().cpu().numpy(),
        confidences=at.confidences.double().cpu().numpy(),
        lost=problem.lost.cpu().numpy(),
        method="refine",
        steps=step,
        seconds=control.seconds,
        reason=reason,
        references=problem.references,
        features=Features(tuple(output.detach() for output in at.features.outputs)),
        render=renderer(problem.synthesis, latent, at.features),
    )
