"""The generator, compared with published constants and the definitions of its operations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autodrag.nets.stylegan2 import (
    Features,
    Generator,
    GeneratorConfig,
    SynthesisLayer,
    blur,
    seed_z,
    upsample,
)

TINY = dict(resolution=32, z_dim=16, w_dim=16, mapping_layers=2, channel_base=256)


def generator(**overrides: object) -> Generator:
    torch.manual_seed(0)
    net = Generator(GeneratorConfig(**(TINY | overrides))).eval()  # type: ignore[arg-type]
    for parameter in net.parameters():  # initial noise strengths and biases are 0, which would hide errors
        if parameter.ndim <= 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return net


def test_parameter_count_equals_the_published_count() -> None:
    """NVIDIA's code prints 30,370,060 parameters for its 1024 px FFHQ generator (config F)."""
    with torch.device("meta"):
        net = Generator(GeneratorConfig(resolution=1024))
    assert sum(p.numel() for p in net.parameters()) == 30_370_060


def test_tensor_names_equal_those_of_nvidia() -> None:
    names = set(generator(resolution=8).state_dict())
    layer = ("weight", "bias", "noise_strength", "noise_const", "affine.weight", "affine.bias")
    rgb = ("weight", "bias", "affine.weight", "affine.bias")
    expected = {"mapping.w_avg", *(f"mapping.fc{i}.{k}" for i in (0, 1) for k in ("weight", "bias"))}
    expected |= {"synthesis.b4.const", *(f"synthesis.b4.conv1.{k}" for k in layer)}
    expected |= {f"synthesis.b8.conv{i}.{k}" for i in (0, 1) for k in layer}
    expected |= {f"synthesis.b{r}.torgb.{k}" for r in (4, 8) for k in rgb}
    assert names == expected


def test_seed_uses_numpy_random_state() -> None:
    assert torch.equal(seed_z(7, 5)[0], torch.tensor(np.random.RandomState(7).randn(5), dtype=torch.float32))


@pytest.mark.parametrize("up", [False, True])
def test_layer_equals_convolution_with_per_sample_weights(up: bool) -> None:
    """StyleGAN2, eq. 1 and 3: modulate the weights of each sample, demodulate, convolve, then noise, bias, lReLU."""
    torch.manual_seed(1)
    layer = SynthesisLayer(5, 7, 4, (16, 16), up=up).double()
    layer.noise_strength.data.fill_(0.5)
    layer.bias.data.normal_()
    x, w = torch.randn(3, 5, 8 if up else 16, 8 if up else 16).double(), torch.randn(3, 4).double()
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    outputs = []
    for k in range(3):
        style = w[k] @ (layer.affine.weight / math.sqrt(4)).t() + layer.affine.bias
        weight = layer.weight * style[None, :, None, None]
        weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            # Zero insertion, then convolution with the kernel, then with the filter.
            wide = torch.zeros(1, 5, 17, 17).double()
            wide[:, :, :15:2, :15:2] = x[k]
            y = F.conv2d(F.pad(wide, (2, 0, 2, 0)), weight.flip(2, 3))
            y = F.conv2d(F.pad(y, (1, 1, 1, 1)), (torch.outer(taps, taps) * 4).expand(7, 1, 4, 4), groups=7)
        else:
            y = F.conv2d(x[k : k + 1], weight, padding=1)
        y = y + layer.noise_const * 0.5 + layer.bias[:, None, None]
        outputs.append(F.leaky_relu(y, 0.2) * math.sqrt(2))
    assert torch.allclose(layer(x, w, "const", None), torch.cat(outputs), atol=1e-5)


