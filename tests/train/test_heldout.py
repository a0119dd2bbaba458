"""Held-out drags: reproducible, 1.00 without an edit, and independent of chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learned import tiny_nets

from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet
from autodrag.nets.stylegan2 import Generator
from autodrag.train import heldout
from autodrag.train.heldout import held_out_drags, measure_drags


@pytest.fixture(params=[False, True], ids=["tracker", "landmarks"])
def landmarks(request: pytest.FixtureRequest) -> LandmarkNet | None:
    if not request.param:
        return None
    torch.manual_seed(0)
    net = LandmarkNet(LandmarkConfig(resolution=32, width=8, depth=2, names=("nose", "chin", "ear")))
    torch.nn.init.normal_(net.heat.weight, std=0.5)  # sharper heat maps, so that points differ between images
    return net.eval()


def test_identity_editor_scores_one(tiny_generator: Generator, landmarks: LandmarkNet | None) -> None:
    idle = tiny_nets(tiny_generator, push=0.0)
    held_out = held_out_drags(tiny_generator, landmarks, idle.predictor.config, 8)
    shares, sheet = measure_drags(held_out, tiny_generator, idle)
    assert set(shares) == ({"1-points", "3-points"} if landmarks else {"1-points", "5-points", "11-points"})
    assert list(shares.values()) == pytest.approx([1.0] * len(shares), abs=2e-3)
    assert sheet.shape == (3, 3 * 32, 8 * 32) and 0 <= float(sheet.min()) <= float(sheet.max()) <= 1
    moved, _ = measure_drags(held_out, tiny_generator, tiny_nets(tiny_generator, push=2.0))
    assert all(abs(share - 1) > 1e-3 for share in moved.values())


def test_chunks_do_not_change_results(
    tiny_generator: Generator, landmarks: LandmarkNet | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tiny_nets(tiny_generator, push=2.0)
    whole = held_out_drags(tiny_generator, landmarks, net.predictor.config, 10)
    shares, sheet = measure_drags(whole, tiny_generator, net)
    monkeypatch.setattr(heldout, "CHUNK_PX", 3 * 32 * 32)
    chunked = held_out_drags(tiny_generator, landmarks, net.predictor.config, 10)
    torch.testing.assert_close(chunked.targets, whole.targets, atol=1e-3, rtol=1e-3)
    again, other = measure_drags(chunked, tiny_generator, net)
    assert again == pytest.approx(shares, abs=2e-3)
    torch.testing.assert_close(other, sheet, atol=1e-2, rtol=1e-2)


def test_only_mutual_matches_are_measured(tiny_generator: Generator) -> None:
    """The positions of padding do not matter."""
    net = tiny_nets(tiny_generator, push=2.0)
    held_out = held_out_drags(tiny_generator, None, net.predictor.config, 6)
    assert held_out.valid.shape == (6, 11) and held_out.valid.any(dim=1).all()
    fewer = held_out.valid.clone()
    fewer[:, 5:] = False
    padded = replace(held_out, valid=fewer, targets=torch.where(fewer[..., None], held_out.targets, -999.0))
    expected, _ = measure_drags(replace(held_out, valid=fewer), tiny_generator, net)
    assert measure_drags(padded, tiny_generator, net)[0] == pytest.approx(expected, abs=2e-3)


def test_landmark_net_for_another_image_size_is_not_used(tiny_generator: Generator) -> None:
    net = LandmarkNet(LandmarkConfig(resolution=16, width=8, depth=2, names=("nose",)))
    config = tiny_nets(tiny_generator, push=0.0).predictor.config
    held_out = held_out_drags(tiny_generator, net, config, 2)
    assert held_out.landmarks is None
    again = held_out_drags(tiny_generator, None, config, 2)
    assert torch.equal(held_out.latent, again.latent) and torch.equal(held_out.targets, again.targets)


def test_rounds_limit_the_closed_loop(tiny_generator: Generator) -> None:
    net = tiny_nets(tiny_generator, push=1.0)
    held_out = held_out_drags(tiny_generator, None, net.predictor.config, 4)
    once, again, twice = (measure_drags(held_out, tiny_generator, net, rounds)[0] for rounds in (1, 1, 2))
    assert once == again and once != twice
