"""Standard coordinates of a generator's latent codes: the principal components of W, scaled to unit variance.

The basis is a principal component analysis of mapped codes (GANSpace, Härkönen et al. 2020; Stable-DragGAN uses it to
keep drags plausible). In standard coordinates, steps of equal length have equal likelihood in all directions. In W they
do not, so an optimiser easily leaves the distribution of codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from autodrag.nets.stylegan2 import Generator


@dataclass(frozen=True)
class LatentBasis:
    """Mean and scaled principal directions of W."""

    mean: Float[Tensor, " D"]
    """Mean of the mapped codes."""
    directions: Float[Tensor, "D D"]
    """Column k is the k-th principal direction times its standard deviation (at least 1 % of the largest deviation)."""

    @staticmethod
    @torch.no_grad()
    def of(generator: Generator, *, samples: int = 4096, seed: int = 0) -> LatentBasis:
        """Compute the basis of a generator from `samples` random codes (with random labels if it is conditional)."""
        config = generator.config
        device = generator.mapping.w_avg.device
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(samples, config.z_dim, generator=rng).to(device)
        labels = None
        if config.c_dim:
            classes = torch.randint(config.c_dim, (samples,), generator=rng)
            labels = torch.nn.functional.one_hot(classes, config.c_dim).float().to(device)
        w = generator.mapping(z, labels)
        mean = w.mean(dim=0)
        variance, vectors = torch.linalg.eigh((w - mean).t() @ (w - mean) / (samples - 1))
        deviation = variance.clamp_min(0).sqrt()
        deviation = deviation.clamp_min(0.01 * float(deviation.max()))
        return LatentBasis(mean, (vectors * deviation).flip(1))

    def offset(self, coordinates: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Convert a displacement in standard coordinates to W."""
        return F.linear(coordinates, self.directions)

    def coordinates(self, offset: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Convert a displacement in W to standard coordinates; the inverse of `offset`."""
        return F.linear(offset, _inverse(self.directions))


def _inverse(directions: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """Inverse of a matrix with orthogonal columns."""
    return (directions / directions.square().sum(dim=0)).t()


class LatentFrame(nn.Module):
    """A basis as a module. It is stored with a network's weights, because the signs of principal directions vary."""

    mean: Tensor
    directions: Tensor
    inverse: Tensor
    """Inverse of `directions`."""

    def __init__(self, w_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("directions", torch.eye(w_dim))
        self.register_buffer("inverse", torch.eye(w_dim), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.renew())

    def take(self, basis: LatentBasis) -> None:
        """Copy a basis into the buffers."""
        self.mean.copy_(basis.mean)
        self.directions.copy_(basis.directions)
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Recompute the inverse. Call this method after writing to `directions`."""
        self.inverse = _inverse(self.directions)

    def coordinates(self, w: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Convert codes of W to standard coordinates, with zero mean and unit variance in every direction."""
        return F.linear(w - self.mean, self.inverse)

    def offset(self, coordinates: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Convert a displacement in standard coordinates to W."""
        return F.linear(coordinates, self.directions)
