"""Similarity of two images and of two sets of images: published metrics where they are available, else our own.

`torchmetrics`: LPIPS and FID, by the package of that name, with the weights that `autodrag.eval.weights` finds.
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
"""How tables show each measure; the factors are those of the papers."""

Similarity = Callable[[Tensor, Tensor], float]
"""Two images (1, 3, H, W) in [-1, 1] to a number."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--metrics`."""
    parser.add_argument(
        "--metrics",
        choices=CHOICES,
        default="auto",
        help="torchmetrics: LPIPS or FID, from weights on this machine; own: MSE and SSIM, or the Fréchet distance in "
        "features of the checkpoint's landmark net; auto (default): torchmetrics where its weights are available",
    )


def load_lpips(device: torch.device) -> Similarity:
    """LPIPS (Zhang et al. 2018) with AlexNet, by torchmetrics, on images in [-1, 1]; the papers print it times 10.

    The backbone is our choice: the papers do not name theirs, and AlexNet is its authors' recommendation.
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
    """The measures of two images by name: `mse` and `ssim`, and `lpips` where it is chosen or available."""
    own: dict[str, Similarity] = {"mse": squared_error, "ssim": structural_similarity}
    if choice == "own" or (choice == "auto" and missing(LPIPS)):
        return own
    return own | {"lpips": load_lpips(device)}


@dataclass(frozen=True)
class ImageFeatures:
    """A description of an image, for the Fréchet distance between sets of them."""

    title: str
    """Name of the distance in these features."""
    of: Callable[[Tensor], Float[Tensor, " C"]]
    """(1, 3, H, W) in [-1, 1] to features."""


def load_features(choice: str, net: LandmarkNet | None, device: torch.device) -> ImageFeatures | None:
    """Inception's features (FID) where they are chosen or available, else the landmark net's; None without a net."""
    if choice == "torchmetrics" or (choice == "auto" and not missing(FID)):
        return _inception(device)
    if net is None:
        return None
    own = net  # for the type checker
    return ImageFeatures("Fréchet", lambda image: find_landmarks(own, image).features[0])


def _inception(device: torch.device) -> ImageFeatures:
    """ImageFeatures of FID (Heusel et al. 2017) on uint8 images, as torchmetrics computes them."""
    require(FID)
    from torchmetrics.image.fid import FrechetInceptionDistance

    inception = FrechetInceptionDistance(feature_extractor_weights_path=str(path_of(FID))).to(device).inception

    @torch.no_grad()
    def of(image: Tensor) -> Tensor:
        pixels = image.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = inception(pixels)[0]
        return features

    return ImageFeatures("FID", of)
