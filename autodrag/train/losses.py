"""Losses, as pure functions: of adversarial training (logistic, R1, path length), and of the learned editor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from autodrag.points import Size, sample, square


def generator_loss(fake_logits: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
    """Non-saturating loss -log sigmoid(D(fake)) (Goodfellow et al. 2014)."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Float[Tensor, "B 1"], fake_logits: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
    """Logistic loss -log sigmoid(D(real)) - log(1 - sigmoid(D(fake)))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Float[Tensor, "B 1"], real: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Mean over the batch of the squared norm of dD/dx at real images (Mescheder et al. 2018); times gamma / 2."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)).mean()


def path_length_penalty(
    images: Float[Tensor, "B 3 H W"],
    latent: Float[Tensor, "B L D"],
    mean_length: Float[Tensor, ""],
    generator: torch.Generator | None = None,
    decay: float = 0.01,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """StyleGAN2's path-length regularisation: ((‖J^T y‖ - a)^2 averaged, the updated running mean a).

    y is Gaussian noise over the image; the norm is over D, and over L as a mean, as in NVIDIA's code.
    """
    noise = torch.randn(images.shape, generator=generator).to(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), latent, create_graph=True)
    lengths = gradient.float().square().sum(dim=2).mean(dim=1).sqrt()
    mean_length = mean_length.lerp(lengths.detach().mean(), decay)
    return (lengths - mean_length).square().mean(), mean_length


def drag_loss(
    before: Float[Tensor, "B C h w"],
    after: Float[Tensor, "B C h w"],
    handles: Float[Tensor, "B N 2"],
    targets: Float[Tensor, "B N 2"],
    weights: Float[Tensor, "B N"],
    image: Size,
    *,
    radius: int,
) -> Float[Tensor, ""]:
    """Eq. 13 of Auto DragGAN: the patch at the handle before shall be the patch at the target after.

    L1 over patches of (2 radius + 1)^2 cells. The paper sums over channels, cells and points; here it is their mean,
    so that the weight does not depend on their number. `weights` sum to 1 over points that count.
    """
    offsets = square(radius, image[0] / before.shape[2]).to(handles)

    def patch(maps: Tensor, points: Tensor) -> Tensor:
        values = sample(maps, (points[:, :, None] + offsets).flatten(1, 2), image)
        return values.unflatten(2, (points.shape[1], -1))  # (B, C, N, K)

    difference = (patch(before.detach(), handles) - patch(after, targets)).abs().mean(dim=(1, 3))
    return (difference * weights).sum()


def position_loss(
    found: Float[Tensor, "B N 2"], targets: Float[Tensor, "B N 2"], weights: Float[Tensor, "B N"], height: int
) -> Float[Tensor, ""]:
    """Distance from where the points are found to where they should be, as a share of the image height.

    Ours. Rounded near zero (Huber), as the last half cell is noise of the tracker.
    """
    way = (found - targets) / height
    distance = (way.square().sum(dim=2) + 1e-4).sqrt()
    return (distance * weights).sum()
