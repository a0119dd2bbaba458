"""UserControllableLT as an editor: inputs of the network, and loading of files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from autodrag.errors import AutodragError, CheckpointError
from autodrag.eval.baselines.userlt import UserLT, UserLTConfig, load_userlt, outside, userlt
from autodrag.nets.stylegan2 import Generator, seed_z
from autodrag.points import sample
from autodrag.release import save_tensors

CONFIG = UserLTConfig(
    w_dim=32, edit_layers=6, feature_block=3, channels=8, width=16, heads=2, encoder_layers=1, decoder_layers=1,
    flow_px=4.0, expansion=0.02,
)  # fmt: skip
HANDLES, TARGETS = torch.tensor([[12.0, 14.0], [20.0, 8.0]]), torch.tensor([[15.0, 18.0], [20.0, 11.0]])


@pytest.fixture(scope="module")
def net() -> UserLT:
    torch.manual_seed(0)
    net = UserLT(CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(net.head.weight)  # as if trained
    return net


@pytest.fixture(scope="module")
def latent(tiny_generator: Generator) -> torch.Tensor:
    return tiny_generator.map(seed_z(3, 32), psi=0.5)


def direct(
    net: UserLT, generator: Generator, latent: torch.Tensor, points: torch.Tensor, motions: torch.Tensor, alpha: float
) -> torch.Tensor:
    maps = generator.features(latent, block=3).last
    there = sample(maps, points[None], (32, 32)).transpose(1, 2)
    tokens = torch.cat([motions, torch.zeros(len(motions), 1)], dim=1)[None]
    return torch.cat([net(latent[:, :6], tokens, there, alpha), latent[:, 6:]], dim=1)


def test_motion_and_alpha_of_one_point(net: UserLT, tiny_generator: Generator, latent: torch.Tensor) -> None:
    """(3, 4) px at 32 px have the length 40 px at 256 px: direction (0.6, 0.8), alpha 4."""
    result = userlt(net, tiny_generator, latent, HANDLES[:1], TARGETS[:1])
    expected = direct(net, tiny_generator, latent, HANDLES[:1], torch.tensor([[0.6, 0.8]]), 4.0)
    assert torch.allclose(result, expected, atol=1e-5)
    assert torch.equal(result[:, 6:], latent[:, 6:]) and not torch.allclose(result, latent)


def test_motions_and_alpha_of_several_points(net: UserLT, tiny_generator: Generator, latent: torch.Tensor) -> None:
    """Lengths 5 and 3 px at 32 px have the mean 4: alpha 3.2."""
    result = userlt(net, tiny_generator, latent, HANDLES, TARGETS)
    motions = torch.tensor([[0.75, 1.0], [0.0, 0.75]])
    assert torch.allclose(result, direct(net, tiny_generator, latent, HANDLES, motions, 3.2), atol=1e-5)


def test_anchors_and_masks_are_points_without_motion(
    net: UserLT, tiny_generator: Generator, latent: torch.Tensor
) -> None:
    anchors = torch.tensor([[5.0, 6.0]])
    result = userlt(net, tiny_generator, latent, HANDLES[:1], TARGETS[:1], anchors)
    points, motions = torch.cat([HANDLES[:1], anchors]), torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    assert torch.allclose(result, direct(net, tiny_generator, latent, points, motions, 4.0), atol=1e-5)
    mask = torch.ones(32, 32, dtype=torch.bool)
    plain = userlt(net, tiny_generator, latent, HANDLES[:1], TARGETS[:1])
    assert torch.equal(userlt(net, tiny_generator, latent, HANDLES[:1], TARGETS[:1], mask=mask), plain)
    mask[:, :16] = False
    assert not torch.equal(userlt(net, tiny_generator, latent, HANDLES[:1], TARGETS[:1], mask=mask), plain)
    assert outside(mask).shape == (128, 2) and float(outside(mask)[:, 0].max()) < 16  # half of 16 x 16


def test_zero_motion_gives_no_edit(net: UserLT, tiny_generator: Generator, latent: torch.Tensor) -> None:
    assert torch.equal(userlt(net, tiny_generator, latent, HANDLES, HANDLES), latent)


def save(folder: Path, net: UserLT, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    values = asdict(net.config) | changes
    save_tensors(
        folder / "userlt.safetensors", net.state_dict(), kind="userlt", config=values, extra={"generator": "abc"}
    )
    return folder


def test_loading(tmp_path: Path, net: UserLT) -> None:
    folder = save(tmp_path / "good", net)
    again = load_userlt(folder, "abc")
    assert again.config == net.config
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(CheckpointError, match=r"was trained on generator 'abc', but this generator is 'xyz'"):
        load_userlt(folder, "xyz")
    with pytest.raises(AutodragError, match=r"has no userlt.safetensors; create it with `autodrag train userlt`"):
        load_userlt(tmp_path, "abc")
    with pytest.raises(CheckpointError, match=r"tensor .* has shape .*, but its config requires .*"):
        load_userlt(save(tmp_path / "wide", net, width=32), "abc")
    with pytest.raises(CheckpointError, match=r"has encoder_layers = 1000000000, but the file holds only"):
        load_userlt(save(tmp_path / "deep", net, encoder_layers=10**9), "abc")
