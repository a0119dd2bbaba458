"""Loss functions of adversarial training (logistic, R1, path length) and of the predictor (position)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def generator_loss(fake_logits: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
    """Non-saturating loss -log sigmoid(D(fake)) (Goodfellow et al. 2014)."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Float[Tensor, "B 1"], fake_logits: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
    """Logistic loss -log sigmoid(D(real)) - log(1 - sigmoid(D(fake)))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Float[Tensor, "B 1"], real: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """R1 without the factor gamma / 2 (Mescheder et al. 2018): batch mean of ‖dD/dx‖^2 at real images."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)).mean()


def path_length_penalty(
    images: Float[Tensor, "B 3 H W"],
    latent: Float[Tensor, "B L D"],
    mean_length: Float[Tensor, ""],
    generator: torch.Generator | None = None,
    decay: float = 0.01,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """StyleGAN2's path-length regularisation. Returns (mean of (‖J^T y‖ - a)^2, the updated running mean a).

    y is Gaussian noise over the image. As in NVIDIA's code, squares are summed over D and averaged over L.
    """
    noise = torch.randn(images.shape, generator=generator).to(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), latent, create_graph=True)
    lengths = gradient.float().square().sum(dim=2).mean(dim=1).sqrt()
    mean_length = mean_length.lerp(lengths.detach().mean(), decay)
    return (lengths - mean_length).square().mean(), mean_length


def position_loss(
    found: Float[Tensor, "B N 2"], targets: Float[Tensor, "B N 2"], weights: Float[Tensor, "B N"], height: int
) -> Float[Tensor, ""]:
    """Distance of the tracked points from their targets in image heights; not part of the paper.

    The loss is smooth near zero (Charbonnier), because differences below half a cell are tracker noise.
    """
    displacement = (found - targets) / height
    distance = (displacement.square().sum(dim=2) + 1e-4).sqrt()
    return (distance * weights).sum()
