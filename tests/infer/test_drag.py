"""Drags by all methods: choice of method and settings, budget, start and references."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeRefiner, set_clock
from learned import tiny_nets

from autodrag.edits import Parameters
from autodrag.errors import AutodragError
from autodrag.images import to_uint8
from autodrag.infer import drag as module
from autodrag.infer import task as task_module
from autodrag.infer.drag import DragSettings, choose_method, choose_settings, run_drag, warm_up
from autodrag.infer.draggan import DragganConfig
from autodrag.infer.locate import LocateConfig
from autodrag.infer.open_image import OpenImage
from autodrag.infer.predict import PredictConfig, Prediction
from autodrag.infer.task import Control, Drag, DragResult, References
from autodrag.nets import layers as layers_module
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Generator, GeneratorConfig

HANDLES, TARGETS = torch.tensor([[8.0, 8.0], [20.0, 12.0]]), torch.tensor([[14.0, 8.0], [20.0, 18.0]])
REFINER = LocateConfig(steps=7, stop_px=1.0, feature_block=2)


def drag(**options: Any) -> Drag:
    return Drag.of(HANDLES, TARGETS, (32, 32), **options)


@pytest.fixture(scope="module")
def image(tiny_generator: Generator) -> OpenImage:
    latent = tiny_generator.map(torch.randn(1, 32, generator=torch.Generator().manual_seed(3)))
    return OpenImage.of(tiny_generator, latent, tiny_nets(tiny_generator))


# --- methods and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "without", "with_one"),
    [("refine", "refine", "refine"), ("auto", "refine", "both"), ("both", None, "both"), ("predict", None, "predict")],
)
def test_methods_are_chosen(method: str, without: str | None, with_one: str) -> None:
    assert choose_method(method, can_predict=True, checkpoint="c") == with_one
    if without is not None:
        assert choose_method(method, can_predict=False, checkpoint="c") == without
    else:
        with pytest.raises(AutodragError, match=f"method '{method}' needs a predictor, and 'c' has none; train one"):
            choose_method(method, can_predict=False, checkpoint="c")


def test_soft_masks_belong_to_the_published_loop() -> None:
    assert chosen("refine", preset="draggan", outside="soft").method == "refine"
    for method in ("predict", "both"):
        with pytest.raises(AutodragError):
            chosen(method, preset="draggan", outside="soft")
    with pytest.raises(AutodragError, match="outside 'soft' has no effect with the preset default; use draggan"):
        chosen("refine", outside="soft")


@pytest.mark.parametrize("method", ["Both", "", "fast"])
def test_unknown_methods_are_refused(method: str) -> None:
    with pytest.raises(AutodragError, match=f"method '{method}' is not known; expected auto, predict, refine or both"):
        choose_method(method, can_predict=True, checkpoint="c")


def chosen(method: Any, **parameters: Any) -> DragSettings:
    config = GeneratorConfig(resolution=32, z_dim=32, w_dim=32, mapping_layers=2, channel_base=256)
    return choose_settings(Parameters.of(**parameters), method, config)


def test_settings_are_passed_to_the_configs() -> None:
    ours: dict[str, Any] = {"steps": 3, "space": "w+", "edit_layers": 4, "feature_block": 2, "stop_px": 1.5}
    settings = chosen("both", rounds=2, **ours)
    assert settings.refiner == replace(LocateConfig.for_image((32, 32)), **ours)
    assert settings.predictor == PredictConfig(rounds=2, stop_px=1.5) and settings.method == "both"
    settings = chosen("refine", preset="draggan", lr=0.1, **ours)
    assert settings.refiner == replace(DragganConfig.for_image((32, 32)), lr=0.1, **ours)


def test_defaults() -> None:
    settings = chosen("both", budget_s=2.0)  # the budget is part of the drag's control
    assert settings == DragSettings("both", LocateConfig.for_image((32, 32)), PredictConfig(stop_px=0.5))
    assert chosen("refine", preset="draggan").refiner == DragganConfig.for_image((32, 32))


def test_refiner_settings_are_allowed_with_the_predictor() -> None:
    assert chosen("predict", steps=3, space="w").predictor == PredictConfig(stop_px=0.5)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("predict", {"edit_layers": 3}, "edit_layers 3 has no effect with method 'predict' and preset 'default'"),
        ("predict", {"feature_block": 2}, "feature_block 2 has no effect with method 'predict'"),
        ("refine", {"rounds": 2}, "rounds 2 has no effect with method 'refine' and preset 'default'; leave it out"),
        ("refine", {"rounds": 2, "preset": "draggan"}, "rounds 2 has no effect with .* preset 'draggan'"),
        ("predict", {"preset": "draggan"}, "preset 'draggan' is a refiner, and method 'predict' does not refine"),
        ("refine", {"lr": 0.1}, "lr 0.1 has no effect with the preset default"),
        ("refine", {"feature_block": 4}, "feature_block 4 does not exist; this generator has blocks 0 to 3"),
        ("refine", {"edit_layers": 9}, "edit_layers 9 is too large; this generator has 8 layers"),
        ("both", {"edit_layers": 9, "preset": "draggan"}, "edit_layers 9 is too large"),
    ],
)
def test_settings_without_effect_are_refused(method: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(AutodragError, match=message):
        chosen(method, **parameters)


# --- predictor and refiner together ----------------------------------------------------------------------------------


class FakePredictor:
    """Leaves all points at a given distance from their targets; records its arguments."""

    def __init__(self, left: float, seconds: float, clock: list[float]) -> None:
        self.left, self.seconds, self.clock = left, seconds, clock
        self.calls: list[tuple[DragBatch, PredictConfig, Control]] = []

    def __call__(self, image: OpenImage, drags: DragBatch, config: PredictConfig, control: Control) -> Prediction:
        self.calls.append((drags, config, control))
        self.clock[0] += self.seconds
        distances = torch.full(drags.handles.shape[:2], self.left)
        points = drags.targets + torch.tensor([self.left, 0.0])
        confidences = torch.full_like(distances, 0.8)
        return Prediction(image.latent + 1, image.features, points, confidences, distances, 3)


Run = Callable[..., tuple[DragResult, FakePredictor]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, image: OpenImage) -> Run:
    """Drag with a predictor that leaves the points `left` px from their targets after `seconds`."""

    def run(
        left: float = 5.0,
        seconds: float = 0.0,
        method: Any = "both",
        task: Drag | None = None,
        refiner: Any = REFINER,
        predictor: PredictConfig | None = None,
        opened: OpenImage = image,
        **control: Any,
    ) -> tuple[DragResult, FakePredictor]:
        clock = [0.0]
        set_clock(monkeypatch, lambda: clock[0], task_module)
        fake = FakePredictor(left, seconds, clock)
        monkeypatch.setattr(module, "predict", fake)
        settings = DragSettings(method, refiner, predictor or PredictConfig())
        return run_drag(opened, task or drag(), settings, Control(**control, started=0.0)), fake

    return run


@pytest.mark.parametrize("refiner", [REFINER, DragganConfig(stop_px=1.0)])
def test_refiner_starts_halfway_to_the_prediction(
    run: Run, fake_refiner: FakeRefiner, image: OpenImage, refiner: Any
) -> None:
    result, _ = run(left=5.0, refiner=refiner)
    (call,) = fake_refiner.calls
    assert call.start is not None
    torch.testing.assert_close(call.start.latent, image.latent + 0.5)  # the prediction differs by 1
    torch.testing.assert_close(call.start.points, (HANDLES + TARGETS + torch.tensor([5.0, 0.0])) / 2)
    assert call.image is image  # the length of the edit is measured from the open image
    assert (result.method, result.rounds, result.steps, result.reason) == ("both", 3, 5, "arrived")
    assert result.distances.tolist() == [0.5, 0.5]  # the refiner's distances


def test_results_contain_the_handles_of_the_task(run: Run, image: OpenImage) -> None:
    """The result describes the original drag, independent of the start of the refiner."""
    for refiner in (REFINER, replace(DragganConfig.for_image((32, 32)), steps=2)):
        result, _ = run(left=5.0, refiner=refiner)
        assert result.handles.tolist() == HANDLES.tolist() and result.targets.tolist() == TARGETS.tolist()


def test_predictor_and_refiner_track_the_open_image(run: Run, fake_refiner: FakeRefiner, image: OpenImage) -> None:
    run(left=5.0)
    known = fake_refiner.calls[0].drag.references
    assert known is not None
    assert torch.equal(known.handles, HANDLES) and known.layers.stack == image.layers.stack
    run(left=5.0, task=replace(drag(), references=known))
    assert fake_refiner.calls[1].drag.references is known


def test_prediction_has_references_for_the_next_drag(run: Run, image: OpenImage) -> None:
    result, _ = run(left=0.1, method="predict")
    assert result.references is not None
    assert torch.equal(result.references.handles, HANDLES)
    assert result.references.layers.stack == image.layers.stack
    other = References(image.layers, HANDLES + 1)
    assert run(left=0.1, task=replace(drag(), references=other))[0].references is other


def test_prediction_is_returned_if_the_refiner_is_worse(run: Run, fake_refiner: FakeRefiner, image: OpenImage) -> None:
    slow = replace(REFINER, steps=0)  # the result stays at the start
    result, _ = run(left=1.2, refiner=slow)
    assert torch.equal(result.latent, image.latent + 1) and result.distances.tolist() == pytest.approx([1.2, 1.2])
    assert (result.method, result.rounds, result.steps) == ("both", 3, 0) and result.references is not None
    anchored, _ = run(left=1.2, refiner=slow, task=drag(anchors=[[1, 1]]))  # anchors are kept only roughly
    torch.testing.assert_close(anchored.latent, image.latent + 0.5)


def test_refiner_does_not_run_after_arrival(run: Run, fake_refiner: FakeRefiner, image: OpenImage) -> None:
    result, _ = run(left=0.9)
    assert not fake_refiner.calls
    assert (result.rounds, result.steps, result.reason) == (3, 0, "arrived")
    assert torch.equal(result.latent, image.latent + 1)
    assert result.distances.tolist() == pytest.approx([0.9, 0.9])


def test_method_predict(run: Run, fake_refiner: FakeRefiner) -> None:
    far, predictor = run(left=5.0, method="predict", task=drag(anchors=[[1, 1]]))
    assert (far.method, far.reason, far.steps, far.rounds) == ("predict", "rounds", 0, 3)
    assert far.confidences.tolist() == pytest.approx([0.8, 0.8]) and not far.lost.any()
    assert far.points.shape == (2, 2)  # without the anchor
    assert predictor.calls[0][0].handles.shape == (1, 3, 2)
    assert run(left=0.5, method="predict")[0].reason == "arrived"
    assert not fake_refiner.calls


def test_points_with_low_confidence_are_lost(run: Run, image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_CONFIDENCE", 0.85)
    assert run(left=5.0, method="predict")[0].lost.tolist() == [True, True]


def test_method_refine(run: Run, fake_refiner: FakeRefiner, image: OpenImage) -> None:
    result, predictor = run(method="refine", opened=OpenImage.of(image.synthesis.generator, image.latent))
    assert not predictor.calls and fake_refiner.calls[0].start is None
    assert (result.method, result.rounds, result.steps) == ("refine", 0, 5)


@pytest.mark.parametrize("method", ["predict", "both"])
def test_error_without_a_predictor(run: Run, method: str, image: OpenImage) -> None:
    with pytest.raises(ValueError, match=f"method '{method}' needs a predictor"):
        run(method=method, opened=OpenImage.of(image.synthesis.generator, image.latent))


def test_predictor_and_refiner_share_the_budget(run: Run, fake_refiner: FakeRefiner) -> None:
    result, predictor = run(left=5.0, seconds=0.5, budget_s=2.0)
    assert predictor.calls[0][2].budget_s == 2.0
    assert fake_refiner.calls[0].control is predictor.calls[0][2]  # both share one clock
    result, _ = run(left=5.0, seconds=2.5, budget_s=2.0)
    assert len(fake_refiner.calls) == 1
    assert (result.reason, result.steps, result.seconds) == ("budget", 0, 2.5)


def test_stop_event_prevents_the_refiner(run: Run, fake_refiner: FakeRefiner) -> None:
    stop = threading.Event()
    stop.set()
    result, predictor = run(left=5.0, stop=stop)
    assert predictor.calls[0][2].stop is stop
    assert not fake_refiner.calls and result.reason == "stopped"


def test_task_is_passed_to_predictor_and_refiner(run: Run, fake_refiner: FakeRefiner) -> None:
    task, seen, config = drag(anchors=[[1, 1]]), list[DragResult](), PredictConfig(rounds=7)
    _, predictor = run(left=5.0, task=task, predictor=config, callback=seen.append)
    ((drags, given, _),) = predictor.calls
    assert given == config
    assert drags.targets[0, 2].tolist() == [1.0, 1.0]
    (call,) = fake_refiner.calls
    assert call.drag.anchors is task.anchors and call.config is REFINER
    assert len(seen) == 6


UPPER = np.arange(32)[:, None].repeat(32, axis=1) < 16
"""A mask: the upper half may change. It contains the first handle and not its whole path."""


@pytest.mark.parametrize("method", ["refine", "both"])
def test_with_a_mask_the_edit_fills_a_layer(run: Run, fake_refiner: FakeRefiner, image: OpenImage, method: Any) -> None:
    """The refiner knows nothing of the mask: its image cannot change outside."""
    result, _ = run(left=5.0, task=drag(mask=UPPER), method=method)
    (call,) = fake_refiner.calls
    assert call.drag.mask is None
    base, layer = call.image.layers.stack
    assert base is image.layers.stack[0] and layer.latent is image.latent
    assert layer.region is not None and layer.region.mask.tolist() == UPPER.tolist()
    below, above = result.layers.stack
    assert below is base and above.region is layer.region and torch.equal(above.latent, result.latent)


def test_a_soft_mask_reaches_the_refiner(run: Run, fake_refiner: FakeRefiner, image: OpenImage) -> None:
    task = drag(mask=UPPER, outside="soft")
    result, _ = run(task=task, method="refine")
    (call,) = fake_refiner.calls
    assert call.drag is task and call.image is image and len(result.layers) == 1


# --- with real parts -------------------------------------------------------------------------------------------------


def one_point() -> Drag:
    return Drag.of(HANDLES[:1], TARGETS[:1], (32, 32))


def test_refiner_improves_the_prediction(image: OpenImage) -> None:
    """The refiner corrects the predictions of random weights."""
    only, both, again = (
        run_drag(image, one_point(), DragSettings(method, REFINER, PredictConfig()))
        for method in ("predict", "both", "both")
    )
    assert float(both.distances.sum()) < float(only.distances.sum())
    assert both.rounds == only.rounds and both.steps > 0
    assert torch.equal(both.latent, again.latent)
    assert only.features is not None
    shown = image.synthesis.generator.image(only.latent, only.features)
    torch.testing.assert_close(shown, image.synthesis.generator(only.latent), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["refine", "both"])
def test_draggan_runs_with_both_methods(image: OpenImage, method: Any) -> None:
    config = replace(DragganConfig.for_image((32, 32)), steps=3, lr=0.01, stop_px=0.1)
    result = run_drag(image, one_point(), DragSettings(method, config, PredictConfig()))
    assert result.method == method and not torch.equal(result.latent, image.latent)


def test_warm_up_does_not_change_results(image: OpenImage) -> None:
    state = torch.random.get_rng_state()
    settings = DragSettings("predict", REFINER, PredictConfig())
    before = run_drag(image, drag(), settings)
    warm_up(image)
    assert torch.equal(before.latent, run_drag(image, drag(), settings).latent)
    assert torch.equal(torch.random.get_rng_state(), state)


# --- masks -----------------------------------------------------------------------------------------------------------

LOWER = np.zeros((32, 32), dtype=bool)
LOWER[18:30, 3:29] = True
DRAGGAN = replace(DragganConfig.for_image((32, 32)), steps=4, lr=0.05, stop_px=0.1)
METHODS: list[Any] = [
    pytest.param("predict", REFINER, id="predict"),
    pytest.param("refine", REFINER, id="refine"),
    pytest.param("both", REFINER, id="both"),
    pytest.param("refine", DRAGGAN, id="draggan"),
    pytest.param("both", DRAGGAN, id="both with draggan"),
]


def at(x: float, y: float, **options: Any) -> Drag:
    """A drag by 4 px to the right."""
    return Drag.of([[x, y]], [[x + 4, y]], (32, 32), **options)


def shown(image: OpenImage) -> np.ndarray:
    with torch.no_grad():
        return to_uint8(image.rendered.picture)[0]


@pytest.mark.parametrize(("method", "refiner"), METHODS)
def test_nothing_changes_outside_a_mask(image: OpenImage, method: Any, refiner: Any) -> None:
    """Every method, one edit after another: the first mask, the same again, another one, no mask, a mask."""
    opened, settings = image, DragSettings(method, refiner, PredictConfig())
    counts = []
    for task in (
        at(8, 8, mask=UPPER),
        at(20, 9, mask=UPPER),
        at(10, 22, mask=LOWER),
        at(10, 22),
        at(8, 8, mask=UPPER, anchors=[[20, 20]]),
    ):
        before = shown(opened)
        result = run_drag(opened, task, settings)
        changed = (result.image != before).any(axis=2)
        mask = np.ones((32, 32), dtype=bool) if task.mask is None else task.mask.numpy()
        assert changed[mask].any() and not changed[~mask].any()
        opened = OpenImage(result.synthesis.moved(result.latent), image.editor, result.features)
        assert np.array_equal(shown(opened), result.image)
        assert np.array_equal(shown(OpenImage.of(image.synthesis.generator, result.layers)), result.image)
        counts.append(len(result.layers))
    assert counts == [2, 2, 3, 3, 4]


@pytest.mark.parametrize(("method", "refiner"), METHODS)
def test_every_state_on_the_path_respects_the_mask(image: OpenImage, method: Any, refiner: Any) -> None:
    states: list[DragResult] = []
    before, settings = shown(image), DragSettings(method, refiner, PredictConfig())
    run_drag(image, at(8, 8, mask=UPPER), settings, Control(callback=states.append))
    assert bool(states) == (method != "predict")
    for state in states:
        assert np.array_equal(state.image[~UPPER], before[~UPPER])
        assert len(state.layers) == 2


def test_features_that_trackers_read_are_the_blended_ones(image: OpenImage) -> None:
    result = run_drag(image, at(8, 8, mask=UPPER), DragSettings("both", REFINER, PredictConfig()))
    assert result.features is not None
    for old, new in zip(image.features.outputs, result.features.outputs, strict=False):
        lower = slice(new.shape[2] // 2, None)
        assert torch.equal(old[:, :, lower], new[:, :, lower]) and not torch.equal(old, new)


def test_a_mask_does_not_prevent_arrival(image: OpenImage) -> None:
    refiner = replace(REFINER, steps=30, prior=0.5)
    before, result = (
        run_drag(image, at(8, 8, mask=UPPER), DragSettings("refine", replace(refiner, steps=steps), PredictConfig()))
        for steps in (0, 30)
    )
    assert float(result.distances[0]) < 0.5 * float(before.distances[0])


def test_known_features_are_not_computed_again(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first mask, and with the same mask again."""
    settings = DragSettings("refine", replace(REFINER, steps=1), PredictConfig())
    for _ in range(2):
        opened = image.within(torch.from_numpy(UPPER), HANDLES[0])
        known = opened.features
        assert known is image.features
        torch.testing.assert_close(opened.synthesis.features(opened.latent, block=3).outputs, known.outputs)
        result = run_drag(image, at(8, 8, mask=UPPER), settings)
        image = OpenImage(result.synthesis.moved(result.latent), image.editor)
    other = image.within(torch.from_numpy(LOWER), HANDLES[0])
    assert other.known is None and len(other.layers) == 3


