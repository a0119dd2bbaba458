"""Drags with masks: the distance left, the change outside the mask, visible seams, and the time.

Ours; no paper measures it. The drags are those of `autodrag eval mdd`. Every drag runs without a mask and with two:

- `whole`: the convex hull of all landmarks before and after, with a margin. It contains the object, as masks do that
  people paint to keep a background.
- `cut`: an ellipse around handles and targets. It usually cuts through a rigid object and so contradicts the drag.

Each mask is used with `outside` exact, and by the published loops with their penalty (soft).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from autodrag.edits import Outside
from autodrag.eval.log import Record
from autodrag.eval.metrics import mean_distance
from autodrag.eval.ruler import make_ruler
from autodrag.eval.run import Experiment, Measured, evaluate
from autodrag.eval.tables import Columns, Measure, summary
from autodrag.eval.tasks import Pair
from autodrag.images import to_uint8
from autodrag.points import Size

MARGIN = 0.15
"""Margin of the masks around their points, as a share of the image's height."""
Kind = Literal["whole", "cut"]
KINDS: tuple[Kind, ...] = ("whole", "cut")
MODES: dict[str, tuple[Outside, ...]] = {
    "draggan": ("exact", "soft"),
    "refine": ("exact",),
    "predict": ("exact",),
    "both": ("exact",),
    "freedrag": ("soft",),
    "userlt": ("soft",),
}
"""What each method can do with a mask. The baselines do as published."""


class MaskExperiment(Experiment):
    """Drag without a mask, with masks of the whole object, and with masks that cut through it."""

    name = "masks"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.measures = {
            "distance": Measure("left, px", 2),
            "largest": Measure("largest change outside, levels", 1, spread=False),
            "change": Measure("mean change outside, levels", 2, spread=False),
            "seam": Measure("seam, levels", 2, spread=False),
            "seconds": Measure("seconds", 3),
        }

    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        """A record holds one entry of measures per case: no mask, or kind and mode of a mask that leaves a rest."""
        bench, drag = self.bench, pair.drag(points, self.bench.device)
        size = bench.generator.config.image_size
        latent = pair.latent.to(bench.device)
        before = to_uint8(bench.image(latent))[0]
        ruler = make_ruler(bench, self.source.detector, pair, points)
        masks = {"whole": hull(pair.source, pair.target, size), "cut": ellipse(drag.handles, drag.targets, size)}
        free = bench.run(method, latent, drag)
        cases: Record = {"none": {"distance": ruler(free.code), "seconds": free.seconds}}
        shown = None
        for kind in KINDS:
            mask = masks[kind].to(bench.device)
            if bool(mask.all()):
                continue
            inside = mask.cpu().numpy()
            cases[f"none {kind}"] = measured(before, free.picture, inside)
            for outside in MODES.get(method, ()):
                edited = bench.run(method, latent, replace(drag, mask=mask, outside=outside))
                cases[f"{kind} {outside}"] = {
                    "distance": ruler(edited.code),
                    "seconds": edited.seconds,
                    **measured(before, edited.picture, inside),
                }
                shown = edited.picture if shown is None else shown
        record: Record = {"initial": mean_distance(drag.handles, drag.targets), "cases": cases}
        return record | free.record(), shown

    def rows(self, records: Sequence[Record]) -> list[Record]:
        """One row for each number of points, method and case."""
        groups: dict[tuple[int, str, str], list[Record]] = {}
        for record in records:
            for case, values in record["cases"].items():
                if case in ("none", "none whole", "none cut"):
                    values = record["cases"]["none"] | values
                groups.setdefault((record["points"], record["method"], case), []).append(values)
        rows = []
        for (points, method, case), drags in groups.items():
            row: Record = {"points": points, "method": method, "case": case, "drags": len(drags)}
            for field in self.measures:
                row[field] = summary([r[field] for r in drags if r.get(field) is not None])
            rows.append(row)
        return rows

    @property
    def columns(self) -> Columns:
        columns: Columns = {
            "points": lambda row: str(row["points"]),
            "method": lambda row: str(row["method"]),
            "mask": lambda row: CASES[row["case"]],
            "drags": lambda row: str(row["drags"]),
        }
        for field, measure in self.measures.items():
            columns |= measure.columns(field)
        return columns


CASES = {
    "none": "none",
    "none whole": "none, measured outside whole",
    "none cut": "none, measured outside cut",
    **{f"{kind} {outside}": f"{kind}, {outside}" for kind in KINDS for outside in ("exact", "soft")},
}
"""The cases as the table names them."""


def hull(
    source: Float[Tensor, "K 2"], target: Float[Tensor, "K 2"], image: Size, margin: float = MARGIN
) -> Bool[Tensor, "H W"]:
    """True within `margin` image heights of the convex hull of all points (px)."""
    corners = cv2.convexHull(torch.cat([source, target]).cpu().numpy().round().astype(np.int32))
    canvas = cv2.fillConvexPoly(np.zeros(image, dtype=np.uint8), corners, 1)
    distance = cv2.distanceTransform(1 - canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(np.asarray(distance <= margin * image[0]))


def ellipse(
    handles: Float[Tensor, "N 2"], targets: Float[Tensor, "N 2"], image: Size, margin: float = MARGIN
) -> Bool[Tensor, "H W"]:
    """True inside an ellipse around all points (px), with a margin of `margin` image heights."""
    points = torch.cat([handles, targets])
    low, high = points.amin(dim=0), points.amax(dim=0)
    # An ellipse through the corners of a rectangle is larger than the rectangle by a factor of sqrt(2).
    axes = (high - low) / 2 * 2**0.5 + margin * image[0]
    y, x = torch.meshgrid(torch.arange(image[0]), torch.arange(image[1]), indexing="ij")
    offset = (torch.stack([x, y], dim=2).to(points) - (low + high) / 2) / axes
    return offset.square().sum(dim=2) <= 1


def measured(
    before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]
) -> Record:
    """Largest and mean change outside a mask, and the seam along its border, in levels of 255.

    The seam is the mean step across the border after the edit, minus the mean step there before it.
    """
    change = np.abs(after.astype(np.int16) - before.astype(np.int16))[~mask]
    return {
        "largest": float(change.max()),
        "change": float(change.mean()),
        "seam": steps_across(after, mask) - steps_across(before, mask),
    }


def steps_across(image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> float:
    """Mean absolute difference of neighbouring pixels of which one lies in the mask; 0 without a border."""
    values = image.astype(np.float64)
    rows, columns = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    steps = (np.abs(np.diff(values, axis=0))[rows], np.abs(np.diff(values, axis=1))[columns])
    joined = np.concatenate([part.ravel() for part in steps])
    return float(joined.mean()) if joined.size else 0.0


main = partial(evaluate, MaskExperiment)
"""`autodrag eval masks`."""
