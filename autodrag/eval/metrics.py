"""Metrics of the evaluations, as functions of images, points and features.

Images are BCHW float in [-1, 1]. If a formula uses another range, its docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from kornia.metrics import ssim
from torch import Tensor

from autodrag.points import Size, rescale, sample, square

SSIM_WINDOW = 11


def mean_distance(points: Float[Tensor, "N 2"], targets: Float[Tensor, "N 2"]) -> float:
    """MD = mean over points of ||p - t||_2, px of the output image (Pan et al. 2023, Table 1)."""
    return float((points - targets).norm(dim=1).mean())


def squared_error(a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> float:
    """MSE = mean((a - b)^2) over pixels and channels.

    Endo 2022 and Pan et al. 2023 multiply it by 100 and do not state the range of the images. Here the range is
    [-1, 1], as in the generator's output. In [0, 1] the value would be a quarter.
    """
    return float((a - b).square().mean())


def structural_similarity(a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> float:
    """SSIM (Wang et al. 2004): the mean of kornia's SSIM map with an 11 x 11 Gaussian window; 1 for equal images.

    Computed in [0, 1] (`max_val` 1). The window is the published window; averaging over channels is our choice.
    """
    return float(ssim((a.clamp(-1, 1) + 1) / 2, (b.clamp(-1, 1) + 1) / 2, SSIM_WINDOW, max_val=1.0).mean())


PATCH = 1 / 12
"""Half width of the patch of `correlated_points`, as a fraction of the image height; at least 3 px."""
SEARCH = 1 / 8
"""Minimum half width of the search window of `correlated_points`, as a fraction of the image height."""


def correlated_points(
    before: UInt8[np.ndarray, "H W 3"],
    after: UInt8[np.ndarray, "H W 3"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Locate the content of the handles after a drag by normalised cross-correlation. Returns points and correlations.

    This method uses neither the generator's features nor a landmark net. The patch around each handle is searched in a
    square window around its target. The half width of the window is 1.25 times the length of the drag, at least
    `SEARCH`, so the window always contains the handle. The position of the maximum is refined by a paraboloid through
    its neighbours. Points are in px; correlations are in [-1, 1] (OpenCV's TM_CCOEFF_NORMED, over three channels). The
    border is replicated outside the image.

    The method assumes that patches are not rotated or scaled much. It is suitable for comparing methods, but does not
    replace landmarks.
    """
    height = before.shape[0]
    radius = max(3, round(PATCH * height))
    found, scores = [], []
    for handle, target in zip(handles.double().numpy(), targets.double().numpy(), strict=True):
        # The additional px ensures that every maximum within the window has neighbours.
        reach = math.ceil(max(SEARCH * height, 1.25 * float(np.hypot(*(target - handle))))) + 1
        pixel, center = np.rint(handle).astype(int), np.rint(target).astype(int)
        correlation = cv2.matchTemplate(
            _crop(after, center, reach + radius), _crop(before, pixel, radius), cv2.TM_CCOEFF_NORMED
        )
        correlation = np.where(np.isfinite(correlation), correlation, -1.0).clip(-1, 1)  # flat patches have no variance
        y, x = np.unravel_index(correlation.argmax(), correlation.shape)
        peak = np.array([x, y]) + _vertex(correlation, int(x), int(y))
        found.append(center - reach + peak + (handle - pixel))
        scores.append(correlation[y, x])
    return torch.tensor(np.array(found), dtype=torch.float32), torch.tensor(np.array(scores), dtype=torch.float32)


def _crop(image: np.ndarray, center: np.ndarray, radius: int) -> np.ndarray:
    """Crop (2 radius + 1)^2 pixels around a pixel (x, y), with replicated borders."""
    x, y = (
        np.arange(c - radius, c + radius + 1).clip(0, side - 1)
        for c, side in zip(center, image.shape[1::-1], strict=True)
    )
    return image[np.ix_(y, x)]


