"""Standard coordinates of latents: comparison with numpy's covariance, and round trips."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from autodrag.nets.latent_space import LatentBasis, LatentFrame
from autodrag.nets.stylegan2 import Generator


def codes(generator: Generator, count: int, seed: int) -> torch.Tensor:
    return generator.mapping(torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def frame(tiny_generator: Generator) -> LatentFrame:
    frame = LatentFrame(32)
    frame.take(LatentBasis.of(tiny_generator))
    return frame


def test_basis_equals_the_eigenvectors_of_the_covariance(tiny_generator: Generator) -> None:
    basis = LatentBasis.of(tiny_generator, samples=500, seed=3)
    w = codes(tiny_generator, 500, 3).double().numpy()
    np.testing.assert_allclose(basis.mean.numpy(), w.mean(axis=0), atol=1e-5)
    variance = np.linalg.eigvalsh(np.cov(w.T))[::-1]  # largest first
    lengths = basis.directions.square().sum(dim=0).numpy()
    np.testing.assert_allclose(lengths, np.maximum(variance, 1e-4 * variance[0]), rtol=1e-3)
    gram = (basis.directions.t() @ basis.directions).numpy()
    np.testing.assert_allclose(gram, np.diag(lengths), atol=1e-4 * lengths[0])


def test_basis_depends_only_on_the_seed(tiny_generator: Generator) -> None:
    first, second = LatentBasis.of(tiny_generator, samples=64), LatentBasis.of(tiny_generator, samples=64)
    assert torch.equal(first.mean, second.mean) and torch.equal(first.directions, second.directions)
    assert not torch.equal(first.mean, LatentBasis.of(tiny_generator, samples=64, seed=1).mean)


def test_basis_of_a_conditional_generator(make_generator: Callable[..., Generator]) -> None:
    basis = LatentBasis.of(make_generator(c_dim=3), samples=64)
    assert torch.isfinite(basis.directions).all() and basis.directions.shape == (32, 32)


def test_mapped_codes_have_zero_mean_and_unit_variance(tiny_generator: Generator, frame: LatentFrame) -> None:
    coordinates = frame.coordinates(codes(tiny_generator, 8192, 9))  # codes that were not used for the basis
    assert coordinates.mean(dim=0).abs().max() < 0.1
    # Directions with a clamped deviation vary less.
    floor = frame.directions.square().sum(dim=0) < 1.01e-4 * frame.directions.square().sum(dim=0).max()
    assert (coordinates.std(dim=0)[~floor] - 1).abs().max() < 0.1
    assert int((~floor).sum()) > 8


def test_offset_and_coordinates_are_inverse(frame: LatentFrame) -> None:
    w = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(frame.mean + frame.offset(frame.coordinates(w)), w, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(frame.coordinates(frame.mean + frame.offset(w)), w, atol=1e-4, rtol=1e-4)


def test_basis_and_frame_convert_displacements_equally(tiny_generator: Generator, frame: LatentFrame) -> None:
    basis = LatentBasis.of(tiny_generator)
    a, b = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(basis.offset(basis.coordinates(a)), a, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(basis.coordinates(a - b), frame.coordinates(a) - frame.coordinates(b))


def test_new_frame_is_the_identity_and_a_set_frame_is_stored(tiny_generator: Generator, frame: LatentFrame) -> None:
    w = torch.randn(4, 32)
    torch.testing.assert_close(LatentFrame(32).coordinates(w), w)
    other = LatentFrame(32)
    other.load_state_dict(frame.state_dict())
    assert torch.equal(other.coordinates(w), frame.coordinates(w))
    torch.testing.assert_close(frame.offset(w), LatentBasis.of(tiny_generator).offset(w))
