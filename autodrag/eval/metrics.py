"""Measures shared by the protocols: plain functions of images, points and features.

Images are BCHW float in [-1, 1], as everywhere inside; where a formula needs another range its docstring says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from kornia.metrics import ssim
from torch import Tensor

from autodrag.infer.tracking import References
from autodrag.points import Size, rescale, sample, square

SSIM_WINDOW = 11


def mean_distance(points: Float[Tensor, "N 2"], targets: Float[Tensor, "N 2"]) -> float:
    """MD = mean over points of ||p - t||_2, px of the output image (Pan et al. 2023, Table 1)."""
    return float((points - targets).norm(dim=1).mean())


def squared_error(a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> float:
    """MSE = mean((a - b)^2) over pixels and channels.

    Endo 2022 and Pan et al. 2023 print it times 100 and do not state the range of the images; ours is [-1, 1], in
    which a generator makes them. In [0, 1] it would be a quarter.
    """
    return float((a - b).square().mean())


def structural_similarity(a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> float:
    """SSIM (Wang et al. 2004), the mean of kornia's map with an 11 x 11 Gaussian window; 1 for equal images.

    Computed in [0, 1] (`max_val` 1). kornia's window is the published one; the mean over channels is our choice.
    """
    return float(ssim((a.clamp(-1, 1) + 1) / 2, (b.clamp(-1, 1) + 1) / 2, SSIM_WINDOW, max_val=1.0).mean())


def drag_accuracy(
    before: Float[Tensor, "1 3 H W"],
    after: Float[Tensor, "1 3 H W"],
    handles: Float[Tensor, "N 2"],
    targets: Float[Tensor, "N 2"],
    gamma: int,
) -> float:
    """DAI(gamma) of GoodDrag (Zhang et al. 2024): did the content of a handle reach its target? Lower is better.

    Mean over points of ||before(patch at handle) - after(patch at target)||^2 / (1 + 2 gamma)^2, the patch having
    (1 + 2 gamma)^2 pixels. Our choices: images in [-1, 1]; squares are summed over the three channels, as the norm
    says; points between pixels are read bilinearly; outside of the image its border is repeated.
    """
    image = (before.shape[2], before.shape[3])
    window = square(gamma).to(before)
    source = sample(before, (handles[:, None] + window).flatten(0, 1)[None].to(before), image)
    moved = sample(after, (targets[:, None] + window).flatten(0, 1)[None].to(before), image)
    return float((source - moved).square().sum()) / (len(handles) * (1 + 2 * gamma) ** 2)


def strangeness(points: Float[Tensor, "N K 2"], usual: Float[Tensor, "M K 2"]) -> Float[Tensor, " N"]:
    """How unlike the usual constellations N constellations of K landmarks are: squared Mahalanobis distances, fp64.

    The point distribution model of Cootes et al. 1995, with all of its modes: what tears a face apart is small in px
    and lies in directions in which faces hardly vary. Variances are floored at 1/1000 of the mean one, so that few
    constellations will do, if not well.
    """
    all_points, known = points.flatten(1).double(), usual.flatten(1).double()
    variance, modes = torch.linalg.eigh(torch.cov(known.t()))
    variance = variance.clamp_min(1e-3 * float(variance.mean()))
    return ((all_points - known.mean(dim=0)) @ modes).square().div(variance).sum(dim=1)


def frechet_distance(a: Float[Tensor, "N C"], b: Float[Tensor, "M C"]) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    Heusel et al. 2017 call it FID when the features are Inception's; with any other net's it must not be called so.
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
    maps: Float[Tensor, "1 C h w"], references: References, image: Size
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Where the content of the handles is now, by nearest neighbour in generator features over the whole map.

    DragBench (Shi et al. 2024) does so in features of a diffusion model. It is what is left where no landmark model is
    at hand: independent of a method's tracker, but not of the generator. Returns points (px, at the centres of cells)
    and their feature distances relative to that of an unrelated place.
    """
    height, width = maps.shape[2:]
    wanted = references.features[:, :, references.features.shape[2] // 2]  # (N, C), the middle offset
    distances = torch.cdist(wanted, maps[0].flatten(1).t())  # (N, h * w)
    best, index = distances.min(dim=1)
    cells = torch.stack([index % width, index // width], dim=1).float()
    return rescale(cells, (height, width), image), best / references.scale


def decay(seconds: Sequence[float], distances: Sequence[float], initial: float, at: Sequence[float]) -> list[float]:
    """MDD(t) = MD(t) / MD(0) at the times `at` (Auto DragGAN, Eq. 15), the last value known at each; 1 before any.

    Args:
        seconds, distances: when an image was there, and its mean distance (px); seconds ascend.
        initial: MD(0), px, positive.
    """
    values, reached, index = [], 1.0, 0
    for time in at:
        while index < len(seconds) and seconds[index] <= time:
            reached = distances[index] / initial
            index += 1
        values.append(reached)
    return values


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(25 %, median, 75 %) of values."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(shares).tolist()
    return low, middle, high
