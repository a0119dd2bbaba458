from __future__ import annotations

import pytest
import torch

from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet

NAMES = ("a", "b", "c")


def tiny() -> LandmarkNet:
    torch.manual_seed(0)
    return LandmarkNet(LandmarkConfig(resolution=32, width=8, depth=3, margin=2, names=NAMES))


def test_shapes_and_ranges() -> None:
    found = tiny()(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert found.points.shape == (2, 3, 2)
    assert torch.allclose(found.heat.sum(dim=(2, 3)), torch.ones(2, 3))
    assert bool(((found.confidence >= 0) & (found.confidence <= 1 + 1e-6)).all())
    assert found.features.shape == (2, 32)


@pytest.mark.parametrize("cell", [(0, 0), (7, 3), (-2, 5), (17, 17)])
def test_position_of_a_single_hot_cell_is_its_centre(cell: tuple[int, int]) -> None:
    """Cell (i, j) of the half-size map covers pixels 2i and 2i + 1, so its centre lies at 2i + 0.5."""
    net = tiny()
    size = 16 + 2 * 2
    index = (cell[1] + 2) * size + cell[0] + 2

    class Hot(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heat = torch.full((len(x), 3, size * size), -1e4)
            heat[:, :, index] = 0
            return heat.unflatten(2, (size, size))

    net.heat = Hot()  # type: ignore[assignment]
    found = net(torch.zeros(1, 3, 32, 32))
    expected = torch.tensor([2.0 * cell[0] + 0.5, 2.0 * cell[1] + 0.5])
    assert torch.allclose(found.points, expected.expand(1, 3, 2), atol=1e-3)
    assert torch.allclose(found.confidence, torch.ones(1, 3))


def test_network_learns_the_position_of_a_dot() -> None:
    torch.manual_seed(0)
    net = LandmarkNet(LandmarkConfig(resolution=16, width=8, depth=2, margin=2, names=("dot",)))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    grid = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)).flip(1).reshape(16, 16, 2)
    for _ in range(60):
        truth = torch.rand(16, 1, 2) * 12 + 2
        dots = (-(grid - truth[:, :, None]).square().sum(dim=3) / 4).exp()[:, None].expand(-1, 3, -1, -1)
        error = (net(dots).points - truth).norm(dim=2).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert float(error.detach()) < 1.0


def test_invalid_sizes() -> None:
    with pytest.raises(ValueError, match=r"images of \(16, 16\) px: this landmark net expects \(32, 32\)"):
        tiny()(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="names is empty"):
        LandmarkConfig()
    with pytest.raises(ValueError, match="cannot be halved"):
        LandmarkConfig(resolution=40, depth=4, names=NAMES)