def _vertex(values: np.ndarray, x: int, y: int) -> np.ndarray:
    """Offset (x, y) of the maximum of a paraboloid fitted to the 3 x 3 values around (x, y); zero at the border."""
    v = values[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].astype(np.float64)
    if v.shape != (3, 3):
        return np.zeros(2)
    gradient = np.array([v[1, 2] - v[1, 0], v[2, 1] - v[0, 1]]) / 2
    mixed = (v[2, 2] - v[2, 0] - v[0, 2] + v[0, 0]) / 4
    hessian = np.array([[v[1, 2] - 2 * v[1, 1] + v[1, 0], mixed], [mixed, v[2, 1] - 2 * v[1, 1] + v[0, 1]]])
    if hessian[0, 0] >= 0 or np.linalg.det(hessian) <= 0:  # the paraboloid has no maximum
        return np.zeros(2)
    return np.clip(-np.linalg.solve(hessian, gradient), -1, 1)


def drag_accuracy(
    before: Float[Tensor, "1 3 H W"],
    after: Float[Tensor, "1 3 H W"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    gamma: int,
) -> float:
    """DAI(gamma) of GoodDrag (Zhang et al. 2024): whether the content of a handle reached its target. Lower is better.

    Mean over points of ||before(patch at handle) - after(patch at target)||^2 / (1 + 2 gamma)^2, for patches of
    (1 + 2 gamma)^2 pixels. Our choices: images in [-1, 1]; squares are summed over the three channels; sampling is
    bilinear; the border is replicated outside the image.
    """
    image = (before.shape[2], before.shape[3])
    window = square(gamma).to(before)
    source = sample(before, (handles[:, None] + window).flatten(0, 1)[None].to(before), image)
    moved = sample(after, (targets[:, None] + window).flatten(0, 1)[None].to(before), image)
    return float((source - moved).square().sum()) / (len(handles) * (1 + 2 * gamma) ** 2)


def strangeness(points: Float[Tensor, "N K 2"], usual: Float[Tensor, "M K 2"]) -> Float[Tensor, " N"]:
    """Squared Mahalanobis distances (fp64) of N landmark shapes (K points) from the distribution of usual shapes.

    The point distribution model of Cootes et al. 1995 with all modes. A torn face differs by only a few px, but in
    directions in which faces hardly vary. Variances are clamped to at least 1/1000 of the mean variance, so that the
    distance is also defined for few usual shapes.
    """
    shapes, reference = points.flatten(1).double(), usual.flatten(1).double()
    variance, modes = torch.linalg.eigh(torch.cov(reference.t()))
    variance = variance.clamp_min(1e-3 * float(variance.mean()))
    return ((shapes - reference.mean(dim=0)) @ modes).square().div(variance).sum(dim=1)


def frechet_distance(a: Float[Tensor, "N C"], b: Float[Tensor, "M C"]) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    With Inception features this is FID (Heusel et al. 2017); with other features it must not be called FID.
    """
    a, b = a.double(), b.double()
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    cov_a, cov_b = torch.cov(a.t()), torch.cov(b.t())
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), whose argument is symmetric.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.t()
    product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(mean + cov_a.trace() + cov_b.trace() - 2 * product))


def matched_points(
    before: Float[Tensor, "1 C h w"], after: Float[Tensor, "1 C h w"], handles: Float[Tensor, "N 2"], image: Size
) -> Float[Tensor, "N 2"]:
    """Locate the content of the handles after a drag by nearest-neighbour search in generator features.

    DragBench (Shi et al. 2024) does this with features of a diffusion model. The function is used if no landmark model
    is available. It is independent of a method's tracker, but not of the generator. Returns centres of cells, px.
    """
    height, width = after.shape[2:]
    features = sample(before, handles[None], image)[0].t()  # (N, C)
    index = torch.cdist(features, after[0].flatten(1).t()).argmin(dim=1)  # (N,)
    cells = torch.stack([index % width, index // width], dim=1).float()
    return rescale(cells, (height, width), image)


def decay(seconds: Sequence[float], distances: Sequence[float], initial: float, at: Sequence[float]) -> list[float]:
    """MDD(t) = MD(t) / MD(0) at the times `at` (Auto DragGAN, Eq. 15): the latest value, and 1 before the first.

    Args:
        seconds: ascending times of images.
        distances: mean distances of these images, px.
        initial: MD(0), px, positive.
        at: ascending times of the result, seconds.
    """
    values, reached, index = [], 1.0, 0
    for time in at:
        while index < len(seconds) and seconds[index] <= time:
            reached = distances[index] / initial
            index += 1
        values.append(reached)
    return values
