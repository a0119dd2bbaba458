"""Synthesised motion: sequences as asked for, drags that moved far enough, masks and anchors, shares of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autodrag.data import motion
from autodrag.data.motion import Motion, MotionConfig, draw_motion, rate, step_pairs
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
CONFIG = MotionConfig(candidates=16, points=5, masks=0.5, anchors=0.5, min_px=40, min_px_many=20, min_step_px=10)


def draw(generator: Generator, count: int = 24, seed: int = 0, keep: slice = slice(None), **changes: object) -> Motion:
    rng = torch.Generator().manual_seed(seed)
    return draw_motion(generator, NET, replace(CONFIG, **changes), count, rng, keep)  # type: ignore[arg-type]


def anchors_of(sample: Motion) -> Tensor:
    return sample.drags.valid & ~sample.moving


@given(st.floats(0.01, 1.0), st.integers(1, 9))
def test_n_steps_go_the_share_of_the_way(travel: float, steps: int) -> None:
    """(1 - rate)^n is what is left of the way: 1 - travel toward w*, 1 + travel away from it."""
    for toward, left in ((True, 1 - travel), (False, 1 + travel)):
        speed = rate(torch.tensor([travel], dtype=torch.float64), steps, toward)
        assert (speed > 0) == toward
        assert float((1 - speed) ** steps) == pytest.approx(left, abs=1e-6)


@pytest.mark.parametrize("toward", [True, False])
def test_sequences_go_straight_and_leave_the_other_layers(tiny_generator: Generator, toward: bool) -> None:
    sample = draw(tiny_generator, toward=toward)
    codes = sample.codes
    assert codes.shape == (24, 4, 8, 32)
    assert torch.equal(codes[:, :, 6:], codes[:, :1, 6:].expand(-1, 4, -1, -1))
    steps = codes.diff(dim=1)[:, :, :6].flatten(2)
    cosines = torch.cosine_similarity(steps[:, :-1], steps[:, 1:], dim=2)
    assert cosines.min() > 0.999
    lengths = steps.norm(dim=2)
    assert ((lengths.diff(dim=1) < 0) if toward else (lengths.diff(dim=1) > 0)).all()  # nearer or farther from w*


def test_maps_are_those_of_the_first_code(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator, count=3)
    expected = tiny_generator.features(sample.codes[:, 0], block=2).last
    torch.testing.assert_close(sample.maps, expected, atol=1e-5, rtol=1e-5)


def test_drags_moved_far_or_farthest(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator)
    moved = (sample.drags.targets - sample.drags.handles).norm(dim=2)
    number = sample.moving.sum(dim=1)
    assert number.max() <= 5  # and none at all where no match is to be trusted
    several = number > 1  # one alone may be the farthest of a still sample
    assert several.any()
    assert moved[sample.moving & several[:, None]].min() >= 10 * 32 / 512
    limit = torch.tensor([31.5, 31.5])
    for points in (sample.drags.handles, sample.drags.targets):
        inside = points[sample.drags.valid]
        assert (inside >= -0.5).all() and (inside <= limit).all()


def test_drags_go_on_straight_as_far_as_the_whole_way(tiny_generator: Generator) -> None:
    """Matched halfway, a drag is up to twice as long with a reach of 1; all of one sample by the same factor."""
    found = draw(tiny_generator, count=64, travel=(0.5, 0.5), anchors=0.0, masks=0.0)
    longer = draw(tiny_generator, count=64, travel=(0.5, 0.5), anchors=0.0, masks=0.0, reach=1.0)
    assert torch.equal(found.codes, longer.codes) and torch.equal(found.moving, longer.moving)
    assert torch.equal(found.drags.handles, longer.drags.handles)
    first, second = (sample.drags.targets - sample.drags.handles for sample in (found, longer))
    factors = (first * second).sum(dim=2) / first.square().sum(dim=2).clamp_min(1e-9)
    moving = found.moving & (first.norm(dim=2) > 0.1)
    torch.testing.assert_close(second[moving], (factors[..., None] * first)[moving], atol=1e-3, rtol=1e-3)
    assert factors[moving].min() > 0.999 and factors[moving].max() < 2.001 and factors[moving].mean() > 1.2
    least = torch.where(moving, factors, torch.inf).amin(dim=1)
    most = torch.where(moving, factors, -torch.inf).amax(dim=1)
    assert ((most - least)[moving.any(dim=1)] < 1e-2).all()
    places = longer.drags.targets[longer.moving]
    assert (places >= -0.5 - 1e-4).all() and (places <= 31.5 + 1e-4).all()
    assert torch.equal(longer.free, ~(moving.any(dim=1) & (most > 1.0001)))  # the last code does not answer these
    assert found.free.all()


def test_a_drag_that_ends_at_the_border_is_no_longer_than_found() -> None:
    handles = torch.tensor([[[10.0, 10.0], [0.0, 0.0]], [[10.0, 10.0], [20.0, 20.0]]])
    targets = torch.tensor([[[20.5, 10.0], [0.0, 0.0]], [[10.0, 31.5], [21.0, 20.0]]])
    drags = torch.tensor([[True, False], [True, True]])
    room = motion._room(handles, targets, drags, (32, 32))
    torch.testing.assert_close(room, torch.tensor([21.5 / 10.5, 1.0]))


def test_some_samples_have_a_single_drag(tiny_generator: Generator) -> None:
    for single in (0.2, 0.9):
        number = draw(tiny_generator, count=200, min_px=1.0, min_px_many=1.0, single=single).moving.sum(dim=1)
        assert abs(float((number[number > 0] == 1).float().mean()) - single) < 0.25
    assert number.max() == 5


def test_anchors_stay_and_padding_is_told_from_both(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator, count=64)
    held = anchors_of(sample)
    assert held.any() and held.sum(dim=1).max() <= 3
    assert torch.equal(sample.drags.handles[held], sample.drags.targets[held])
    assert not (sample.moving & ~sample.drags.valid).any()
    assert sample.drags.valid.any(dim=0).all()  # no row of padding alone
    # DragBatch come first, then anchors, then padding.
    order = sample.moving.int() * 2 + held.int()
    assert (order.diff(dim=1) <= 0).all()


def test_masks_hold_all_drags(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator, count=64)
    movable = sample.drags.movable
    assert movable is not None and movable.shape == (64, 16, 16)
    masked = movable.flatten(1).amin(dim=1) == 0
    assert 0.3 < float(masked.float().mean()) < 0.7
    for points in (sample.drags.handles, sample.drags.targets):
        cell = ((points + 0.5) / 2).floor().long().clamp(0, 15)
        there = movable[torch.arange(64)[:, None], cell[..., 1], cell[..., 0]]
        assert (there[sample.moving] == 1).all()


def test_samples_are_free_that_have_neither_mask_nor_anchors(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator, count=64)
    assert sample.drags.movable is not None
    bound = (sample.drags.movable.flatten(1).amin(dim=1) == 0) | anchors_of(sample).any(dim=1)
    assert not sample.free[bound].any()
    assert draw(tiny_generator, masks=0.0, anchors=0.0).free.all()


def test_processes_share_a_batch(tiny_generator: Generator) -> None:
    """Two halves drawn by themselves are the two halves of the whole."""
    whole = draw(tiny_generator, count=8, seed=3)
    for rank in (0, 1):
        own = slice(4 * rank, 4 * rank + 4)
        half = draw(tiny_generator, count=8, seed=3, keep=own)
        torch.testing.assert_close(half.codes, whole.codes[own])
        torch.testing.assert_close(half.drags.movable, whole.drags.movable[own])  # type: ignore[index]
        width = half.drags.valid.shape[1]
        assert torch.equal(half.drags.valid, whole.drags.valid[own, :width])
        assert not whole.drags.valid[own, width:].any()
        known = half.drags.valid
        torch.testing.assert_close(half.drags.targets[known], whole.drags.targets[own, :width][known])


def test_the_seed_decides(tiny_generator: Generator) -> None:
    assert torch.equal(draw(tiny_generator, seed=1).drags.targets, draw(tiny_generator, seed=1).drags.targets)
    assert not torch.equal(draw(tiny_generator, seed=1).codes, draw(tiny_generator, seed=2).codes)


def test_pairs_of_neighbouring_images(tiny_generator: Generator) -> None:
    sample = draw(tiny_generator, count=3)
    pairs = step_pairs(tiny_generator, NET, CONFIG, sample.codes, 3, torch.Generator().manual_seed(0))
    assert pairs.maps.shape == (9, 16, 16, 16)
    torch.testing.assert_close(
        pairs.maps[4], tiny_generator.features(sample.codes[1:2, 1], block=2).last[0], atol=1e-5, rtol=1e-5
    )
    moved = (pairs.targets - pairs.handles).norm(dim=2)
    assert moved[pairs.valid].min() >= 10 * 32 / 512 if pairs.valid.any() else True
    everything = step_pairs(
        tiny_generator, NET, replace(CONFIG, min_step_px=0.0), sample.codes, 3, torch.Generator().manual_seed(0)
    )
    assert everything.valid.any() and (everything.valid | ~pairs.valid).all()


def test_sift_as_the_matcher(tiny_generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are matched instead of features, and their pairs become the drags."""

    def shifted(before: Tensor, after: Tensor, points: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
        assert before.shape == (4, 3, 32, 32) and options == {"matcher": "sift", "weights": None}
        return points * 0 + 8, points * 0 + 20, torch.ones(points.shape[:2], dtype=torch.bool)

    monkeypatch.setattr(motion, "match_pictures", shifted)
    sample = draw(tiny_generator, count=4, matcher="sift")
    assert (sample.drags.handles[sample.moving] == 8).all() and (sample.drags.targets[sample.moving] == 20).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"psi": (1.0, 0.5)}, "expected low <= high"),
        ({"travel": (0.0, 0.5)}, "travel in .0, 1."),
        ({"travel": (0.5, 1.5)}, "travel in .0, 1."),
        ({"points": 0}, "points 0: expected 1 to candidates"),
        ({"points": 99}, "points 99: expected 1 to candidates .16."),
        ({"masks": 1.5}, "mixed, single, masks and anchors are shares"),
        ({"matcher": "loftr"}, "expected the path of its weights"),
    ],
)
def test_bad_configs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_masks_are_of_three_kinds(tiny_generator: Generator) -> None:
    """Strokes are thinner than half planes; some masks reach the border, some have a hole nowhere near the drags."""
    sample = draw(tiny_generator, count=200, masks=1.0, anchors=0.0)
    movable = sample.drags.movable
    assert movable is not None and set(movable.unique().tolist()) == {0.0, 1.0}
    share = movable.flatten(1).mean(dim=1)
    border = torch.cat([movable[:, 0], movable[:, -1], movable[:, :, 0], movable[:, :, -1]], dim=1).mean(dim=1)
    assert (share < 0.15).any() and (share > 0.6).any()
    assert (border == 0).any() and (border > 0.6).any()
