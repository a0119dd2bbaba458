"""Losses compared with manually computed values."""

from __future__ import annotations

import math

import pytest
import torch

from autodrag.train.losses import (
    discriminator_loss,
    generator_loss,
    path_length_penalty,
    position_loss,
    r1_penalty,
)


def test_logistic_losses() -> None:
    zero, two = torch.zeros(3, 1), torch.full((3, 1), 2.0)
    assert float(generator_loss(zero)) == pytest.approx(math.log(2))
    assert float(generator_loss(two)) == pytest.approx(math.log1p(math.exp(-2)))
    assert float(discriminator_loss(two, -two)) == pytest.approx(2 * math.log1p(math.exp(-2)))


def test_r1_of_a_linear_critic() -> None:
    """The gradient of <w, x> is w everywhere. The penalty is its squared norm, with the gradient 2 w."""
    w = torch.randn(3, 4, 4, requires_grad=True)
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = r1_penalty((w * x).sum(dim=(1, 2, 3))[:, None], x)
    assert float(penalty.detach()) == pytest.approx(float(w.detach().square().sum()), rel=1e-5)
    (gradient,) = torch.autograd.grad(penalty, w)
    assert torch.allclose(gradient, 2 * w, atol=1e-5)


def test_path_length_of_a_linear_generator() -> None:
    """For images = a * latent, repeated in three channels, the mean length of J^T y is known."""
    latent = torch.randn(2000, 1, 1, requires_grad=True)
    images = (3.0 * latent[:, :, :, None]).expand(-1, 3, 1, 1)
    penalty, mean = path_length_penalty(images, latent, torch.zeros([]), torch.Generator().manual_seed(0), decay=1.0)
    # J^T y = 3 (y1 + y2 + y3), of which the absolute value has mean 3 sqrt(3) sqrt(2 / pi).
    assert float(mean) == pytest.approx(3 * math.sqrt(3) * math.sqrt(2 / math.pi), rel=0.05)
    assert float(penalty.detach()) == pytest.approx(27 * (1 - 2 / math.pi), rel=0.1)


def test_position_loss_is_the_distance_in_image_heights() -> None:
    found = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], requires_grad=True)
    loss = position_loss(found, torch.zeros(1, 2, 2), torch.tensor([[1.0, 1.0]]), 10)
    # sqrt(0.5^2 + 1e-4), and sqrt(1e-4) for a point at its target.
    assert float(loss.detach()) == pytest.approx(math.sqrt(0.2501) + 0.01, rel=1e-5)
    loss.backward()
    assert found.grad is not None
    assert found.grad[0, 1].tolist() == [0.0, 0.0]  # no gradient at the target
    assert found.grad[0, 0].tolist() == pytest.approx([0.03 / math.sqrt(0.2501), 0.04 / math.sqrt(0.2501)], rel=1e-4)
