"""The closed loop: when it ends, which round it returns, batches, the order of points, anchors."""

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
from autodrag.infer import task as task_module
from autodrag.infer.open_image import OpenImage
from autodrag.infer.predict import PredictConfig, batch_of, predict
from autodrag.infer.task import Control, Drag
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Generator


@pytest.fixture(scope="module")
def editor(tiny_generator: Generator) -> LearnedEditor:
    return tiny_nets(tiny_generator)


@pytest.fixture(scope="module")
def images(tiny_generator: Generator, editor: LearnedEditor) -> OpenImage:
    """A batch of three images."""
    latent = tiny_generator.map(torch.randn(3, 32, generator=torch.Generator().manual_seed(3)))
    return OpenImage.of(tiny_generator, latent, editor)


def first(images: OpenImage, stop: int = 1, start: int = 0) -> OpenImage:
    """Part of a batch, opened again."""
    return OpenImage.of(images.synthesis.generator, images.latent[start:stop], images.editor)


@pytest.fixture(scope="module")
def image(images: OpenImage) -> OpenImage:
    return first(images)


def random_drags(batch: int = 3, count: int = 4, seed: int = 0) -> DragBatch:
    points = torch.rand(2, batch, count, 2, generator=torch.Generator().manual_seed(seed)) * 30
    return DragBatch(points[0], points[1], torch.ones(batch, count, dtype=torch.bool))


def drags_of(handles: Any, targets: Any) -> DragBatch:
    """Drags of one image."""
    start, end = torch.tensor([handles]), torch.tensor([targets])
    return DragBatch(start, end, torch.ones(start.shape[:2], dtype=torch.bool))


TO_THE_RIGHT = drags_of([[10.0, 10.0]], [[20.0, 10.0]])


class Script:
    """Replaces the tracker: returns given positions, round by round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rounds: list[Any]) -> None:
        self.rounds = [torch.as_tensor(points, dtype=torch.float32) for points in rounds]
        self.near: list[Tensor] = []
        monkeypatch.setattr(module, "follow", self)

    def __call__(self, maps: Any, reference: Any, image: Any, *, near: Tensor, pull: float) -> tuple[Tensor, Tensor]:
        self.near.append(near)
        return self.rounds[len(self.near) - 1].expand_as(near), torch.full(near.shape[:2], 0.9)


def codes(image: OpenImage, drags: DragBatch, script: Script) -> list[Tensor]:
    """Codes after each round, computed step by step."""
    assert image.editor is not None
    latents = [image.latent]
    for points in [drags.handles, *script.rounds[:-1]]:
        maps = image.synthesis.generator.features(latents[-1], block=2).last
        moved = replace(drags, handles=points.expand_as(drags.handles))
        latents.append(image.editor.edit(latents[-1], maps, moved)[:, -1])
    return latents[1:]


# --- when it ends ----------------------------------------------------------------------------------------------------


def test_loop_stops_on_arrival(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, [[15.0, 10.0], [19.6, 10.0], [20.0, 10.0]])
    result = predict(image, TO_THE_RIGHT, PredictConfig(rounds=9, stop_px=0.5))
    assert result.rounds == 2
    assert result.distances.tolist() == [[pytest.approx(0.4, abs=1e-5)]]
    torch.testing.assert_close(result.latent, codes(image, TO_THE_RIGHT, script)[1], atol=1e-5, rtol=1e-5)
    assert [near.tolist() for near in script.near] == [[[[20.0, 10.0]]]] * 2  # the tracker searches near the targets


def test_several_points_get_more_rounds(images: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image with one drag and an anchor, and an image with two drags, in one batch."""
    Script(monkeypatch, [[[x, 10.0], [9.0, 9.0]] for x in (11.0, 13.0, 14.0, 15.0, 16.0, 17.0, 20.0)])
    handles = torch.tensor([[[8.0, 10.0], [9.0, 9.0]]] * 2)
    targets = torch.tensor([[[20.0, 10.0], [9.0, 9.0]], [[20.0, 10.0], [9.0, 15.0]]])
    result = predict(first(images, 2), DragBatch(handles, targets, torch.ones(2, 2, dtype=torch.bool)))
    assert result.points[:, 0, 0].tolist() == [13.0, 17.0] and result.rounds == 6


def test_open_loop_has_one_round(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [[15.0, 10.0], [20.0, 10.0]])
    assert predict(image, TO_THE_RIGHT, PredictConfig(rounds=1)).rounds == 1


def test_paper_variant_is_an_open_loop() -> None:
    assert PredictConfig().limit(TO_THE_RIGHT, "paper").tolist() == [1]
    assert PredictConfig(rounds=3).limit(TO_THE_RIGHT, "paper").tolist() == [3]


def test_loop_stops_without_progress_and_returns_the_better_round(
    image: OpenImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, [[16.0, 10.0], [12.0, 10.0], [20.0, 10.0]])
    result = predict(image, TO_THE_RIGHT, PredictConfig(rounds=9))
    assert (result.rounds, result.points.tolist()) == (2, [[[16.0, 10.0]]])
    torch.testing.assert_close(result.latent, codes(image, TO_THE_RIGHT, script)[0], atol=1e-5, rtol=1e-5)
    features = image.synthesis.generator.features(result.latent, block=3)
    torch.testing.assert_close(result.features.last, features.last, atol=1e-5, rtol=1e-5)


def test_loop_stops_after_little_progress(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [[16.0, 10.0], [16.04, 10.0], [20.0, 10.0]])
    result = predict(image, TO_THE_RIGHT, PredictConfig(rounds=9))  # 0.04 of 4 px are 1 %
    assert result.rounds == 2
    assert float(result.points[0, 0, 0]) == pytest.approx(16.04)


