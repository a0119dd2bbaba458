"""The latent transformer of UserControllableLT."""

from __future__ import annotations

import pytest
import torch

from autodrag.eval.baselines.userlt import UserLT, UserLTConfig, map_block
from autodrag.nets.stylegan2 import GeneratorConfig


def tiny(**changes: object) -> UserLT:
    torch.manual_seed(0)
    sizes = {"w_dim": 12, "edit_layers": 4, "channels": 5, "width": 16, "heads": 2, "encoder_layers": 2}
    net = UserLT(UserLTConfig(**sizes | {"decoder_layers": 2} | changes)).eval()  # type: ignore[arg-type]
    torch.nn.init.normal_(net.head.weight)  # as if trained
    return net


def inputs(points: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 12, generator=rng),
        torch.randn(2, points, 3, generator=rng),
        torch.randn(2, points, 5, generator=rng),
    )


def test_published_sizes() -> None:
    c = UserLTConfig()
    assert (c.encoder_layers, c.decoder_layers, c.width, c.heads, c.width // c.heads) == (6, 6, 512, 8, 64)
    assert (c.edit_layers, c.width * c.mlp_ratio) == (6, 512)
    net = UserLT(UserLTConfig(encoder_layers=1, decoder_layers=1))
    assert net.motion.weight.shape == (256, 3) and net.feature.weight.shape == (256, 512)
    assert net.latent.weight.shape == (512, 512) and net.position.shape == (1, 6, 512)


@pytest.mark.parametrize(("resolution", "block"), [(1024, 4), (64, 4), (32, 3), (8, 1)])
def test_feature_block_is_64_px_or_the_last_smaller_block(resolution: int, block: int) -> None:
    config = GeneratorConfig(resolution=resolution, channel_base=1024)
    assert map_block(config) == block and config.block_resolutions[block] == min(64, resolution)


def test_the_edit_is_proportional_to_alpha() -> None:
    net, (latent, motions, features) = tiny(), inputs()
    change = net(latent, motions, features) - latent
    assert change.shape == (2, 4, 12) and bool((change != 0).all())
    assert torch.allclose(net(latent, motions, features, 0.25) - latent, 0.25 * change, atol=1e-6)
    assert torch.equal(net(latent, motions, features, 0.0), latent)


def test_untrained_network_gives_no_edit() -> None:
    latent, motions, features = inputs()
    net = UserLT(tiny().config)
    assert torch.equal(net(latent, motions, features), latent)


def test_points_may_have_any_order_and_number() -> None:
    net, (latent, motions, features) = tiny(), inputs(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    expected = net(latent, motions, features)
    assert torch.allclose(net(latent, motions[:, order], features[:, order]), expected, atol=1e-5)
    assert not torch.allclose(net(latent, motions[:, :1], features[:, :1]), expected, atol=1e-3)


def test_units_of_motions() -> None:
    """The unit is flow_px at 256 px; 2 px at 64 px are 8 px at 256 px."""
    net = tiny(flow_px=4.0, expansion=0.02)
    motions = net.motions(torch.tensor([[[2.0, -1.0]]]), torch.tensor([[0.05]]), (64, 32))
    assert motions[0, 0].tolist() == pytest.approx([2.0, -1.0, 2.5])


def test_all_weights_get_gradients() -> None:
    net, (latent, motions, features) = tiny(), inputs()
    net(latent, motions, features).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 18}, "width 18: expected a multiple of twice the heads"),
        ({"channels": 0}, "sizes > 0"),
        ({"encoder_layers": 10**9}, "expected 1 to 64 of each"),
        ({"flow_px": 0.0}, "must be positive"),
    ],
)
def test_bad_sizes(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny(**changes)
