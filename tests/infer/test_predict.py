"""The closed loop: when it ends, what it keeps, batches, the order of points, masks and anchors."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import set_clock
from hypothesis import given, settings
from hypothesis import strategies as st
from learned import tiny_nets
from torch import Tensor

from autodrag.infer import predict as module
from autodrag.infer.predict import LearnedNets, PredictConfig, Prediction, make_drags, predict
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Generator
from autodrag.tracking import appearance, look


@pytest.fixture(scope="module")
def nets(tiny_generator: Generator) -> LearnedNets:
    return tiny_nets(tiny_generator)


@pytest.fixture(scope="module")
def latent(tiny_generator: Generator) -> Tensor:
    return tiny_generator.map(torch.randn(3, 32, generator=torch.Generator().manual_seed(3)))


def random_drags(batch: int = 3, count: int = 4, seed: int = 0) -> DragBatch:
    points = torch.rand(2, batch, count, 2, generator=torch.Generator().manual_seed(seed)) * 30
    return DragBatch(points[0], points[1], torch.ones(batch, count, dtype=torch.bool))


def one(drags: DragBatch, row: int) -> DragBatch:
    own = slice(row, row + 1)
    movable = None if drags.movable is None else drags.movable[own]
    return DragBatch(drags.handles[own], drags.targets[own], drags.valid[own], movable)


class Script:
    """Stands in for the tracker: says where the points are, round by round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rounds: list[Any]) -> None:
        self.rounds = [torch.as_tensor(points, dtype=torch.float32) for points in rounds]
        self.near: list[Tensor] = []
        monkeypatch.setattr(module, "follow", self)

    def __call__(self, maps: Tensor, what: Any, image: Any, *, near: Tensor, pull: float) -> tuple[Tensor, Tensor]:
        self.near.append(near)
        points = self.rounds[len(self.near) - 1].expand_as(near)
        return points, torch.full(near.shape[:2], 0.9)


def codes(nets: LearnedNets, generator: Generator, latent: Tensor, drags: DragBatch, script: Script) -> list[Tensor]:
    """What each round makes of the one before, written out."""
    made = [latent]
    for points in [drags.handles, *script.rounds[:-1]]:
        maps = generator.features(made[-1], block=2).last
        made.append(nets.edit(made[-1], maps, replace(drags, handles=points.expand_as(drags.handles))))
    return made[1:]


def run(nets: LearnedNets, generator: Generator, latent: Tensor, drags: DragBatch, **changes: Any) -> Prediction:
    stop = changes.pop("stop", None)
    return predict(nets, generator, latent, drags, config=PredictConfig(**changes), stop=stop)


@pytest.fixture
def to_the_right(latent: Tensor) -> DragBatch:
    """One drag of ten px of one image."""
    return make_drags_of([[10.0, 10.0]], [[20.0, 10.0]])


def make_drags_of(handles: Any, targets: Any) -> DragBatch:
    first, last = torch.tensor([handles]), torch.tensor([targets])
    return DragBatch(first, last, torch.ones(first.shape[:2], dtype=torch.bool))