def test_filters_preserve_constants() -> None:
    flat = torch.ones(1, 2, 8, 8)
    assert torch.allclose(upsample(flat)[:, :, 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    assert torch.allclose(blur(flat, padding=1, gain=1.0)[:, :, 2:-2, 2:-2], torch.ones(1, 2, 3, 3))


def test_upsampling_is_bilinear_away_from_the_border() -> None:
    """At factor 2, the [1, 3, 3, 1] filter has the weights 3/4 and 1/4, as bilinear resizing does."""
    x = torch.randn(1, 1, 6, 6)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(upsample(x)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("base_width", [4, 2])
def test_image_from_features_equals_the_image_of_the_latent(architecture: str, base_width: int) -> None:
    net = generator(architecture=architecture, base_width=base_width)
    latent = net.map(torch.randn(2, 16))
    whole = net(latent)
    assert whole.shape == (2, 3, 32, 8 * base_width)
    for block in range(4):
        features = net.features(latent, block=block)
        assert features.last.shape[2] == 4 * 2**block
        assert torch.equal(net.image(latent, features), whole)


def test_features_depend_only_on_their_layers() -> None:
    net = generator()
    latent = net.map(torch.randn(1, 16)).detach().requires_grad_()
    net.features(latent, block=2).last.square().sum().backward()
    assert latent.grad is not None
    used = latent.grad.abs().sum(dim=(0, 2)) > 0
    assert used.tolist() == [True] * 5 + [False] * 3  # b4: 0, b8: 1 2, b16: 3 4


def test_truncation() -> None:
    net = generator()
    net.mapping.w_avg.normal_()
    z = torch.randn(2, 16)
    full = net.map(z)
    assert torch.allclose(net.map(z, psi=0.0), net.mapping.w_avg.expand_as(full))
    half = net.map(z, psi=0.5, cutoff=3)
    assert torch.allclose(half[:, :3], (net.mapping.w_avg + full[:, :3]) / 2, atol=1e-6)
    assert torch.equal(half[:, 3:], full[:, 3:])


def test_labels_change_the_image_and_are_required() -> None:
    net = generator(c_dim=3)
    z, labels = torch.randn(2, 16), torch.eye(3)
    assert not torch.allclose(net.map(z, labels[:2]), net.map(z, labels[1:]))
    with pytest.raises(ValueError, match=r"labels none: this network is conditional, expected \(2, 3\)"):
        net.map(z)


def test_noise_modes() -> None:
    net = generator()
    latent = net.map(torch.randn(1, 16))
    assert torch.equal(net(latent), net(latent))
    assert not torch.equal(net(latent, noise="random"), net(latent, noise="random"))
    assert not torch.equal(net(latent), net(latent, noise="none"))


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_freezing_and_memory_format_do_not_change_the_image(architecture: str) -> None:
    net = generator(architecture=architecture)
    latent = net.map(torch.randn(2, 16))
    before = net(latent)
    after = net.to(memory_format=torch.channels_last).freeze()(latent)  # type: ignore[call-overload]
    assert torch.allclose(before, after, atol=1e-5)
    assert not any(p.requires_grad for p in net.parameters())


def test_freezing_again_uses_the_new_weights() -> None:
    net, other = generator().freeze(), generator()
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    latent = other.map(torch.randn(2, 16))
    net.load_state_dict(other.state_dict())
    assert torch.allclose(net.freeze()(latent), other(latent), atol=1e-5)


def test_bf16_is_close() -> None:
    net = generator().freeze()
    latent = net.map(torch.randn(1, 16))
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(latent)
    assert rough.dtype == torch.float32
    assert (rough - net(latent)).abs().mean() < 0.05 * net(latent).abs().mean()


def test_clamp_bounds_activations() -> None:
    net = generator(conv_clamp=0.1)
    latent = net.map(torch.randn(1, 16))
    assert float(net.features(latent, block=3).last.detach().abs().max()) <= 0.1 + 1e-6


def test_wrong_shapes_and_configs() -> None:
    with pytest.raises(ValueError, match=r"latent \(1, 3, 16\): expected \(B, 8, 16\)"):
        generator()(torch.zeros(1, 3, 16))
    for wrong in (dict(resolution=48), dict(base_width=3), dict(channel_base=16)):
        with pytest.raises(ValueError, match=r"expected|at least the resolution"):
            GeneratorConfig(**(TINY | wrong))  # type: ignore[arg-type]


def test_features_last() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert Features((a, b)).last is b
