"""The latent that an image is opened with: a seed's, a file's, or one that is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.checkpoint import load_latent
from autodrag.errors import AutodragError
from autodrag.nets.stylegan2 import Generator, seed_z


def opened_latent(
    generator: Generator,
    *,
    seed: int | None,
    psi: float,
    label: int | None,
    latent: Tensor | str | Path | None,
    fingerprint: str,
) -> Float[Tensor, "1 L D"]:
    """W+ of an image that can be opened; see `DragEditor.open` for the arguments.

    Args:
        fingerprint: the generator's, which a latent file may name.

    Raises:
        AutodragError: not exactly one of seed and latent, or one that this generator has no image for.
    """
    if (seed is None) == (latent is None):
        raise AutodragError("give either a seed or a latent to open, such as seed=7")
    config = generator.config
    if isinstance(latent, Tensor):
        expected = (1, config.latent_layers, config.w_dim)
        if latent.shape != expected or not torch.isfinite(latent).all():
            raise AutodragError(f"latent has shape {tuple(latent.shape)}; expected finite values of {expected}")
        return latent.detach().float()
    if latent is not None:
        return load_latent(latent, layers=config.latent_layers, w_dim=config.w_dim, generator=fingerprint)
    assert seed is not None
    return seed_latent(generator, seed, psi, label)


@torch.no_grad()
def seed_latent(generator: Generator, seed: int, psi: float, label: int | None) -> Float[Tensor, "1 L D"]:
    """W+ of a seed, truncated by `psi`; a label where the generator has classes, and only there."""
    config, device = generator.config, generator.mapping.w_avg.device
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise AutodragError(f"seed {seed!r} is not usable; expected a whole number from 0 to {2**32 - 1}")
    if not np.isfinite(psi):
        raise AutodragError(f"psi {psi} is not finite; expected a number such as 0.7")
    if config.c_dim == 0 and label is not None:
        raise AutodragError(f"label {label} is given, but this generator has no classes; leave it out")
    if config.c_dim and (label is None or not 0 <= label < config.c_dim):
        raise AutodragError(f"label {label} is not a class of this generator; expected 0 to {config.c_dim - 1}")
    labels = None if label is None else torch.eye(config.c_dim, device=device)[label][None]
    return generator.map(seed_z(seed, config.z_dim).to(device), labels, psi=psi)