def test_the_layer_under_the_handle_is_edited(image: OpenImage) -> None:
    """With two layers in a mask, the latent of the one that shows the handle is optimised, and the other follows."""
    settings = DragSettings("refine", replace(REFINER, steps=2), PredictConfig())
    first = run_drag(image, at(8, 8, mask=UPPER), settings)
    opened = OpenImage.of(image.synthesis.generator, first.layers)
    for point, index in (((8, 8), 1), ((8, 26), 0)):
        result = run_drag(opened, at(*point), settings)
        changes = [new.latent - old.latent for new, old in zip(result.layers.stack, first.layers.stack, strict=True)]
        assert torch.equal(result.layers.stack[index].latent, result.latent)
        torch.testing.assert_close(changes[0], changes[1], atol=1e-5, rtol=1e-4)
        assert changes[0].abs().max() > 0


def test_references_of_an_image_before_a_mask(image: OpenImage) -> None:
    """The appearance of the handles in the first image is tracked through edits with the same and with another mask."""
    settings = DragSettings("both", REFINER, PredictConfig())
    opened, task, references = image, at(8, 8, mask=UPPER), None
    for mask in (UPPER, LOWER | UPPER):
        result = run_drag(opened, task, settings)
        assert result.references is not None and references in (None, result.references)
        references = result.references
        origin = opened.origin(references)
        for one, two in zip(image.features.outputs, origin.features.outputs, strict=True):
            torch.testing.assert_close(one, two)
        opened = OpenImage(result.synthesis.moved(result.latent), image.editor, result.features)
        task = replace(at(12, 8, mask=mask), references=references)
    before = shown(opened)
    result = run_drag(opened, task, settings)
    assert result.references is references
    assert not (result.image != before)[~(LOWER | UPPER)].any()


def test_too_many_masks_are_refused(image: OpenImage, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DragSettings("predict", REFINER, PredictConfig(rounds=1))
    monkeypatch.setattr(layers_module, "MAX_LAYERS", 2)
    result = run_drag(image, at(8, 8, mask=UPPER), settings)
    opened = OpenImage.of(image.synthesis.generator, result.layers, image.editor)
    with pytest.raises(AutodragError, match="the image consists of 2 regions, and this mask would make more than 2"):
        run_drag(opened, at(10, 22, mask=LOWER), settings)
    assert len(run_drag(opened, at(8, 8, mask=UPPER), settings).layers) == 2
