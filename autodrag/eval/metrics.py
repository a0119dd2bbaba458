"""Measures shared by the protocols."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """(25 %, median, 75 %) of values."""
    quantiles = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    low, middle, high = quantiles.tolist()
    return low, middle, high
