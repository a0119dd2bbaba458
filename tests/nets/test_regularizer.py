"""The regularizer: which layers it changes and reads, and that it can learn its task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autodrag.nets.regularizer import Regularizer, RegularizerConfig

TINY = RegularizerConfig(layers=8, w_dim=16, edit_layers=3, width=24, heads=3, encoder_layers=1, decoder_layers=2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net() -> Regularizer:
    """A network whose last layer is not zero."""
    torch.manual_seed(0)
    net = Regularizer(TINY)
    nn.init.normal_(net.head.weight, std=0.1)
    return net


def test_untrained_network_is_the_identity() -> None:
    latent = random(2, 8, 16)
    assert torch.equal(Regularizer(TINY)(latent), latent)


def test_paper_variant_replaces_the_first_layers() -> None:
    """Eq. 5: with a zero last layer, the output is the mean code for any input."""
    net, latent = Regularizer(replace(TINY, variant="paper")), random(2, 8, 16)
    assert not torch.equal(net(latent)[:, :3], latent[:, :3])
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    torch.testing.assert_close(net(latent)[:, :3], torch.zeros(2, 3, 16))
    assert torch.equal(net(latent)[:, 3:], latent[:, 3:])


def test_only_the_first_layers_change(net: Regularizer) -> None:
    latent = random(2, 8, 16)
    restored = net(latent)
    assert torch.equal(restored[:, 3:], latent[:, 3:])
    assert ((restored - latent)[:, :3].abs().amax(dim=2) > 1e-3).all()


def test_output_depends_on_clean_and_other_edited_layers(net: Regularizer) -> None:
    latent = random(1, 8, 16).requires_grad_()
    (gradient,) = torch.autograd.grad((net(latent) - latent)[0, 0].square().sum(), latent)
    assert (gradient[0].abs().amax(dim=1) > 0).all()


def test_memory_is_valid_for_all_edits_of_an_image(net: Regularizer) -> None:
    """Edits change only the first layers, so a closed loop reads the clean layers once."""
    latent = random(2, 8, 16)
    edited = torch.cat([random(2, 3, 16, seed=1), latent[:, 3:]], dim=1)
    torch.testing.assert_close(net(edited, net.read(latent)), net(edited))
    other = torch.cat([edited[:, :3], random(2, 5, 16, seed=2)], dim=1)
    assert not torch.allclose(net(edited, net.read(other))[:, :3], net(edited)[:, :3], atol=1e-5)


def test_layers_have_different_position_embeddings(net: Regularizer) -> None:
    """With the same vector in all layers, corrections differ only because of the positions."""
    same = random(1, 1, 16).expand(1, 8, 16)
    correction = (net(same) - same)[0, :3]
    assert not torch.allclose(correction[0], correction[1], atol=1e-5)
    shuffled = random(1, 8, 16)
    other = torch.cat([shuffled[:, :3], shuffled[:, 3:].flip(1)], dim=1)
    assert not torch.allclose(net(shuffled)[:, :3], net(other)[:, :3], atol=1e-6)


def test_batch_samples_are_independent(net: Regularizer) -> None:
    latent = random(3, 8, 16)
    torch.testing.assert_close(net(latent)[1:2], net(latent[1:2]), atol=1e-5, rtol=1e-5)


def test_network_learns_to_restore_zeroed_layers() -> None:
    """The layers of a few codes are set to zero; their values can be inferred from the clean layers."""
    torch.manual_seed(0)
    net = Regularizer(TINY)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    clean = random(8, 1, 16).expand(-1, 8, -1)
    noised = clean.clone()
    noised[:, 1] = 0
    errors = []
    for _ in range(60):
        loss = (net(noised) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.6 * errors[0], errors[::10]


def test_default_depths_are_those_of_the_paper() -> None:
    config = RegularizerConfig()
    assert (config.encoder_layers, config.decoder_layers, config.edit_layers, config.w_dim) == (6, 6, 6, 512)
    with torch.device("meta"):
        net = Regularizer(config)
    assert net(torch.zeros(1, 16, 512, device="meta")).shape == (1, 16, 512)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("edit_layers", 8, "edit_layers 8 of 8: some layers must stay clean"),
        ("edit_layers", 0, "edit_layers 0 of 8"),
        ("heads", 5, "width 24 must be a multiple of heads 5"),
        ("heads", 0, "multiple of heads 0"),
        ("decoder_layers", 0, "decoder_layers >= 1"),
        ("encoder_layers", -1, "encoder_layers >= 0"),
        ("mlp_ratio", 0.0, "mlp_ratio > 0"),
    ],
)
def test_invalid_sizes(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **{field: value})  # type: ignore[arg-type]