def test_loop_continues_after_a_bad_first_round(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [[9.0, 10.0], [15.0, 10.0], [16.0, 10.0]])
    result = predict(image, TO_THE_RIGHT, PredictConfig(rounds=3))
    assert (result.rounds, result.points.tolist()) == (3, [[[16.0, 10.0]]])


def test_stop_event_ends_the_loop_after_a_round(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    stop.set()
    Script(monkeypatch, [[11.0 + k, 10.0] for k in range(8)])
    assert predict(image, TO_THE_RIGHT, PredictConfig(rounds=8), Control(stop=stop)).rounds == 1


def test_budget(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rounds of one second and a budget of 3.5 s, the fourth round is not started. The first round always runs."""
    clock = iter(range(100))
    set_clock(monkeypatch, lambda: float(next(clock)), task_module)
    path = [[11.0 + k, 10.0] for k in range(8)]
    Script(monkeypatch, path)
    control = Control(3.5, started=0.0)
    next(clock)
    assert predict(image, TO_THE_RIGHT, PredictConfig(rounds=8), control).rounds == 3
    Script(monkeypatch, path)
    assert predict(image, TO_THE_RIGHT, PredictConfig(rounds=8), Control(1e-6, started=0.0)).rounds == 1


# --- batches and order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_px", [0.0, 0.5, 9.0])
def test_batch_equals_single_images(images: OpenImage, stop_px: float) -> None:
    drags, config = random_drags(), PredictConfig(rounds=4, stop_px=stop_px)
    together = predict(images, drags, config)
    for k in range(3):
        row = slice(k, k + 1)
        own = DragBatch(drags.handles[row], drags.targets[row], drags.valid[row])
        alone = predict(first(images, k + 1, k), own, config)
        torch.testing.assert_close(together.latent[row], alone.latent, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.points[row], alone.points, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(together.features.last[row], alone.features.last, atol=1e-3, rtol=1e-3)


def test_arrived_images_do_not_change_while_others_continue(images: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    d = TO_THE_RIGHT
    drags = DragBatch(*(t.expand(2, *t.shape[1:]) for t in (d.handles, d.targets, d.valid)))
    Script(monkeypatch, [[[[19.7, 10.0]], [[15.0, 10.0]]], [[[20.0, 10.0]], [[20.0, 10.0]]]])
    result = predict(first(images, 2), drags, PredictConfig(rounds=4))
    assert result.points[:, 0, 0].tolist() == pytest.approx([19.7, 20.0])


def test_padding_is_ignored(image: OpenImage) -> None:
    drags = random_drags(batch=1, count=2)
    padded = DragBatch(
        torch.cat([drags.handles, torch.zeros(1, 2, 2)], dim=1),
        torch.cat([drags.targets, torch.full((1, 2, 2), 31.0)], dim=1),
        torch.tensor([[True, True, False, False]]),
    )
    plain, result = (predict(image, each, PredictConfig(rounds=3)) for each in (drags, padded))
    torch.testing.assert_close(result.latent, plain.latent, atol=1e-4, rtol=1e-4)
    assert result.distances[0, 2:].tolist() == [0.0, 0.0] and result.rounds == plain.rounds


@settings(max_examples=15)
@given(st.permutations(range(5)))
def test_result_is_bitwise_independent_of_the_order_of_points(image: OpenImage, order: list[int]) -> None:
    drags = random_drags(batch=1, count=5)
    drags.handles[0, 3] = drags.handles[0, 1]  # two drags with the same handle
    index = torch.tensor(order)
    shuffled = DragBatch(drags.handles[:, index], drags.targets[:, index], drags.valid)
    config = PredictConfig(rounds=2, stop_px=0.0)
    a, b = (predict(image, each, config) for each in (drags, shuffled))
    assert torch.equal(a.latent, b.latent)
    for field in ("points", "distances", "confidences"):
        assert torch.equal(getattr(a, field)[:, index], getattr(b, field))


def test_earlier_drags_of_an_image_do_not_change_the_result(images: OpenImage) -> None:
    """What is stored with an open image does not depend on earlier drags."""
    used, config, drags = first(images), PredictConfig(rounds=2, stop_px=0.0), random_drags(batch=1)
    predict(used, random_drags(batch=1, seed=4), config)
    assert torch.equal(predict(used, drags, config).latent, predict(first(images), drags, config).latent)


def test_latent_matches_the_features_and_has_no_gradient(image: OpenImage) -> None:
    result = predict(image, random_drags(batch=1))
    expected = image.synthesis.generator.features(result.latent, block=3)
    torch.testing.assert_close(result.features.last, expected.last, atol=1e-4, rtol=1e-4)
    assert not result.latent.requires_grad
    torch.testing.assert_close(result.distances, (result.points - random_drags(batch=1).targets).norm(dim=2))


# --- anchors ---------------------------------------------------------------------------------------------------------


def test_batch_of_a_drag() -> None:
    drags = batch_of(Drag.of([[1, 2]], [[3, 4]], (32, 32), anchors=[[9, 9]]))
    assert drags.handles.tolist() == [[[1.0, 2.0], [9.0, 9.0]]]
    assert drags.targets.tolist() == [[[3.0, 4.0], [9.0, 9.0]]]
    assert drags.valid.tolist() == [[True, True]]


def test_anchors_reach_the_predictor(image: OpenImage) -> None:
    plain, anchored = (
        predict(image, batch_of(Drag.of([[8, 8]], [[14, 8]], (32, 32), anchors=anchors)), PredictConfig(rounds=1))
        for anchors in (None, [[25, 25]])
    )
    assert (plain.latent - anchored.latent).abs().max() > 1e-4


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"stop_px": -1.0}])
def test_invalid_configs(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PredictConfig(**changes)