def test_layers_that_no_edit_changes_are_read_once_for_each_image(
    tiny_generator: Generator, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = tiny_nets(tiny_generator)
    assert nets.regularizer is not None
    read, asked = nets.regularizer.read, []

    def reads(codes: Tensor) -> Any:
        asked.append(codes)
        return read(codes)

    monkeypatch.setattr(nets.regularizer, "read", reads)
    edited = latent.clone()
    edited[:, : nets.predictor.config.edit_layers] += 1
    for codes, times in ((latent, 1), (edited, 1), (latent[:1], 2), (latent, 3), (latent + 1, 4)):
        for answer, truth in zip(nets.read(codes) or [], read(codes), strict=True):
            torch.testing.assert_close(answer, truth)
        assert len(asked) == times
    with torch.autocast("cpu"):
        nets.read(latent + 1)
    assert len(asked) == 5


def test_arrival_ends_the_loop(
    nets: LearnedNets,
    tiny_generator: Generator,
    latent: Tensor,
    to_the_right: DragBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(monkeypatch, [[15.0, 10.0], [19.6, 10.0], [20.0, 10.0]])
    result = run(nets, tiny_generator, latent[:1], to_the_right, rounds=9, stop_px=0.5)
    assert result.rounds == 2
    assert result.distances.tolist() == [[pytest.approx(0.4, abs=1e-5)]]
    expected = codes(nets, tiny_generator, latent[:1], to_the_right, script)
    torch.testing.assert_close(result.latent, expected[1], atol=1e-5, rtol=1e-5)
    assert [near.tolist() for near in script.near] == [[[[20.0, 10.0]]]] * 2  # where each round was to take them


def test_several_points_are_given_more_rounds_than_one(
    nets: LearnedNets, tiny_generator: Generator, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image with one drag and an anchor beside one with two drags, each as if it were alone."""
    Script(monkeypatch, [[[x, 10.0], [9.0, 9.0]] for x in (11.0, 13.0, 14.0, 15.0, 16.0, 17.0, 20.0)])
    first = torch.tensor([[[8.0, 10.0], [9.0, 9.0]]] * 2)
    last = torch.tensor([[[20.0, 10.0], [9.0, 9.0]], [[20.0, 10.0], [9.0, 15.0]]])
    result = run(nets, tiny_generator, latent[:2], DragBatch(first, last, torch.ones(2, 2, dtype=torch.bool)))
    assert result.points[:, 0, 0].tolist() == [13.0, 17.0] and result.rounds == 6


def test_an_open_loop_is_one_round(
    nets: LearnedNets,
    tiny_generator: Generator,
    latent: Tensor,
    to_the_right: DragBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Script(monkeypatch, [[15.0, 10.0], [20.0, 10.0]])
    assert run(nets, tiny_generator, latent[:1], to_the_right, rounds=1).rounds == 1


def test_no_progress_ends_the_loop_and_the_better_state_is_kept(
    nets: LearnedNets,
    tiny_generator: Generator,
    latent: Tensor,
    to_the_right: DragBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(monkeypatch, [[16.0, 10.0], [12.0, 10.0], [20.0, 10.0]])
    result = run(nets, tiny_generator, latent[:1], to_the_right, rounds=9)
    assert (result.rounds, result.points.tolist()) == (2, [[[16.0, 10.0]]])
    expected = codes(nets, tiny_generator, latent[:1], to_the_right, script)
    torch.testing.assert_close(result.latent, expected[0], atol=1e-5, rtol=1e-5)
    features = tiny_generator.features(result.latent, block=3)
    torch.testing.assert_close(result.features.last, features.last, atol=1e-5, rtol=1e-5)


def test_little_progress_ends_it_too(
    nets: LearnedNets,
    tiny_generator: Generator,
    latent: Tensor,
    to_the_right: DragBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Script(monkeypatch, [[16.0, 10.0], [16.04, 10.0], [20.0, 10.0]])
    result = run(nets, tiny_generator, latent[:1], to_the_right, rounds=9)  # 0.04 of 4 px are 1 %
    assert result.rounds == 2
    assert float(result.points[0, 0, 0]) == pytest.approx(16.04)


def test_a_first_round_that_moves_away_is_still_an_answer(
    nets: LearnedNets,
    tiny_generator: Generator,
    latent: Tensor,
    to_the_right: DragBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Script(monkeypatch, [[9.0, 10.0], [15.0, 10.0], [16.0, 10.0]])
    result = run(nets, tiny_generator, latent[:1], to_the_right, rounds=3)
    assert (result.rounds, result.points.tolist()) == (3, [[[16.0, 10.0]]])


def test_a_stop_event_ends_it_after_the_round(nets: LearnedNets, tiny_generator: Generator, latent: Tensor) -> None:
    stop = threading.Event()
    stop.set()
    result = run(nets, tiny_generator, latent, random_drags(), rounds=9, stop_px=0.0, gain=0.0, stop=stop)
    assert result.rounds == 1


def test_a_budget_is_kept(
    nets: LearnedNets,
    tiny_generator: Generator,
    latent: Tensor,
    to_the_right: DragBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A round that takes a second: of 3.5 seconds a fourth is not begun; the first is made in any case."""
    clock = iter(range(100))
    set_clock(monkeypatch, lambda: float(next(clock)), module)
    ways = [[11.0 + k, 10.0] for k in range(8)]
    Script(monkeypatch, ways)
    result = run(nets, tiny_generator, latent[:1], to_the_right, rounds=8, budget_s=3.5)
    assert result.rounds == 3
    Script(monkeypatch, ways)
    assert run(nets, tiny_generator, latent[:1], to_the_right, rounds=8, budget_s=1e-6).rounds == 1


@pytest.mark.parametrize("changes", [{}, {"stop_px": 9.0}, {"stop_px": 0.0, "gain": 0.0}])
def test_a_batch_is_its_images_one_by_one(
    nets: LearnedNets, tiny_generator: Generator, latent: Tensor, changes: dict[str, float]
) -> None:
    drags = replace(random_drags(), movable=(torch.rand(3, 16, 16) > 0.3).float())
    together = run(nets, tiny_generator, latent, drags, rounds=4, **changes)
    for row in range(3):
        alone = run(nets, tiny_generator, latent[row : row + 1], one(drags, row), rounds=4, **changes)
        torch.testing.assert_close(together.latent[row : row + 1], alone.latent, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.points[row : row + 1], alone.points, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(together.features.last[row : row + 1], alone.features.last, atol=1e-3, rtol=1e-3)


def test_what_has_arrived_is_left_alone_while_others_go_on(
    nets: LearnedNets, tiny_generator: Generator, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drags = make_drags_of([[10.0, 10.0]], [[20.0, 10.0]])
    drags = DragBatch(*(t.expand(2, *t.shape[1:]) for t in (drags.handles, drags.targets, drags.valid)))
    Script(monkeypatch, [[[[19.7, 10.0]], [[15.0, 10.0]]], [[[20.0, 10.0]], [[20.0, 10.0]]]])
    result = run(nets, tiny_generator, latent[:2], drags, rounds=4)
    assert result.points[:, 0, 0].tolist() == pytest.approx([19.7, 20.0])


def test_padding_does_not_count(nets: LearnedNets, tiny_generator: Generator, latent: Tensor) -> None:
    drags = random_drags(batch=1, count=2)
    padded = DragBatch(
        torch.cat([drags.handles, torch.zeros(1, 2, 2)], dim=1),
        torch.cat([drags.targets, torch.full((1, 2, 2), 31.0)], dim=1),
        torch.tensor([[True, True, False, False]]),
    )
    plain = run(nets, tiny_generator, latent[:1], drags, rounds=3)
    result = run(nets, tiny_generator, latent[:1], padded, rounds=3)
    torch.testing.assert_close(result.latent, plain.latent, atol=1e-4, rtol=1e-4)
    assert result.distances[0, 2:].tolist() == [0.0, 0.0] and result.rounds == plain.rounds


@settings(max_examples=15)
@given(st.permutations(range(5)), st.booleans())
def test_the_order_of_points_does_not_matter_to_the_last_bit(
    nets_and_more: tuple[LearnedNets, Generator, Tensor], order: list[int], known: bool
) -> None:
    nets, generator, latent = nets_and_more
    drags = random_drags(batch=1, count=5)
    drags.handles[0, 3] = drags.handles[0, 1]  # two drags of one handle
    index = torch.tensor(order)
    shuffled = DragBatch(drags.handles[:, index], drags.targets[:, index], drags.valid)
    config = PredictConfig(rounds=2, stop_px=0.0)
    what = appearance(generator.features(latent, block=3).outputs[1:], drags.handles, (32, 32))
    other = what.take(index[None])
    first, second = (
        predict(nets, generator, latent, each, config=config, what=look if known else None)
        for each, look in ((drags, what), (shuffled, other))
    )
    assert torch.equal(first.latent, second.latent)
    for field in ("points", "distances", "confidences", "lost"):
        assert torch.equal(getattr(first, field)[:, index], getattr(second, field))


@pytest.fixture(scope="module")
def nets_and_more(nets: LearnedNets, tiny_generator: Generator, latent: Tensor) -> Any:
    return nets, tiny_generator, latent[:1]


def test_known_features_are_not_made_again(
    nets: LearnedNets, tiny_generator: Generator, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tiny_generator.features(latent, block=3)
    expected = run(nets, tiny_generator, latent, random_drags(), rounds=1)
    made: list[int] = []
    original = Generator.features

    def count(self: Generator, *words: Any, **options: Any) -> Any:
        made.append(1)
        return original(self, *words, **options)

    monkeypatch.setattr(Generator, "features", count)
    result = predict(nets, tiny_generator, latent, random_drags(), config=PredictConfig(rounds=1), features=known)
    torch.testing.assert_close(result.latent, expected.latent)
    assert len(made) == 1  # those of the result


def test_what_holds_for_all_drags_of_an_image_is_made_once(
    nets: LearnedNets, tiny_generator: Generator, latent: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its look and the tokens of its map, kept while the same features come back; the answers do not change."""
    made: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            made.append(name)
            return function(*args)

        return call

    features = [tiny_generator.features(code[None], block=3) for code in latent[:2]]
    given = [random_drags(batch=1, seed=seed) for seed in (0, 1)]

    def end(image: int, drags: DragBatch) -> Tensor:
        config = PredictConfig(rounds=2, stop_px=0.0, gain=0.0)
        known = features[image]
        start = latent[image : image + 1]
        return predict(nets, tiny_generator, start, drags, config=config, features=known).latent

    expected = [end(k, drags) for k in (0, 1, 0) for drags in given]
    monkeypatch.setattr(module, "look", counted("look", look))
    monkeypatch.setattr(nets.predictor, "read_map", counted("map", nets.predictor.read_map))
    nets._seen.clear()
    nets._read.clear()
    again = [end(k, drags) for k in (0, 1, 0) for drags in given]
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert made.count("look") == 3 and made.count("map") == 3 + 6  # of the second rounds every map is new
    rows = nets.predictor.config.feature_height
    end(0, replace(given[0], movable=torch.ones(1, rows, rows)))
    assert made.count("look") == 3 and made.count("map") == 9 + 2  # tokens of a map know the mask


def test_the_first_look_can_come_from_an_earlier_image(
    nets: LearnedNets, tiny_generator: Generator, latent: Tensor
) -> None:
    drags = random_drags(batch=1)
    other = appearance(tiny_generator.features(latent[1:2], block=3).outputs[1:], drags.handles, (32, 32))
    config = PredictConfig(rounds=1)
    first = predict(nets, tiny_generator, latent[:1], drags, config=config)
    second = predict(nets, tiny_generator, latent[:1], drags, config=config, what=other)
    torch.testing.assert_close(first.latent, second.latent)  # the same answer, looked for with other eyes
    assert not torch.allclose(first.points, second.points)


def test_drags_of_one_image(nets: LearnedNets) -> None:
    handles, targets, anchors = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[9.0, 9.0]])
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, :9] = True
    drags = make_drags(nets.predictor, handles, targets, mask=mask, anchors=anchors)
    assert drags.handles.tolist() == [[[1.0, 2.0], [9.0, 9.0]]]
    assert drags.targets.tolist() == [[[3.0, 4.0], [9.0, 9.0]]]
    assert drags.valid.all() and drags.movable is not None
    assert drags.movable.shape == (1, 16, 16)
    assert drags.movable[0, 0].tolist() == [1.0] * 4 + [0.5] + [0.0] * 11
    assert make_drags(nets.predictor, handles, targets, mask=torch.ones(32, 32, dtype=torch.bool)).movable is None


def test_masks_and_anchors_reach_the_predictor(nets: LearnedNets, tiny_generator: Generator, latent: Tensor) -> None:
    handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[14.0, 8.0]])
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:16] = True
    answers = [
        run(nets, tiny_generator, latent[:1], make_drags(nets.predictor, handles, targets, **more), rounds=1).latent
        for more in ({}, {"mask": mask}, {"anchors": torch.tensor([[25.0, 25.0]])})
    ]
    assert (answers[0] - answers[1]).abs().max() > 1e-4
    assert (answers[0] - answers[2]).abs().max() > 1e-4


def test_unlike_places_are_lost(
    nets: LearnedNets,
    tiny_generator: Generator,
    latent: Tensor,
    to_the_right: DragBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "follow", lambda maps, what, image, *, near, pull: (near + 1, torch.tensor([[0.15]])))
    assert run(nets, tiny_generator, latent[:1], to_the_right, lost_confidence=0.2).lost.tolist() == [[True]]
    assert run(nets, tiny_generator, latent[:1], to_the_right, lost_confidence=0.1).lost.tolist() == [[False]]


@pytest.mark.parametrize(
    "changes", [{"rounds": 0}, {"stop_px": -1.0}, {"gain": 1.0}, {"budget_s": 0.0}, {"budget_s": float("nan")}]
)
def test_bad_configs(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PredictConfig(**changes)
