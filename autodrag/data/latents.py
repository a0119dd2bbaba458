"""Latent codes for training, drawn on the fly: mapped codes, mixed codes, noised codes and motion sequences.

All functions draw from a `torch.Generator` on the CPU. Samples therefore depend only on the seed, not on the device or
the number of processes that share a batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.nets.latent_space import LatentFrame
from autodrag.nets.stylegan2 import Generator

Rng = torch.Generator


def uniform(shape: tuple[int, ...], low: float, high: float, rng: Rng) -> Tensor:
    """Uniform random numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(shape, generator=rng)


@torch.no_grad()
def map_codes(generator: Generator, count: int, psi: Float[Tensor, " B"], rng: Rng) -> Float[Tensor, "B D"]:
    """Codes of random z (and random classes), each truncated with its own `psi`."""
    config = generator.config
    device = generator.mapping.w_avg.device
    z = torch.randn(count, config.z_dim, generator=rng).to(device)
    labels = None
    if config.c_dim:
        classes = torch.randint(config.c_dim, (count,), generator=rng)
        labels = torch.nn.functional.one_hot(classes, config.c_dim).float().to(device)
    w_avg = generator.mapping.w_avg
    return w_avg + psi.to(device)[:, None] * (generator.mapping(z, labels) - w_avg)


@torch.no_grad()
def mixed_codes(generator: Generator, count: int, *, psi: tuple[float, float], rng: Rng) -> Float[Tensor, "B L D"]:
    """W+ codes whose layers differ: style mixing at a random layer, then every layer is moved toward a third code.

    The mapping network gives all layers the same vector, so the first layers can be copied from the others. A
    regularizer trained on such codes would undo every edit.
    """
    layers = generator.config.latent_layers
    strength = uniform((count,), *psi, rng)
    a, b, c = (map_codes(generator, count, strength, rng) for _ in range(3))
    cut = torch.randint(1, layers + 1, (count, 1), generator=rng).to(a.device)  # `layers` mixes nothing
    first = torch.arange(layers, device=a.device) < cut  # (B, L)
    latent = torch.where(first[:, :, None], a[:, None], b[:, None])
    toward = uniform((count, layers), 0.0, 0.5, rng).to(a.device) * uniform((count, 1), 0.0, 1.0, rng).to(a.device)
    return latent.lerp(c[:, None].expand_as(latent), toward[:, :, None])


def noised_codes(
    latent: Float[Tensor, "B L D"], frame: LatentFrame, *, edit_layers: int, zeroed_share: float, sigma: float, rng: Rng
) -> Float[Tensor, "B L D"]:
    """Eq. 1 of Auto DragGAN: set vectors of the first layers to zero with probability `zeroed_share`, then add Gaussian
    noise.

    Both operations use standard coordinates, in which mapped codes have zero mean and unit variance. The standard
    deviation of a code's noise is drawn between 0 and `sigma`. The paper does not give sigma.
    """
    count, _, w_dim = latent.shape
    nonzero = (torch.rand(count, edit_layers, 1, generator=rng) >= zeroed_share).to(latent.device)
    noise = torch.randn(count, edit_layers, w_dim, generator=rng) * uniform((count, 1, 1), 0.0, sigma, rng)
    codes = frame.coordinates(latent[:, :edit_layers]) * nonzero + noise.to(latent.device)
    return torch.cat([frame.mean + frame.offset(codes), latent[:, edit_layers:]], dim=1)


def motion_sequence(
    start: Float[Tensor, "B L D"],
    end: Float[Tensor, "B L D"],
    rate: Float[Tensor, " B"],
    *,
    steps: int,
    edit_layers: int,
) -> Float[Tensor, "B T L D"]:
    """Eq. 7 of Auto DragGAN: w_0 ... w_n (T = `steps` + 1), w_i = w_(i-1) + rate * (w* - w_(i-1)) in the first layers.

    The paper prints a minus sign, which would move away from w*. This function moves toward w*, as UserControllableLT,
    on which the paper is based, does.
    """
    codes = [start]
    for _ in range(steps):
        last = codes[-1]
        moved = last[:, :edit_layers].lerp(end[:, :edit_layers], rate[:, None, None])
        codes.append(torch.cat([moved, last[:, edit_layers:]], dim=1))
    return torch.stack(codes, dim=1)
