"""`eval trust`: the area under the curve, impossible drags, and a run on a tiny checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from autodrag.eval.trust import KINDS, area_under_curve, impossible, thrown


def test_area_under_the_curve_is_the_share_of_ordered_pairs() -> None:
    scores, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    assert area_under_curve(scores, positive) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert area_under_curve(scores, np.zeros(4, dtype=bool)) is None


def test_thrown_targets_lie_inside_the_image() -> None:
    handles = np.random.default_rng(0).uniform(0, 63, (200, 2))
    targets = thrown(handles, (64, 64), np.random.default_rng(1))
    assert targets.min() >= 1 and targets.max() <= 62
    assert np.hypot(*(targets - handles).T).max() <= 0.4 * 64 + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_drags_are_tasks_of_the_image(kind: str) -> None:
    landmarks = np.random.default_rng(2).uniform(10, 54, (11, 2))
    task = impossible(kind, landmarks, (64, 64), np.random.default_rng(3))
    points = np.concatenate([np.asarray(task[name]) for name in ("handles", "targets")])
    assert len(task["handles"]) == len(task["targets"]) and points.min() >= 0 and points.max() <= 63
    if "mask" in task:
        x, y = np.asarray(task["handles"][0]).round().astype(int)
        u, v = np.asarray(task["targets"][0]).round().astype(int)
        assert (bool(task["mask"][y, x]), bool(task["mask"][v, u])) == (
            (False, True) if kind.startswith("handle") else (True, False)
        )
