"""Synthesised motion: the sequences, the choice of drags and anchors, and batches that are split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autodrag.data.motion import SINGLE_SHARE, Motion, MotionConfig, draw_motion, step_rate
from autodrag.nets.predictor import PredictorConfig
from autodrag.nets.stylegan2 import Generator

NET = PredictorConfig(
    layers=8,
    w_dim=32,
    image_height=32,
    image_width=32,
    feature_block=2,
    track_block=3,
    feature_channels=16,
    feature_height=16,
    steps=3,
    width=8,
    heads=1,
    token_rows=8,
)
CONFIG = MotionConfig(n_candidates=16, max_points=5, anchor_share=0.5, min_drag_px=40, min_drag_px_many=20)


def draw(generator: Generator, count: int = 24, seed: int = 0, rows: slice = slice(None), **changes: object) -> Motion:
    rng = torch.Generator().manual_seed(seed)
    return draw_motion(generator, NET, replace(CONFIG, **changes), count, rng, rows)  # type: ignore[arg-type]


def anchors_of(sample: Motion) -> Tensor:
    return sample.drags.valid & ~sample.moving


@given(st.floats(0.01, 1.0), st.integers(1, 9))
def test_n_steps_cover_the_travel_share(share: float, steps: int) -> None:
    rate = step_rate(torch.tensor([share], dtype=torch.float64), steps)
    assert float((1 - rate) ** steps) == pytest.approx(1 - share, abs=1e-6)


def test_sequences_are_straight_and_keep_other_layers(tiny_generator: Generator) -> None:
    codes = draw(tiny_generator).codes
    assert codes.shape == (24, 4, 8, 32)
    assert torch.equal(codes[:, :, 6:], codes[:, :1, 6:].expand(-1, 4, -1, -1))
    steps = codes.diff(dim=1)[:, :, :6].flatten(2)
    assert torch.cosine_similarity(steps[:, :-1], steps[:, 1:], dim=2).min() > 0.999
    assert (steps.norm(dim=2).diff(dim=1) < 0).all()  # steps toward w* become shorter


def test_maps_belong_to_the_first_code(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator, count=3)
    expected = tiny_generator.features(sample.codes[:, 0], block=2).last
    torch.testing.assert_close(sample.maps, expected, atol=1e-5, rtol=1e-5)


def test_drags_moved_far_enough_or_farthest(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator)
    moved = (sample.drags.targets - sample.drags.handles).norm(dim=2)
    number = sample.moving.sum(dim=1)
    assert number.max() <= 5  # samples without reliable matches have no drags
    several = number > 1  # a single drag may be the farthest match of a sample with little motion
    assert several.any()
    assert moved[sample.moving & several[:, None]].min() >= 10 * 32 / 512
    limit = torch.tensor([31.5, 31.5])
    for points in (sample.drags.handles, sample.drags.targets):
        inside = points[sample.drags.valid]
        assert (inside >= -0.5).all() and (inside <= limit).all()


def test_some_samples_have_a_single_drag(tiny_generator: Generator) -> None:
    number = draw(tiny_generator, count=200, min_drag_px=1.0, min_drag_px_many=1.0).moving.sum(dim=1)
    assert abs(float((number[number > 0] == 1).float().mean()) - SINGLE_SHARE) < 0.25
    assert number.max() == 5


def test_anchors_and_padding(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator, count=64)
    held = anchors_of(sample)
    assert held.any() and held.sum(dim=1).max() <= 3
    assert torch.equal(sample.drags.handles[held], sample.drags.targets[held])
    assert not (sample.moving & ~sample.drags.valid).any()
    assert sample.drags.valid.any(dim=0).all()  # no column consists only of padding
    # Drags come first, then anchors, then padding.
    order = sample.moving.int() * 2 + held.int()
    assert (order.diff(dim=1) <= 0).all()


def test_processes_share_a_batch(tiny_generator: Generator) -> None:
    """Two separately drawn halves equal the halves of the whole batch."""
    whole = draw(tiny_generator, count=8, seed=3)
    for rank in (0, 1):
        own = slice(4 * rank, 4 * rank + 4)
        half = draw(tiny_generator, count=8, seed=3, rows=own)
        torch.testing.assert_close(half.codes, whole.codes[own])
        width = half.drags.valid.shape[1]
        assert torch.equal(half.drags.valid, whole.drags.valid[own, :width])
        assert not whole.drags.valid[own, width:].any()
        known = half.drags.valid
        torch.testing.assert_close(half.drags.targets[known], whole.drags.targets[own, :width][known])


def test_motion_depends_only_on_the_seed(tiny_generator: Generator) -> None:
    assert torch.equal(draw(tiny_generator, seed=1).drags.targets, draw(tiny_generator, seed=1).drags.targets)
    assert not torch.equal(draw(tiny_generator, seed=1).codes, draw(tiny_generator, seed=2).codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"psi": (1.0, 0.5)}, "expected low <= high"),
        ({"travel_share": (0.0, 0.5)}, "both in .0, 1."),
        ({"travel_share": (0.5, 1.5)}, "both in .0, 1."),
        ({"max_points": 0}, "max_points 0: expected 1 to n_candidates"),
        ({"max_points": 99}, "max_points 99: expected 1 to n_candidates .16."),
        ({"anchor_share": 1.5}, "expected mixed_share and anchor_share in"),
    ],
)
def test_bad_configs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)  # type: ignore[arg-type]
