"""The types of one drag: the task (`Drag`), its limits (`Control`), and the result (`DragResult`).

A `Drag` is checked when it is built and then passed on unchanged. Points are (x, y) px of the output image, integers
at pixel centres, y down. A mask is True where the image may change.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.edits import Outside
from autodrag.errors import AutodragError, NothingToDo
from autodrag.images import to_uint8
from autodrag.nets.layers import LayeredGenerator, Layers
from autodrag.nets.stylegan2 import Features
from autodrag.points import Size

MAX_POINTS = 1000

PointsLike = Sequence[Sequence[float]] | np.ndarray | Tensor
"""N points as [[x, y], ...] or an (N, 2) array or tensor, px of the output image."""

Reason = Literal["arrived", "rounds", "steps", "budget", "stopped", "stalled", "lost"]
"""Why a drag ended. `rounds` and `steps`: the limit was reached. `stalled`: no further progress."""

Outcome = Literal["arrived", "nearer", "failed"]
"""What a drag achieved. `failed`: too little, and the image was left as it was."""
Obstacle = Literal["mask", "contradiction", "frame", "texture", "far", "lost", "generator"]
"""What most likely kept a drag from arriving: the mask; points whose drags contradict each other; a target at the
border of the image; a handle without texture; a long drag; lost points; or the generator has no such image nearby."""


@dataclass(frozen=True)
class References:
    """The image and the positions that define the appearance of the handles, kept across several edits."""

    layers: Layers
    """The code of that image."""
    handles: Float[Tensor, "N 2"]
    """The handles in that image, px."""


@dataclass(frozen=True)
class Drag:
    """One task: move the content at `handles` to `targets`. Build it with `Drag.of`, which checks it."""

    handles: Float[Tensor, "N 2"]
    """Present positions, px."""
    targets: Float[Tensor, "N 2"]
    """Wanted positions, px."""
    mask: Bool[Tensor, "H W"] | None = None
    """True where the image may change; None: everywhere."""
    outside: Outside = "exact"
    """Outside the mask. `exact`: nothing changes, because the edit fills a layer in the mask (see `nets.layers`).
    `soft`: the published loop penalises changes (DragGAN, Eq. 1)."""
    anchors: Float[Tensor, "M 2"] | None = None
    """Points that must stay, px."""
    references: References | None = None
    """Appearance to track; None: the handles in the image that is dragged."""

    @staticmethod
    def of(
        handles: PointsLike,
        targets: PointsLike,
        image_size: Size,
        *,
        mask: Bool[np.ndarray, "H W"] | None = None,
        outside: Outside = "exact",
        anchors: PointsLike | None = None,
        references: References | None = None,
        device: torch.device | str | None = None,
    ) -> Drag:
        """Check a task for an image of size (H, W) and put it on a device.

        Raises:
            NothingToDo: every handle already lies on its target.
            AutodragError: points, mask or anchors that cannot be used.
        """
        start, end = check_pairs(handles, targets, image_size)
        fixed, free = check_anchors(anchors, start, image_size), check_mask(mask, image_size)

        def tensor(points: np.ndarray) -> Tensor:
            return torch.tensor(points, dtype=torch.float32, device=device)

        return Drag(
            tensor(start),
            tensor(end),
            None if free is None or free.all() else torch.from_numpy(free).to(device or "cpu"),
            outside,
            None if fixed is None else tensor(fixed),
            references,
        )

    def with_anchors(self) -> tuple[Float[Tensor, "K 2"], Float[Tensor, "K 2"]]:
        """Handles and targets with the anchors appended, whose targets are their own positions."""
        if self.anchors is None:
            return self.handles, self.targets
        return torch.cat([self.handles, self.anchors]), torch.cat([self.targets, self.anchors])


@dataclass(frozen=True)
class Start:
    """Where an optimisation begins, if not at the open image: a predicted latent and the points found in it."""

    latent: Float[Tensor, "1 L D"]
    points: Float[Tensor, "N 2"]
    """px."""


@dataclass(frozen=True)
class Control:
    """Limits of one drag, and its observer. The clock starts when the object is made."""

    budget_s: float | None = None
    """Wall-clock limit, seconds; None: no limit."""
    stop: threading.Event | None = None
    """Set it from another thread to end the drag after the current step."""
    callback: Callable[[DragResult], None] | None = None
    """Called with every intermediate result, in the thread of the drag."""
    started: float = field(default_factory=time.monotonic)
    """Value of `time.monotonic()` at the start."""

    def __post_init__(self) -> None:
        if self.budget_s is not None and not self.budget_s > 0:
            raise AutodragError(f"budget_s {self.budget_s} is not usable; expected a positive number of seconds")

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started

    @property
    def stopped(self) -> bool:
        """Whether the stop event is set."""
        return self.stop is not None and self.stop.is_set()

    def expires(self, within: float = 0.0) -> bool:
        """Whether the budget is used up, or will be before another step of `within` seconds ends."""
        return self.budget_s is not None and self.seconds + within >= self.budget_s


@dataclass(frozen=True, kw_only=True)
class DragResult:
    """The state of a drag after some steps, or at its end. Lengths are in px of the output image.

    `points`, `distances` and `confidences` were found in the image of `latent`.
    """

    latent: Float[Tensor, "1 L D"]
    """The edited W+ latent. With a mask, it fills the mask only; `layers` is the whole image."""
    synthesis: LayeredGenerator = field(repr=False)
    """The image as a function of `latent`."""
    handles: Float[np.ndarray, "N 2"]
    """Positions before the drag."""
    targets: Float[np.ndarray, "N 2"]
    """Wanted positions."""
    points: Float[np.ndarray, "N 2"]
    """Positions according to the tracker."""
    distances: Float[np.ndarray, " N"]
    """Distance from `points` to `targets`."""
    confidences: Float[np.ndarray, " N"]
    """Confidence of the tracker, in [0, 1]."""
    lost: Bool[np.ndarray, " N"]
    """Whether a point was lost: its position and distance cannot be trusted."""
    uncertainties: Float[np.ndarray, " N"] | None = None
    """Uncertainty of `points`, px (see `infer.trust`); None during a drag."""
    outcome: Outcome | None = None
    """None during a drag."""
    obstacle: Obstacle | None = None
    """What kept the drag from arriving; None if it arrived."""
    method: str
    """predict, refine or both."""
    rounds: int = 0
    """Predictions made."""
    steps: int = 0
    """Optimisation steps made."""
    seconds: float
    """Wall time since the start of the drag."""
    reason: Reason
    """Why the drag ended; `steps` for an intermediate result."""
    landmark_distances: tuple[float | None, ...] | None = None
    """Distance left according to the landmark net, per point; None without a net, or without a landmark nearby."""
    references: References | None = field(default=None, repr=False)
    """Appearance that was tracked, for the next drag with `keep_references`."""
    features: Features | None = field(default=None, repr=False)
    """Block outputs of `latent`, where known; rendering then runs the remaining blocks only."""
    render: Callable[[], UInt8[np.ndarray, "H W 3"]] = field(repr=False)
    """Synthesises the image; use `image`."""

    @property
    def layers(self) -> Layers:
        """The code of the edited image."""
        return self.synthesis.moved(self.latent).layers

    @cached_property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The edited image, HWC uint8 RGB, synthesised at the first access."""
        return self.render()

    def report(self) -> dict[str, Any]:
        """All numbers as JSON values, with one entry per point."""
        landmarks = self.landmark_distances or (None,) * len(self.points)

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 4)

        points = [
            {
                "handle": self.handles[i].tolist(),
                "target": self.targets[i].tolist(),
                "point": [round(value, 4) for value in self.points[i].tolist()],
                "distance": round(float(self.distances[i]), 4),
                "landmark_distance": rounded(landmarks[i]),
                "confidence": round(float(self.confidences[i]), 4),
                "uncertainty": rounded(None if self.uncertainties is None else float(self.uncertainties[i])),
                "lost": bool(self.lost[i]),
            }
            for i in range(len(self.points))
        ]
        return {
            "points": points,
            "outcome": self.outcome,
            "obstacle": self.obstacle,
            "method": self.method,
            "rounds": self.rounds,
            "steps": self.steps,
            "seconds": round(self.seconds, 4),
            "reason": self.reason,
        }


