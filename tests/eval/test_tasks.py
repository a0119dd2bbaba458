from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.eval.bench import Bench
from autodrag.eval.detectors import Detection
from autodrag.eval.tasks import (
    FlowSource,
    Perturbation,
    add_source_options,
    flow_pairs,
    landmark_pairs,
    perturb,
    read_source,
)
from autodrag.nets.stylegan2 import seed_z

CPU = torch.device("cpu")


def source_options(*options: str) -> argparse.Namespace:
    """Parse command-line options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points")
    add_source_options(parser)
    return parser.parse_args(options)


class FakeDetector:
    """Detects four points that move with the mean of the image; one of them lies outside the image."""

    count, identity = 4, "fake"

    def __init__(self, blind: int = 0) -> None:
        self.calls, self.blind = 0, blind

    def __call__(self, image: Tensor) -> Detection | None:
        self.calls += 1
        points = torch.tensor([[4.0, 4.0], [10.0, 20.0], [31.5, 3.0], [0.0, 31.0]])
        points[:2] += float(image.mean())
        return None if self.calls <= self.blind else Detection(points, 0.5)


def test_pairs_of_landmarks(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("--methods", "none", "--pairs", "3")
    pairs = landmark_pairs(bench, FakeDetector())
    assert [pair.seed for pair in pairs] == [1_000_000, 1_000_002, 1_000_004]
    for pair in pairs:
        assert sorted(pair.order) == [0, 1, 3]  # x = 31.5 is beyond the last pixel centre
        assert torch.equal(pair.latent, bench.generator.map(seed_z(pair.seed, 32), psi=0.7))
        chosen, drag = pair.chosen(2), pair.drag(2, CPU)
        assert chosen == list(pair.order[:2])
        assert torch.equal(drag.handles, pair.source[chosen]) and torch.equal(drag.targets, pair.target[chosen])
    again = landmark_pairs(make_bench("--methods", "none", "--pairs", "2"), FakeDetector())
    assert [pair.order for pair in again] == [pair.order for pair in pairs[:2]]  # as in a longer run


def test_images_without_landmarks_are_skipped(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("--methods", "none")
    assert [pair.seed for pair in landmark_pairs(bench, FakeDetector(blind=1))] == [1_000_002]
    with pytest.raises(AutodragError, match="finds nothing in 2 pairs"):
        landmark_pairs(bench, FakeDetector(blind=4))


def test_perturbation_is_the_published_formula(make_bench: Callable[..., Bench]) -> None:
    """w2 = w1 + 0.1 (w* - w1) in the first six of eight layers, w* without truncation, a z for each layer."""
    bench = make_bench("--methods", "none")
    w1 = bench.map(seed_z(5, 32), psi=0.3)
    w2 = perturb(bench, w1, Perturbation(), seed=5)
    assert torch.equal(w2[:, 6:], w1[:, 6:])
    star = bench.generator.mapping(torch.from_numpy(np.random.default_rng(5).standard_normal((6, 32))).float())
    assert torch.allclose(w2[0, :6], 0.9 * w1[0, :6] + 0.1 * star, atol=1e-6)
    one = perturb(bench, w1, Perturbation(0.5, 2, "one"), seed=5)
    assert torch.equal(one[:, 2:], w1[:, 2:])
    assert torch.allclose(one[0, 0], one[0, 1])  # one z, and w1 is the same in all layers
    assert not torch.allclose(w2[0, 0], w2[0, 1])


@pytest.mark.parametrize("values", [(0.0, 6), (1.5, 6), (0.1, 0), (float("nan"), 6)])
def test_invalid_perturbations(values: tuple[float, int], make_bench: Callable[..., Bench]) -> None:
    with pytest.raises(ValueError, match="expected a strength"):
        Perturbation(*values)
    options = ["--points", "1", "--perturb", str(values[0]), "--perturb-layers", str(values[1])]
    with pytest.raises(AutodragError, match="expected a fraction in"):
        FlowSource.read(source_options(*options), make_bench("--methods", "none"))


def shift(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A flow of (3, -2) px in the left half, and of zero in the right half."""
    flow = np.zeros((*first.shape[:2], 2), np.float32)
    flow[:, : first.shape[1] // 2] = (3.0, -2.0)
    return flow


def test_pairs_of_a_flow(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("--methods", "none")
    pairs = flow_pairs(bench, shift, Perturbation(), points=32)
    assert [pair.seed for pair in pairs] == [1_000_000, 1_000_001]
    for pair in pairs:
        drag = pair.drag(32, CPU)
        handles, targets = drag.handles, drag.targets
        assert len(handles) == 32 and len({tuple(p) for p in handles.tolist()}) == 32
        left = handles[:, 0] < 16
        assert torch.equal(targets[left] - handles[left], torch.tensor([[3.0, -2.0]]).expand(int(left.sum()), 2))
        assert torch.equal(targets[~left], handles[~left])
        assert targets.min() >= 0 and targets.max() <= 31
        assert not torch.equal(pair.goal, pair.latent)
    few = flow_pairs(bench, shift, Perturbation(), points=4)
    assert torch.equal(few[0].source, pairs[0].source[:4])  # fewer points are a prefix of more points


def test_pixels_without_motion_are_skipped(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("--methods", "none")
    pairs = flow_pairs(bench, shift, Perturbation(), points=64, least=1.0)
    assert all(float(pair.source[:, 0].max()) < 16 for pair in pairs)
    with pytest.raises(AutodragError, match="no pixel moves 9 px in 2 pairs"):
        flow_pairs(bench, shift, Perturbation(), points=4, least=9.0)


def test_choice_of_the_source(make_bench: Callable[..., Bench], tiny_checkpoint: Path) -> None:
    args = source_options("--points", "1,2")
    bench = make_bench("--methods", "none")
    marked = read_source(args, bench)
    assert marked.detector is not None and marked.setup == {"landmarks": marked.detector.identity}
    assert marked.points == (1, 2) and len(marked.pairs(bench)) == 2
    bare = make_bench("--methods", "none", checkpoint=tiny_checkpoint)
    flowing = read_source(args, bare)
    assert flowing.detector is None
    assert flowing.setup == {"perturb": 0.5, "perturb_layers": 6, "perturb_z": "mixed", "flow": "dis"}
    for pair in flowing.pairs(bare):
        assert len(pair.source) == 2
        assert float((pair.target - pair.source).norm(dim=1).min()) >= 0.05 * 32
