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
from autodrag.infer.open_image import OpenImage, feature_block
from autodrag.nets.layers import Layers

Ruler = Callable[[Layers], float | None]
"""The code of an image to the mean distance of its image's points to their targets, px; None where none is found."""


def make_ruler(bench: Bench, detector: Detector | None, pair: Pair, points: int) -> Ruler:
    """Create the function that measures results of the drag with a pair's first `points` points."""
    chosen, drag = pair.chosen(points), pair.drag(points, bench.device)
    if detector is not None:
        model = detector  # for the type checker

        def by_landmarks(code: Layers) -> float | None:
            found = model(bench.image(code))
            return None if found is None else mean_distance(found.points[chosen], drag.targets)

        return by_landmarks

    size, before = bench.generator.config.image_size, _features(bench, Layers.of(pair.latent.to(bench.device)))
    return lambda code: mean_distance(matched_points(before, _features(bench, code), drag.handles, size), drag.targets)


@torch.no_grad()
def _features(bench: Bench, code: Layers) -> Float[Tensor, "1 C h w"]:
    return OpenImage.of(bench.generator, code).output(feature_block(bench.generator.config))
