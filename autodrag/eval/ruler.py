"""How far points are from their targets in a result, measured by something that no method has used.

The landmark model of a run where there is one. Otherwise generator features: the content of each handle is looked for
in the whole image, whatever a method's own tracker says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.eval.detectors import Detector
from autodrag.eval.metrics import matched_points, mean_distance
from autodrag.eval.run import Bench
from autodrag.eval.tasks import Pair
from autodrag.infer.tracking import take_references

Ruler = Callable[[Tensor], float | None]
"""A latent (1, L, D) to the mean distance of its image's points to their targets, px; None where none is found."""

FEATURE_BLOCK = 5
"""128 x 128, the features that DragGAN found best for tracking; the last block of a smaller generator."""


def make_ruler(bench: Bench, detector: Detector | None, pair: Pair, points: int) -> Ruler:
    """Measures results of the drag of a pair's first `points` points."""
    chosen, handles, targets = pair.drags(points)
    if detector is not None:
        model = detector  # for the type checker

        def by_landmarks(latent: Tensor) -> float | None:
            found = model(bench.image(latent))
            return None if found is None else mean_distance(found.points[chosen], targets)

        return by_landmarks

    size = bench.generator.config.image_size
    references = take_references(
        _features(bench, pair.latent), handles, size, offsets=torch.zeros(1, 2, device=bench.device), norm="l2"
    )
    return lambda latent: mean_distance(matched_points(_features(bench, latent), references, size)[0], targets)


@torch.no_grad()
def _features(bench: Bench, latent: Tensor) -> Float[Tensor, "1 C h w"]:
    block = min(FEATURE_BLOCK, len(bench.generator.config.block_resolutions) - 1)
    return bench.generator.features(latent, block=block).last
