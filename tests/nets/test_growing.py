"""Growing: the first images are the old images, upsampled; other settings must be equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from autodrag.nets.growing import grow_generator
from autodrag.nets.stylegan2 import Generator, GeneratorConfig, upsample

SMALL = GeneratorConfig(resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=16)


def old_generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(SMALL)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


@pytest.mark.parametrize(
    ("resolution", "channel_base", "channel_max"), [(32, 64, 16), (64, 64, 16), (16, 256, 32), (32, 128, 24)]
)
@torch.no_grad()
def test_first_image_is_the_upsampled_old_image(resolution: int, channel_base: int, channel_max: int) -> None:
    old = old_generator()
    config = replace(SMALL, resolution=resolution, channel_base=channel_base, channel_max=channel_max)
    grown = grow_generator(old, config)
    z = torch.randn(3, 8)
    expected = old(old.map(z, psi=0.6))
    while expected.shape[2] < resolution:
        expected = upsample(expected)
    torch.testing.assert_close(grown(grown.map(z, psi=0.6)), expected, atol=1e-4, rtol=1e-4)


def test_new_blocks_and_channels_get_gradients() -> None:
    grown = grow_generator(old_generator(), replace(SMALL, resolution=32, channel_base=128, channel_max=32))
    optimizer = torch.optim.Adam(grown.parameters(), lr=1e-2)
    weights = dict(grown.named_parameters())
    new, wide = weights["synthesis.b32.conv1.weight"], weights["synthesis.b16.conv1.weight"]
    before = new.detach().clone(), wide.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        grown(grown.map(torch.randn(2, 8)), noise="random").square().mean().backward()
        optimizer.step()
    assert not torch.equal(new, before[0])
    added = SMALL.channels(16)
    assert not torch.equal(wide[:added, added:], before[1][:added, added:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_dim": 16, "resolution": 32}, "pass --generator.z_dim 8"),
        ({"resolution": 8}, "smaller than the generator to start from"),
        ({"channel_base": 32}, "smaller than the generator to start from"),
    ],
)
def test_different_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow_generator(old_generator(), replace(SMALL, **changes))


def test_only_the_skip_architecture_can_grow() -> None:
    residual = replace(SMALL, architecture="resnet")
    with pytest.raises(ValueError, match="expected 'skip'"):
        grow_generator(Generator(residual), replace(residual, resolution=32))
