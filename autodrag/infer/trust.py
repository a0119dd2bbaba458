"""How far a result can be trusted: the uncertainty of tracked points, and the outcome of the whole drag.

The tracker always returns a position. Three cues tell how far it may be from the true one: the confidence, the distance
left (points that did not follow are harder to recognise), and the backward error: the content found after the drag is
tracked back to the image before it, where it should lie at the handle (forward-backward error, Kalal et al. 2010).
`Calibration` turns the cues into an uncertainty in px. `autodrag eval trust` measures it and fits it to a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.checkpoint import find_checkpoint
from autodrag.errors import CheckpointError
from autodrag.files import read_bounded
from autodrag.infer.open_image import OpenImage
from autodrag.infer.task import Drag, DragResult, Obstacle, Outcome
from autodrag.tracking import PULL, ambiguity, appearance, follow

ARRIVED = 0.025
"""A point has arrived within this share of the image height of its target (1.6 px at 64 px, 13 px at 512 px)."""
GAIN = 0.25
"""A drag that shortens the sum of the distances by less than this share has failed."""
TEAR = 0.9
"""Two points contradict each other if their drags differ by more than this share of the distance between them."""
FRAME = 0.03
"""A target this close to the border of the image, as a share of its height, may take content out of the frame."""
FAR = 0.3
"""A longer drag, as a share of the image height, is far for a generator."""
FLAT = 0.26
"""A handle has no texture if similar places lie this far away on average (`tracking.ambiguity`), as a share of the
image height."""

ADVICE: dict[Obstacle, str] = {
    "mask": "the mask holds the drag back; paint it over the whole object, or drag inside it",
    "contradiction": "points ask for contradictory motions; remove a point or an anchor, or move them alike",
    "frame": "the target is at the border of the image; choose a target farther inside",
    "texture": "a handle has no texture to follow; place it on an edge or a detail",
    "far": "the drag is long for this generator; drag in shorter stretches",
    "lost": "a point was lost during the drag; drag in shorter stretches, or place the handle on a detail",
    "generator": "the generator has no such image nearby; choose a nearer target",
}
"""A sentence for the user about each obstacle, with the next step."""


@dataclass(frozen=True)
class Calibration:
    """Uncertainty of a point, px: image height * exp(bias + weights · cues).

    The defaults are those of critters: `autodrag eval trust --pairs 100 --seed 7 --calibrate`.
    """

    weights: tuple[float, float, float] = (-2.42, 0.92, 2.76)
    """One weight per cue, in the order of `cues_of`."""
    bias: float = -1.78
    lost: float = 0.0397
    """A point is lost above this uncertainty, as a share of the image height."""

    def __post_init__(self) -> None:
        if len(self.weights) != 3 or not all(map(math.isfinite, (*self.weights, self.bias))) or not self.lost > 0:
            raise ValueError(f"{self}: expected three finite weights, a finite bias and lost > 0.")

    def uncertainties(self, cues: Float[np.ndarray, "N 3"], height: int) -> Float[np.ndarray, " N"]:
        """Uncertainty of points, px: 90 % of the true positions should lie within twice as much."""
        power = np.minimum(self.bias + cues @ np.array(self.weights), 0.0)  # at most the whole image
        return height * np.exp(power)

    @staticmethod
    def fit(cues: Float[np.ndarray, "M 3"], errors: Float[np.ndarray, " M"], wrong: float) -> Calibration:
        """Fit to M points whose errors are known. `errors` and `wrong` are shares of the image height.

        Ridge regression of the logarithm of the errors, scaled so that 90 % of them are within twice the uncertainty.
        `lost` is the limit that 10 % of the points with an error up to `wrong` exceed.
        """
        design = np.column_stack([cues, np.ones(len(cues))])
        penalty = 1e-3 * len(cues) * np.diag([1.0, 1.0, 1.0, 0.0])
        solved = np.linalg.solve(design.T @ design + penalty, design.T @ np.log(errors + 0.005))
        predicted = np.exp(np.minimum(design @ solved, 0.0))
        factor = float(np.quantile(errors / predicted, 0.9)) / 2
        uncertain = predicted * factor
        lost = float(np.quantile(uncertain[errors <= wrong], 0.9))
        first, second, third = (float(value) for value in solved[:3])
        return Calibration((first, second, third), float(solved[3]) + math.log(factor), lost)


TRUST_FILE = "trust.json"


def load_calibration(folder: str | Path, generator: str) -> Calibration | None:
    """The calibration of a checkpoint folder; None if it has none.

    Raises:
        CheckpointError: the file is broken, or belongs to another generator than that of the fingerprint.
    """
    path = find_checkpoint(folder) / TRUST_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(read_bounded(path, 2**16, "calibration"))
        if not isinstance(values, dict) or values.pop("generator", None) != generator:
            raise ValueError(f"it was not fitted to generator {generator!r}")
        return Calibration(
            weights=tuple(float(value) for value in values["weights"]),  # type: ignore[arg-type]
            bias=float(values["bias"]),
            lost=float(values["lost"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be used ({error}); run `autodrag eval trust --calibrate` again, or delete it"
        ) from error


@torch.no_grad()
def cues_of(
    before: OpenImage, after: OpenImage, drag: Drag, points: Float[np.ndarray, "N 2"], blocks: slice
) -> Float[np.ndarray, "N 3"]:
    """Confidence in [0, 1], distance left and backward error (shares of the image height) of points after a drag.

    Args:
        points: tracked positions after the drag, px.
        before, after: the image before and after the drag (B = 1).
        blocks: the synthesis blocks that are compared.
    """
    size = before.synthesis.config.image_size
    place = torch.from_numpy(points).float().to(drag.handles.device)[None]
    first, last = (image.outputs(blocks) for image in (before, after))
    handles = drag.handles[None]
    _, confidence = follow(last, appearance(first, handles, size), size, near=place, pull=PULL)
    back, _ = follow(first, appearance(last, place, size), size, near=handles, pull=PULL)
    left = (place[0] - drag.targets).norm(dim=1) / size[0]
    error = (back[0] - drag.handles).norm(dim=1) / size[0]
    cues: np.ndarray = torch.stack([confidence[0], left, error], dim=1).double().cpu().numpy()
    return cues


def settle(
    before: OpenImage, after: OpenImage, drag: Drag, result: DragResult, calibration: Calibration, blocks: slice
) -> DragResult:
    """Add uncertainties, lost points and outcome to a result; replace the image of a failed drag by the one before.

    A drag that was stopped by the user keeps its image.

    Args:
        before, after: the open image, and the image of the result.
        drag: the task with its mask.
        blocks: the synthesis blocks that are compared.
    """
    size = before.synthesis.config.image_size
    handles, targets = result.handles, result.targets
    cues = cues_of(before, after, drag, result.points, blocks)
    uncertainties = calibration.uncertainties(cues, size[0])
    lost = result.lost | (uncertainties > calibration.lost * size[0])
    asked = np.hypot(*(targets - handles).T)
    # The position of a lost point is unknown, so the point counts as not moved.
    left = np.where(lost, np.maximum(asked, result.distances), result.distances)
    limit = np.minimum(ARRIVED * size[0], asked / 2)
    outcome: Outcome = "nearer"
    if bool((left <= limit).all()):
        outcome = "arrived"
    elif left.sum() > (1 - GAIN) * asked.sum():
        outcome = "failed"
    obstacle = None if outcome == "arrived" else find_obstacle(before, drag, lost, blocks)
    result = dataclasses.replace(result, uncertainties=uncertainties, lost=lost, outcome=outcome, obstacle=obstacle)
    if outcome != "failed" or result.reason == "stopped":
        return result
    picture = before.picture  # now, in the precision of the caller
    return dataclasses.replace(
        result,
        latent=before.latent,
        synthesis=before.synthesis,
        points=handles.copy(),
        distances=asked,
        uncertainties=np.zeros(len(handles)),
        lost=np.zeros(len(handles), dtype=bool),
        features=before.features,
        render=lambda: picture,
    )


def find_obstacle(before: OpenImage, drag: Drag, lost: np.ndarray, blocks: slice) -> Obstacle:
    """What most likely kept a drag from arriving. Rules about the task come first, guesses last."""
    size = before.synthesis.config.image_size
    handles, targets = drag.with_anchors()
    if drag.mask is not None and not _inside(drag.mask, torch.cat([drag.handles, drag.targets])):
        return "mask"
    if contradicts(handles, targets):
        return "contradiction"
    border = targets.new_tensor([size[1] - 1, size[0] - 1])
    margin = FRAME * size[0]
    if bool(((targets < margin) | (targets > border - margin))[: len(drag.handles)].any()):
        return "frame"
    spread = ambiguity(before.outputs(blocks), drag.handles[None], size)[0] / size[0]
    if bool((spread > FLAT).any()):
        return "texture"
    if float((targets - handles).norm(dim=1).max()) > FAR * size[0]:
        return "far"
    if drag.mask is not None:
        return "mask"
    return "lost" if bool(lost.any()) else "generator"


def contradicts(handles: Float[Tensor, "N 2"], targets: Float[Tensor, "N 2"]) -> bool:
    """Whether two points (px) cannot move as asked at once, because the image between them would fold or tear."""
    apart = torch.cdist(handles, handles)
    drags = targets - handles
    differ = torch.cdist(drags, drags)
    return bool((differ > TEAR * apart).masked_fill(apart == 0, False).any())


def _inside(mask: Tensor, points: Float[Tensor, "N 2"]) -> bool:
    """Whether a mask (H, W) is True at all points (px)."""
    x, y = points.round().long().t()
    height, width = mask.shape
    return bool(mask[y.clamp(0, height - 1), x.clamp(0, width - 1)].all())