def renderer(
    synthesis: LayeredGenerator, latent: Float[Tensor, "1 L D"], features: Features
) -> Callable[[], np.ndarray]:
    """A function that synthesises the image of `latent` from its `features`, in the precision of the caller."""
    kind = latent.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind)
    known = Features(tuple(output.detach() for output in features.outputs))

    def render() -> np.ndarray:
        precision = torch.autocast(kind, dtype) if autocast else contextlib.nullcontext()
        with torch.inference_mode(), precision:
            return to_uint8(synthesis.image(latent, known))[0]

    return render


def arrival_distance(
    handles: Float[Tensor, "*B 2"], targets: Float[Tensor, "*B 2"], stop_px: float
) -> Float[Tensor, "*B"]:
    """Distance from its target, px, at which a point has arrived: `stop_px`, or half the drag if that is less."""
    return ((targets - handles).norm(dim=-1) / 2).clamp_max(stop_px)


# --- checks ----------------------------------------------------------------------------------------------------------


def check_points(values: object, image: Size, name: str) -> Float[np.ndarray, "N 2"]:
    """`values` as (N, 2) float64 points inside an image (H, W); `name` is used in error messages."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        points = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AutodragError(f"the {name}s are not numbers ({error}); expected [[x, y], ...] in pixels") from error
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise AutodragError(f"the {name}s have shape {points.shape}; expected (N, 2), a list of [x, y] in pixels")
    if len(points) > MAX_POINTS:
        raise AutodragError(f"{len(points)} {name}s are more than the limit of {MAX_POINTS}; give fewer")
    height, width = image
    for x, y in points.tolist():
        if not (np.isfinite(x) and np.isfinite(y)):
            raise AutodragError(f"{name} {_text((x, y))} is not finite; expected x,y in pixels")
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise AutodragError(
                f"{name} {_text((x, y))} lies outside the image; x goes from 0 to {width - 1}, y from 0 to {height - 1}"
            )
    return points


def check_pairs(handles: object, targets: object, image: Size) -> tuple[np.ndarray, np.ndarray]:
    """Handles and targets as (N, 2) arrays, N at least 1.

    Raises:
        NothingToDo: every handle already lies on its target.
        AutodragError: no points, different counts, two handles on one pixel, or points outside the image.
    """
    start, end = check_points(handles, image, "handle"), check_points(targets, image, "target")
    if len(start) == 0 and len(end) == 0:
        raise AutodragError("there are no points to drag; give at least one handle and its target")
    if len(start) != len(end):
        raise AutodragError(
            f"the numbers of handles ({len(start)}) and targets ({len(end)}) differ; give them in pairs"
        )
    seen: set[tuple[int, int]] = set()
    for point in start:
        pixel = _pixel(point)
        if pixel in seen:
            raise AutodragError(f"two handles lie on the pixel {_text(pixel)}; remove one of them")
        seen.add(pixel)
    if np.array_equal(start, end):
        raise NothingToDo("nothing to do: every handle already lies on its target")
    return start, end


def check_anchors(anchors: object, handles: np.ndarray, image: Size) -> np.ndarray | None:
    """Anchors as (M, 2), or None; an anchor may not share a pixel with a handle."""
    if anchors is None:
        return None
    points = check_points(anchors, image, "anchor")
    pixels = {_pixel(handle) for handle in handles}
    for point in points:
        if _pixel(point) in pixels:
            raise AutodragError(f"anchor {_text(point)} lies on a handle; a point cannot both stay and move")
    return points if len(points) else None


def check_mask(mask: object, image: Size) -> Bool[np.ndarray, "H W"] | None:
    """A copy of the mask as (H, W) bool, True where the image may change; None stays None."""
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise AutodragError(f"the mask holds {array.dtype}; expected booleans, True where the image may change")
    if array.shape != image:
        raise AutodragError(f"the mask has shape {array.shape}, and the image {image} (height, width); resize the mask")
    if not array.any():
        raise AutodragError("the mask is False everywhere; set True where the image may change")
    return array.copy()


def check_device(name: str | None) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; None takes CUDA where it is available."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise AutodragError(f"device {name!r} cannot be used here; try --device cpu") from error
    return device


def _pixel(point: Sequence[float] | np.ndarray) -> tuple[int, int]:
    return int(np.floor(point[0] + 0.5)), int(np.floor(point[1] + 0.5))


def _text(point: Sequence[float] | np.ndarray) -> str:
    return f"{point[0]:g},{point[1]:g}"
