"""Preservation of the masked region: the change of the image outside the mask, with and without the mask.

No paper measures this. The drags are those of `autodrag eval mdd`. The mask is an ellipse around handles and targets
with a margin of 15 % of the image height. The evaluation runs each drag with and without the mask. It measures the mean
absolute change of the image (in [-1, 1]) outside the ellipse, and the remaining distance.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.eval.log import Record
from autodrag.eval.metrics import mean_distance
from autodrag.eval.ruler import make_ruler
from autodrag.eval.run import Experiment, Measured, evaluate
from autodrag.eval.tables import Columns, Measure, optional
from autodrag.eval.tasks import Pair
from autodrag.points import Size

MARGIN = 0.15
"""Margin of the ellipse around handles and targets, as a fraction of the image height."""


class MaskExperiment(Experiment):
    """Drag with and without a mask, and compare the change outside the mask."""

    name = "masks"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.measures = {
            "free_change": Measure("change outside without mask", 4, spread=False),
            "masked_change": Measure("with mask", 4, spread=False),
            "ratio": Measure("with mask, % of without", 0, factor=100),
            "free_distance": Measure("left without mask, px", 2, spread=False),
            "masked_distance": Measure("left with mask, px", 2, spread=False),
            "seconds": Measure("seconds with mask", 3),
        }

    def measure(self, method: str, pair: Pair, points: int) -> Measured:
        """Drags whose mask covers the whole image are not run; their records have no measurements."""
        bench, drag = self.bench, pair.drag(points, self.bench.device)
        mask = ellipse(drag.handles, drag.targets, bench.generator.config.image_size)
        if bool(mask.all()):
            return {"share": 1.0}, None
        latent = pair.latent.to(bench.device)
        before = bench.image(latent)
        free, masked = bench.run(method, latent, drag), bench.run(method, latent, replace(drag, mask=mask))
        ruler = make_ruler(bench, self.source.detector, pair, points)
        record: Record = {
            "share": float(mask.float().mean()),
            "initial": mean_distance(drag.handles, drag.targets),
            "free_change": change_outside(before, free.image, mask),
            "masked_change": change_outside(before, masked.image, mask),
            "free_distance": ruler(free.latent),
            "masked_distance": ruler(masked.latent),
        }
        free_change = record["free_change"]
        record["ratio"] = record["masked_change"] / free_change if free_change else None
        return record | masked.record(), None

    def extras(self, drags: list[Record], unedited: list[Record]) -> Record:
        used = [r for r in drags if r["share"] < 1]
        if not used:
            raise AutodragError("every mask covers its whole image; drag fewer points with --points")
        free, masked = (sum(r[field] for r in used) for field in ("free_change", "masked_change"))
        return {"drags": len(used), "ratio_of_means": masked / free if free else None}

    def draw(self, out: Path, pairs: Sequence[Pair], records: Sequence[Record], points: int) -> None:
        """This experiment draws nothing."""

    @property
    def extra_columns(self) -> Columns:
        return {
            "ratio of means": lambda row: optional(row["ratio_of_means"], ".0%"),
            "drags": lambda row: str(row["drags"]),
        }


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


def change_outside(
    before: Float[Tensor, "1 3 H W"], after: Float[Tensor, "1 3 H W"], mask: Bool[Tensor, "H W"]
) -> float:
    """Mean absolute change of an image in [-1, 1] where the mask is False."""
    return float((after - before).abs().mean(dim=(0, 1))[~mask].mean())


main = partial(evaluate, MaskExperiment)
"""`autodrag eval masks`."""
