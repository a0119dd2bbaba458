"""Standard coordinates of a generator's latent codes: the principal components of W, each with unit variance.

A principal component analysis of mapped codes (GANSpace, Härkönen et al. 2020; Stable-DragGAN keeps drags plausible
with it). A step of a given length in these coordinates is equally likely in every direction. In plain W it is not, and
an optimiser leaves the distribution as easily as it follows it.
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
    """Column k is the k-th principal direction times its standard deviation, floored at 1 % of the largest."""

    @staticmethod
    @torch.no_grad()
    def of(generator: Generator, *, samples: int = 4096, seed: int = 0) -> LatentBasis:
        """The basis of a generator, from `samples` random codes (with random labels if it is conditional)."""
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
        """A displacement in standard coordinates, converted to W."""
        return F.linear(coordinates, self.directions)

    def coordinates(self, offset: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """A displacement in W, converted to standard coordinates: the inverse of `offset`."""
        return F.linear(offset, _inverse(self.directions))


def _inverse(directions: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """The inverse of a matrix whose columns are orthogonal."""
    return (directions / directions.square().sum(dim=0)).t()


class LatentFrame(nn.Module):
    """A basis as part of a network. It is stored with the weights, because the signs of directions are arbitrary."""

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
        """Copies a basis."""
        self.mean.copy_(basis.mean)
        self.directions.copy_(basis.directions)
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Computes the inverse of the directions; call it after writing to them."""
        self.inverse = _inverse(self.directions)

    def coordinates(self, w: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Codes of W in standard coordinates: zero mean and unit variance in every direction."""
        return F.linear(w - self.mean, self.inverse)

    def offset(self, coordinates: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """A displacement in standard coordinates, converted to W."""
        return F.linear(coordinates, self.directions)
