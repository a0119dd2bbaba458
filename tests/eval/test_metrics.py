from __future__ import annotations

import pytest
import torch

from autodrag.eval.metrics import frechet_distance, quartiles


def test_frechet_distance_of_known_gaussians() -> None:
    """N(0, diag(1, 4)) to N((3, 0), diag(4, 1)): 9 + (1 - 2)^2 + (2 - 1)^2 = 11."""
    torch.manual_seed(0)
    base = torch.randn(4000, 2, dtype=torch.float64)
    base = (base - base.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.t()))).t()
    a = base * torch.tensor([1.0, 2.0])
    b = base * torch.tensor([2.0, 1.0]) + torch.tensor([3.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(11.0, abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_quartiles() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
