"""The moments loss: comparison with its formula, and correction of a distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autodrag.eval.metrics import frechet_distance
from autodrag.train.moments import DIRECTIONS, Moments


def squared_gaps(before: Tensor, after: Tensor) -> Tensor:
    """4 |E[c' - c]|^2 + |E[c' c'^T - c c^T]|^2 of one group, averaged over layers, computed directly."""
    total = torch.zeros(())
    for layer in range(before.shape[1]):
        c, d = before[:, layer], after[:, layer]
        total = total + 4 * (d.mean(dim=0) - c.mean(dim=0)).square().sum()
        total = total + (d.t() @ d / len(d) - c.t() @ c / len(c)).square().sum()
    return total / before.shape[1]


def test_gradient_equals_that_of_the_squared_gaps() -> None:
    torch.manual_seed(0)
    before, after = torch.randn(6, 3, 4), torch.randn(6, 3, 4, requires_grad=True)
    moments, alone = Moments(1, 3, 4), torch.zeros(6, dtype=torch.long)
    for _ in range(1800):  # until the running difference equals that of the batch
        loss = moments(before, after, alone)
    expected = squared_gaps(before, after)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    (gradient,), (truth,) = torch.autograd.grad(loss, after), torch.autograd.grad(expected, after)
    torch.testing.assert_close(gradient, truth, rtol=1e-3, atol=1e-5)


def test_groups_are_separate_and_samples_have_equal_weights() -> None:
    torch.manual_seed(0)
    before, after = torch.randn(8, 2, 3), torch.randn(8, 2, 3)
    group = torch.tensor([0, 1, 1, 1, 1, 1, 0, 1])
    both = Moments(2, 2, 3)
    for _ in range(1800):
        loss = both(before, after, group)
    parts = [squared_gaps(before[group == g], after[group == g]) for g in (0, 1)]
    assert float(loss) == pytest.approx(float(0.25 * parts[0] + 0.75 * parts[1]), rel=1e-4)


def test_loss_is_zero_for_unchanged_moments() -> None:
    before = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
    after = before.clone().requires_grad_()
    loss = Moments(1, 2, 3)(before, after, torch.zeros(8, dtype=torch.long))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, after)[0].any()


def test_loss_is_four_times_the_frechet_distance_near_the_normal_distribution() -> None:
    rng = torch.Generator().manual_seed(0)
    before = torch.randn(20_000, 5, generator=rng)
    after = before @ (torch.eye(5) + 0.02 * torch.randn(5, 5, generator=rng)) + 0.02 * torch.randn(5, generator=rng)
    moments, alone = Moments(1, 1, 5), torch.zeros(len(before), dtype=torch.long)
    for _ in range(600):
        loss = moments(before[:, None], after[:, None], alone)
    assert float(loss) == pytest.approx(4 * frechet_distance(after, before), rel=0.1)


def test_only_leading_directions_are_used() -> None:
    before = torch.randn(4, 2, DIRECTIONS + 3, generator=torch.Generator().manual_seed(0))
    after = before.clone().requires_grad_()
    moments = Moments(1, 2, DIRECTIONS + 3)
    moments(before, after + 1, torch.zeros(4, dtype=torch.long)).backward()
    assert moments.square.shape == (1, 2, DIRECTIONS, DIRECTIONS) and after.grad is not None
    assert after.grad[..., :DIRECTIONS].any() and not after.grad[..., DIRECTIONS:].any()


def test_small_batches_correct_a_distribution() -> None:
    rng = torch.Generator().manual_seed(0)
    turn, shift = torch.tensor([[0.5, 0.0], [0.6, 1.2]], requires_grad=True), torch.ones(2, requires_grad=True)
    moments, optimizer = Moments(1, 1, 2), torch.optim.SGD([turn, shift], lr=0.02)
    for _ in range(1000):
        before = torch.randn(4, 1, 2, generator=rng)
        loss = moments(before, before @ turn + shift, torch.zeros(4, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(turn.t() @ turn, torch.eye(2), rtol=0, atol=0.15)
    torch.testing.assert_close(shift, torch.zeros(2), rtol=0, atol=0.1)
