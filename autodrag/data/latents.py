"""Latent codes to learn from, drawn on the fly: plausible codes, noised codes, motion sequences.

Every draw takes a `torch.Generator` on the CPU. A sample therefore depends on its seed alone, not on the device or on
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
    """Numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(shape, generator=rng)


@torch.no_grad()
def map_codes(generator: Generator, count: int, psi: Float[Tensor, " B"], rng: Rng) -> Float[Tensor, "B D"]:
    """Codes of random z (and classes), truncated by `psi` each."""
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
    """W+ codes whose layers differ: style mixing at a random layer, then every layer moved toward a third code.

    The mapping network gives all layers the same vector. From such codes, the first layers can be read off the others,
    and a regularizer trained on them would undo every edit.
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
    """Eq. 1 of Auto DragGAN: vectors of the first layers set to zero with probability `zeroed_share`, then Gaussian
    noise.

    Both happen in standard coordinates, where zero is the mean of the mapped codes and one their standard deviation.
    The deviation of each code's noise is drawn between 0 and `sigma`. The paper gives no sigma.
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

    The paper prints a minus sign, which moves away from w*. UserControllableLT, which the paper follows, moves toward
    it, and so does this function.
    """
    codes = [start]
    for _ in range(steps):
        last = codes[-1]
        moved = last[:, :edit_layers].lerp(end[:, :edit_layers], rate[:, None, None])
        codes.append(torch.cat([moved, last[:, edit_layers:]], dim=1))
    return torch.stack(codes, dim=1)
