from __future__ import annotations

import torch

from autodrag.nets.discriminator import Discriminator, DiscriminatorConfig, EqualisedConv, minibatch_deviation


def test_parameter_count_equals_the_published_count() -> None:
    """NVIDIA's code prints 29,012,513 parameters for its 1024 px FFHQ discriminator (config F)."""
    with torch.device("meta"):
        net = Discriminator(DiscriminatorConfig(resolution=1024))
    assert sum(p.numel() for p in net.parameters()) == 29_012_513


def test_minibatch_deviation_of_known_values() -> None:
    x = torch.zeros(4, 1, 2, 2)
    x[2:] = 2.0  # groups {0, 2} and {1, 3} contain 0 and 2: standard deviation 1
    y = minibatch_deviation(x, group_size=2)
    assert y.shape == (4, 2, 2, 2)
    assert torch.allclose(y[:, 1], torch.ones(4, 2, 2))
    assert torch.allclose(
        minibatch_deviation(torch.ones(3, 1, 2, 2), group_size=4)[:, 1], torch.zeros(3, 2, 2), atol=1e-3
    )


def test_equalised_weights_keep_the_variance() -> None:
    torch.manual_seed(0)
    conv = EqualisedConv(64, 64, 3, bias=False)
    y = conv(torch.randn(1, 64, 32, 32), activate=False)
    assert 0.8 < float(y.detach()[..., 1:-1, 1:-1].var()) < 1.2


def test_downsampling() -> None:
    torch.manual_seed(0)
    for kernel in (1, 3):
        conv = EqualisedConv(2, 3, kernel, bias=False, down=True)
        assert conv(torch.randn(1, 2, 16, 16), activate=False).shape == (1, 3, 8, 8)


def test_logits_and_gradients_for_square_and_tall_images() -> None:
    for base_width in (4, 2):
        net = Discriminator(DiscriminatorConfig(resolution=16, base_width=base_width, channel_base=64, channel_max=8))
        images = torch.randn(4, 3, 16, 4 * base_width, requires_grad=True)
        logits = net(images)
        assert logits.shape == (4, 1)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        gradient.square().sum().backward()
        used = [p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in net.named_parameters() if "weight" in n]
        assert all(used)
