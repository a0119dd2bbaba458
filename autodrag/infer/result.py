"""What a drag hands back, and its numbers as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.infer.refine import Origin


@dataclass(frozen=True)
class Preview:
    """What a drag would give; see `DragEditor.preview`. Distances are in px of the output image."""

    image: UInt8[np.ndarray, "H W 3"]
    """The image, HWC uint8 RGB."""
    latent: Float[Tensor, "1 L D"]
    """Its W+ latent, on the CPU."""
    points: Float[np.ndarray, "N 2"]
    """Where the tracker sees the points."""
    distances: Float[np.ndarray, "N"]
    """From `points` to the targets."""
    confidences: Float[np.ndarray, "N"]
    """How sure the tracker is, in [0, 1]."""
    lost: Bool[np.ndarray, "N"]
    """Points that the tracker no longer recognises."""
    seconds: float
    """Wall time without the final synthesis."""
    references: Origin | None
    """What the handles looked like; for the next preview of the same pull, where the refiner makes it."""


@dataclass(frozen=True)
class DragResult:
    """What a drag left behind. Distances are in px of the output image."""

    image: UInt8[np.ndarray, "H W 3"]
    """The edited image, HWC uint8 RGB."""
    latent: Float[Tensor, "1 L D"]
    """Its W+ latent, on the CPU."""
    handles: Float[np.ndarray, "N 2"]
    """Where the points were."""
    targets: Float[np.ndarray, "N 2"]
    """Where they should be."""
    points: Float[np.ndarray, "N 2"]
    """Where the tracker sees them now."""
    distances: Float[np.ndarray, "N"]
    """From `points` to `targets`."""
    confidences: Float[np.ndarray, "N"]
    """How sure the tracker is, in [0, 1]."""
    lost: Bool[np.ndarray, "N"]
    """Points that the tracker no longer recognises; their distance means little."""
    landmark_distances: tuple[float | None, ...] | None
    """Distance left by the landmark net, None for a handle near no landmark; None without such a net."""
    method: str
    """What was run: predict, refine or both."""
    rounds: int
    """Predictions made."""
    steps: int
    """Optimisation steps made."""
    seconds: float
    """Wall time of the loop."""
    reason: str
    """Why it ended: arrived, steps, budget, stopped, stalled or lost; rounds, of the predictor alone."""
    feature_block: int
    """Index of the block whose features were tracked."""

    def report(self) -> dict[str, Any]:
        """Every number as JSON values, one entry per point."""
        landmarks = self.landmark_distances or (None,) * len(self.points)
        points = [
            {
                "handle": self.handles[i].tolist(),
                "target": self.targets[i].tolist(),
                "point": _rounded(self.points[i].tolist()),
                "distance": _rounded(float(self.distances[i])),
                "landmark_distance": _rounded(landmarks[i]),
                "confidence": _rounded(float(self.confidences[i])),
                "lost": bool(self.lost[i]),
            }
            for i in range(len(self.points))
        ]
        return {
            "points": points,
            "method": self.method,
            "rounds": self.rounds,
            "steps": self.steps,
            "seconds": _rounded(self.seconds),
            "reason": self.reason,
            "feature_block": self.feature_block,
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value if value is None else round(value, 4)
