from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from autodrag.eval.metrics import (
    correlated_points,
    decay,
    drag_accuracy,
    frechet_distance,
    matched_points,
    mean_distance,
    squared_error,
    strangeness,
    structural_similarity,
)


def square_at(x: int, y: int) -> torch.Tensor:
    """A black 32 px image with a white square of 5 x 5 px centred at (x, y)."""
    image = torch.full((1, 3, 32, 32), -1.0)
    image[:, :, y - 2 : y + 3, x - 2 : x + 3] = 1.0
    return image


def test_mean_distance() -> None:
    points, targets = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert mean_distance(points, targets) == pytest.approx(3.0)


def test_squared_error_of_a_shifted_square() -> None:
    """After a shift by 2 px, 2 columns of 5 px differ by 2 on each side: 20 * 4 / 32^2."""
    assert squared_error(square_at(10, 10), square_at(12, 10)) == pytest.approx(20 * 4 / 32**2)
    assert squared_error(square_at(10, 10), square_at(10, 10)) == 0


def test_structural_similarity() -> None:
    """1 for equal images; (2ab + c1) / (a^2 + b^2 + c1) with c1 = 1e-4 for constant images a and b in [0, 1]."""
    assert structural_similarity(square_at(10, 10), square_at(10, 10)) == pytest.approx(1.0, abs=1e-4)
    flat = torch.ones(1, 3, 16, 16)
    a, b = 0.25, 0.75
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    assert structural_similarity(flat * (2 * a - 1), flat * (2 * b - 1)) == pytest.approx(expected, abs=1e-3)
    assert structural_similarity(square_at(10, 10), square_at(16, 10)) < 0.9


@pytest.mark.parametrize("gamma", [1, 5])
def test_drag_accuracy_of_a_shifted_square(gamma: int) -> None:
    before, after = square_at(10, 10), square_at(18, 14)
    handle, target = torch.tensor([[10.0, 10.0]]), torch.tensor([[18.0, 14.0]])
    assert drag_accuracy(before, after, handle, target, gamma) == pytest.approx(0.0, abs=1e-8)
    # Without a drag, the patch at the target is black, so all pixels of the square in the patch differ by 2.
    inside = min(2 * gamma + 1, 5) ** 2
    assert drag_accuracy(before, before, handle, torch.tensor([[24.0, 24.0]]), gamma) == pytest.approx(
        inside * 3 * 4 / (2 * gamma + 1) ** 2
    )


def test_drag_accuracy_is_a_mean_over_points() -> None:
    image = square_at(10, 10)
    handles, targets = torch.tensor([[10.0, 10.0], [24.0, 24.0]]), torch.tensor([[24.0, 24.0], [25.0, 24.0]])
    assert drag_accuracy(image, image, handles, targets, 1) == pytest.approx(3 * 4 / 2)


def test_strangeness_is_the_mahalanobis_distance() -> None:
    """Compared with the inverse covariance. Unusual offsets between correlated landmarks have the largest distance."""
    rng = torch.Generator().manual_seed(0)
    place = 9 * torch.randn(500, 1, 2, generator=rng, dtype=torch.float64)
    usual = place + torch.tensor([[0.0, 0.0], [20.0, 0.0], [10.0, 15.0]]) + torch.randn(500, 3, 2, generator=rng)
    points = usual[:9] + torch.randn(9, 3, 2, generator=rng)
    away = (points - usual.mean(dim=0)).flatten(1).numpy()
    truth = np.einsum("ni,ij,nj->n", away, np.linalg.inv(np.cov(usual.flatten(1).numpy().T)), away)
    assert strangeness(points, usual).numpy() == pytest.approx(truth)
    assert float(strangeness(usual, usual).mean()) == pytest.approx(6, rel=0.01)  # the number of coordinates
    whole, torn = usual[:1].clone(), usual[:1].clone()
    whole += 4
    torn[:, 2, 0] += 4
    assert float(strangeness(torn, usual)) > float(strangeness(whole, usual)) + 5


def test_strangeness_of_constant_coordinates() -> None:
    """A variance of zero is clamped to a thousandth of the mean variance."""
    usual = torch.tensor([[[4.0, 5.0]], [[6.0, 5.0]]])
    assert strangeness(torch.tensor([[[7.0, 5.1]]]), usual).tolist() == pytest.approx([2 + 0.01 / 1e-3], rel=1e-4)


def test_frechet_distance_of_known_gaussians() -> None:
    """N(0, diag(1, 4)) to N((3, 0), diag(4, 1)): 9 + (1 - 2)^2 + (2 - 1)^2 = 11."""
    torch.manual_seed(0)
    base = torch.randn(4000, 2, dtype=torch.float64)
    base = (base - base.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.t()))).t()
    a = base * torch.tensor([1.0, 2.0])
    b = base * torch.tensor([2.0, 1.0]) + torch.tensor([3.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(11.0, abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_matched_points_of_a_shifted_map() -> None:
    """Features rolled by (3, -2) cells of 2 px move the content of a handle by (6, -4) px."""
    maps = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    handles = torch.tensor([[8.5, 20.5], [12.5, 10.5]])  # centres of cells
    found = matched_points(maps, maps.roll((-2, 3), (2, 3)), handles, (32, 32))
    assert torch.allclose(found, handles + torch.tensor([6.0, -4.0]))


def test_decay_uses_the_latest_value() -> None:
    assert decay([0.1, 0.2, 0.4], [8.0, 5.0, 1.0], 10.0, [0.05, 0.1, 0.3, 9.0]) == [1.0, 0.8, 0.5, 0.1]
    assert decay([], [], 10.0, [1.0]) == [1.0]


def texture(side: int = 64) -> np.ndarray:
    """A smooth random image, HWC uint8."""
    noise = np.random.default_rng(0).uniform(0, 255, (side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)


def moved(image: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The image shifted by (dx, dy) px."""
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (5.0, -3.0), (3.3, 2.6), (-7.75, 4.4)])
def test_correlated_points_of_a_shifted_image(shift: tuple[float, float]) -> None:
    """A known shift is found within 0.1 px, for any target and after a change of contrast."""
    before = texture()
    after = (0.6 * moved(before, *shift) + 40).astype(np.uint8)
    handles = torch.tensor([[30.0, 31.0], [20.4, 40.7]])
    truth = handles + torch.tensor(shift)
    for targets in (truth, handles, (handles + truth) / 2):
        found, scores = correlated_points(before, after, handles, targets)
        assert float((found - truth).norm(dim=1).max()) < 0.1 and float(scores.min()) > 0.95


def test_correlated_points_at_the_border_and_in_a_constant_image() -> None:
    before = texture()
    found, _ = correlated_points(before, before, torch.tensor([[0.0, 63.0]]), torch.tensor([[4.0, 60.0]]))
    assert torch.allclose(found, torch.tensor([[0.0, 63.0]]), atol=0.1)
    found, scores = correlated_points(
        before, np.zeros_like(before), torch.tensor([[9.0, 9.0]]), torch.tensor([[9.0, 12.0]])
    )
    assert bool(torch.isfinite(found).all()) and -1 <= float(scores) <= 1


def test_correlated_points_of_a_moved_shape() -> None:
    """Only one shape in the image moves."""
    before, after = (
        ((image[0] + 1) * 127.5).permute(1, 2, 0).byte().numpy() for image in (square_at(10, 10), square_at(18, 14))
    )
    found, _ = correlated_points(before, after, torch.tensor([[10.0, 10.0]]), torch.tensor([[20.0, 12.0]]))
    assert torch.allclose(found, torch.tensor([[18.0, 14.0]]), atol=0.05)
