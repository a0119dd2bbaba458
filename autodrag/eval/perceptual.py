"""Similarity of two images and of two sets of images, with published metrics if they are available.

`torchmetrics`: LPIPS and FID of the package torchmetrics, with local weights (see `autodrag.eval.weights`).
`own`: MSE and SSIM, and the Fréchet distance in features of the checkpoint's landmark net. Tables name the metric.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.eval.metrics import squared_error, structural_similarity
from autodrag.eval.tables import Measure
from autodrag.eval.weights import FID, LPIPS, missing, path_of, require
from autodrag.infer.measure import find_landmarks
from autodrag.nets.landmarks import LandmarkNet

CHOICES = ("auto", "torchmetrics", "own")

MEASURES = {
    "mse": Measure("MSE × 10²", 3, factor=100.0),
    "lpips": Measure("LPIPS × 10", 3, factor=10.0),
    "ssim": Measure("SSIM", 3),
}
"""Table formats of the metrics, with the factors used in the papers."""

Similarity = Callable[[Tensor, Tensor], float]
"""Compares two images (1, 3, H, W) in [-1, 1]."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--metrics`."""
    parser.add_argument(
        "--metrics",
        choices=CHOICES,
        default="auto",
        help="torchmetrics: LPIPS or FID, with weights on this machine; own: MSE and SSIM, or the Fréchet distance in "
        "features of the checkpoint's landmark net; auto (default): torchmetrics if its weights are available",
    )


def load_lpips(device: torch.device) -> Similarity:
    """LPIPS (Zhang et al. 2018) with AlexNet, from torchmetrics, on images in [-1, 1]. The papers multiply it by 10.

    The papers do not name their backbone. AlexNet is recommended by the authors of LPIPS.
    """
    require(LPIPS)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    net = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=False).to(device)

    @torch.no_grad()
    def measure(a: Tensor, b: Tensor) -> float:
        value = float(net(a, b))
        net.reset()
        return value

    return measure


def similarities(choice: str, device: torch.device) -> dict[str, Similarity]:
    """Metrics of two images by name: `mse`, `ssim`, and also `lpips` if it is chosen or available."""
    own: dict[str, Similarity] = {"mse": squared_error, "ssim": structural_similarity}
    if choice == "own" or (choice == "auto" and missing(LPIPS)):
        return own
    return own | {"lpips": load_lpips(device)}


@dataclass(frozen=True)
class ImageFeatures:
    """Image features for the Fréchet distance between sets of images."""

    title: str
    """Name of the distance in these features."""
    of: Callable[[Tensor], Float[Tensor, " C"]]
    """Computes the features of an image (1, 3, H, W) in [-1, 1]."""


def load_features(choice: str, net: LandmarkNet | None, device: torch.device) -> ImageFeatures | None:
    """Inception features (FID) if they are chosen or available, otherwise landmark-net features; None without a net."""
    if choice == "torchmetrics" or (choice == "auto" and not missing(FID)):
        return _inception(device)
    if net is None:
        return None
    own = net  # for the type checker
    return ImageFeatures("Fréchet", lambda image: find_landmarks(own, image).features[0])


def _inception(device: torch.device) -> ImageFeatures:
    """Features of FID (Heusel et al. 2017) on uint8 images, from torchmetrics."""
    require(FID)
    from torchmetrics.image.fid import FrechetInceptionDistance

    inception = FrechetInceptionDistance(feature_extractor_weights_path=str(path_of(FID))).to(device).inception

    @torch.no_grad()
    def of(image: Tensor) -> Tensor:
        pixels = image.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = inception(pixels)[0]
        return features

    return ImageFeatures("FID", of)
