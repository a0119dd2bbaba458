"""Distances from points to their targets in a result, measured independently of every method's tracker.

The landmark model of a run where there is one. Otherwise generator features: the content of each handle is searched in
the whole image.
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
"""A latent (1, L, D) to the mean distance of its image's points to their targets, px; None where none is found."""

FEATURE_BLOCK = 5
"""128 x 128, the features that track best according to DragGAN; the last block of a smaller generator."""


def make_ruler(bench: Bench, detector: Detector | None, pair: Pair, points: int) -> Ruler:
    """Measures results of the drag of a pair's first `points` points."""
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
