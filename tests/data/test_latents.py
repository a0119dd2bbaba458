"""Latent codes for training: truncation, mixed layers, noise, and Eq. 7 in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autodrag.data.latents import map_codes, mixed_codes, motion_sequence, noised_codes, uniform
from autodrag.nets.latent_space import LatentBasis, LatentFrame
from autodrag.nets.stylegan2 import Generator


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def frame(tiny_generator: Generator) -> LatentFrame:
    frame = LatentFrame(32)
    frame.take(LatentBasis.of(tiny_generator, samples=512))
    return frame


def test_codes_are_mapped_and_truncated(tiny_generator: Generator) -> None:
    codes = map_codes(tiny_generator, 3, torch.tensor([0.0, 0.5, 1.0]), rng(4))
    z = torch.randn(3, 32, generator=rng(4))
    for k, psi in enumerate((0.0, 0.5, 1.0)):
        expected = tiny_generator.map(z[k : k + 1], psi=psi)[0, 0]
        torch.testing.assert_close(codes[k], expected, atol=1e-5, rtol=1e-5)


def test_codes_of_classes(make_generator: Callable[..., Generator]) -> None:
    codes = map_codes(make_generator(c_dim=3), 16, torch.ones(16), rng())
    assert codes.shape == (16, 32) and torch.isfinite(codes).all()


def test_layers_of_mixed_codes_differ(tiny_generator: Generator) -> None:
    """With equal layers, as from the mapping network, a regularizer could copy the first layers from the others."""
    codes = mixed_codes(tiny_generator, 64, psi=(1.0, 1.0), rng=rng())
    assert codes.shape == (64, 8, 32)
    neighbours = (codes[:, 1:] - codes[:, :-1]).norm(dim=2)
    assert (neighbours > 1e-3).all()
    apart = (codes[:, 0] - codes[:, -1]).norm(dim=1)
    alike = map_codes(tiny_generator, 128, torch.ones(128), rng(1)).split(64)
    assert apart.mean() > 0.5 * (alike[0] - alike[1]).norm(dim=1).mean()  # most codes mix two styles


def test_mixed_codes_depend_only_on_the_seed(tiny_generator: Generator) -> None:
    first, again = (mixed_codes(tiny_generator, 4, psi=(0.5, 1.0), rng=rng(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, mixed_codes(tiny_generator, 4, psi=(0.5, 1.0), rng=rng(8)))


def test_a_quarter_of_the_vectors_is_zeroed(frame: LatentFrame) -> None:
    latent = torch.randn(4000, 8, 32, generator=rng())
    noised = noised_codes(latent, frame, edit_layers=6, zeroed_share=0.25, sigma=0.0, rng=rng(1))
    torch.testing.assert_close(noised[:, 6:], latent[:, 6:])
    zero = ((noised[:, :6] - frame.mean).abs().amax(dim=2) < 1e-4).float()
    assert float(zero.mean()) == pytest.approx(0.25, abs=0.01)
    assert zero.mean(dim=0).sub(0.25).abs().max() < 0.03  # in every layer
    rest = zero == 0
    torch.testing.assert_close(noised[:, :6][rest], latent[:, :6][rest], atol=1e-3, rtol=1e-3)
    pairs = (zero[:, 0] * zero[:, 1]).mean()
    assert float(pairs) == pytest.approx(1 / 16, abs=0.02)  # independently


def test_the_noise_is_gaussian_in_standard_coordinates(frame: LatentFrame) -> None:
    latent = torch.randn(2000, 8, 32, generator=rng())
    noised = noised_codes(latent, frame, edit_layers=6, zeroed_share=0.0, sigma=0.5, rng=rng(1))
    noise = (frame.coordinates(noised) - frame.coordinates(latent))[:, :6]
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.005)
    assert noise.std(dim=(0, 1)).sub(0.5 / 3**0.5).abs().max() < 0.03  # sigma is uniform in 0 ... 0.5
    sigma = noise.flatten(1).std(dim=1)
    assert sigma.max() < 0.6 and sigma.min() < 0.05
    assert float(sigma.median()) == pytest.approx(0.25, abs=0.03)
    scaled = noise / sigma[:, None, None]
    assert float(scaled.pow(4).mean()) == pytest.approx(3.0, abs=0.1)  # the kurtosis of a Gaussian


@settings(max_examples=30)
@given(st.floats(-0.5, 0.9), st.integers(1, 8))
def test_motion_in_closed_form(rate: float, steps: int) -> None:
    """w_n - w* = (1 - rate)^n (w_0 - w*)."""
    start, end = torch.randn(1, 4, 3, generator=rng(1)), torch.randn(1, 4, 3, generator=rng(2))
    codes = motion_sequence(start, end, torch.tensor([rate]), steps=steps, edit_layers=2)
    assert codes.shape == (1, steps + 1, 4, 3)
    for n in range(steps + 1):
        share = 1 - (1 - rate) ** n
        expected = start[:, :2] + share * (end - start)[:, :2]
        torch.testing.assert_close(codes[:, n, :2], expected, atol=1e-3, rtol=1e-3)
        assert torch.equal(codes[:, n, 2:], start[:, 2:])


def test_printed_sign_of_eq_7_moves_away() -> None:
    """The printed equation: w_i = w_(i-1) - 0.1 (w* - w_(i-1))."""
    start, end = torch.randn(2, 4, 3, generator=rng(1)), torch.randn(2, 4, 3, generator=rng(2))
    codes = motion_sequence(start, end, torch.tensor([-0.1, -0.1]), steps=5, edit_layers=4)
    w = start
    for n in range(1, 6):
        w = w - 0.1 * (end - w)
        torch.testing.assert_close(codes[:, n], w)
    distances = (codes - end[:, None]).norm(dim=(2, 3))
    assert (distances.diff(dim=1) > 0).all()


@given(st.floats(-2, 2), st.floats(0, 3))
def test_uniform(low: float, width: float) -> None:
    values = uniform((100,), low, low + width, rng())
    assert low - 1e-6 <= float(values.min()) <= float(values.max()) <= low + width + 1e-6
