"""Distances between points and their targets in a result, measured independently of the methods' trackers.

The landmark model of a run is used if there is one. Otherwise, the content of each handle is searched in the whole
image with generator features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.eval.bench import Bench
from autodrag.eval.detectors import Detector
from autodrag.eval.metrics import matched_points, mean_distance
from autodrag.eval.tasks import Pair

Ruler = Callable[[Tensor], float | None]
"""Computes the mean distance (px) of the points to their targets from a latent (1, L, D); None without a detection."""

FEATURE_BLOCK = 5
"""The 128 x 128 block, whose features track best according to DragGAN. Smaller generators use their last block."""


def make_ruler(bench: Bench, detector: Detector | None, pair: Pair, points: int) -> Ruler:
    """Create the function that measures results of the drag with a pair's first `points` points."""
    chosen, drag = pair.chosen(points), pair.drag(points, bench.device)
    if detector is not None:
        model = detector  # for the type checker

        def by_landmarks(latent: Tensor) -> float | None:
            found = model(bench.image(latent))
            return None if found is None else mean_distance(found.points[chosen], drag.targets)

        return by_landmarks

    size, before = bench.generator.config.image_size, _features(bench, pair.latent.to(bench.device))
    return lambda latent: mean_distance(
        matched_points(before, _features(bench, latent), drag.handles, size), drag.targets
    )


@torch.no_grad()
def _features(bench: Bench, latent: Tensor) -> Float[Tensor, "1 C h w"]:
    block = min(FEATURE_BLOCK, len(bench.generator.config.block_resolutions) - 1)
    return bench.generator.features(latent, block=block).last
