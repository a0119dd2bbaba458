"""The task, its limits and its result; error messages name the invalid value."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from autodrag.errors import AutodragError, NothingToDo
from autodrag.images import to_uint8
from autodrag.infer.task import Control, Drag, DragResult, References, check_device, check_mask, check_points, renderer
from autodrag.nets.layers import LayeredGenerator, Layers
from autodrag.nets.stylegan2 import Generator, seed_z

SIZE = (32, 48)


def drag(handles: Any = ((5, 5),), targets: Any = ((9, 9),), **options: Any) -> Drag:
    return Drag.of(handles, targets, SIZE, **options)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_points_become_tensors(kind: Callable[[Any], Any]) -> None:
    task = drag(kind([[1, 2], [47.4, -0.5]]), kind([[3, 4], [5, 6]]))
    torch.testing.assert_close(task.handles, torch.tensor([[1.0, 2.0], [47.4, -0.5]]))
    assert task.targets.tolist() == [[3, 4], [5, 6]]
    assert task.mask is None and task.anchors is None and task.references is None


@pytest.mark.parametrize(
    ("handles", "targets", "message"),
    [
        ([], [], "there are no points to drag; give at least one"),
        ([[1, 2]], [], r"the numbers of handles \(1\) and targets \(0\) differ; give them in pairs"),
        ([[1, 2]], [[1, 2], [3, 4]], r"the numbers of handles \(1\) and targets \(2\) differ"),
        ([[float("nan"), 2]], [[1, 2]], "handle nan,2 is not finite"),
        ([[1, 2]], [[1, float("inf")]], "target 1,inf is not finite"),
        ([[48, 2]], [[1, 2]], "handle 48,2 lies outside the image; x goes from 0 to 47, y from 0 to 31"),
        ([[1, -0.6]], [[1, 2]], "handle 1,-0.6 lies outside the image"),
        ([[1, 2]], [[1, 32]], "target 1,32 lies outside the image"),
        ([[5, 5], [5.4, 4.6]], [[1, 1], [2, 2]], "two handles lie on the pixel 5,5"),
        (np.array([1, 2]), np.array([1, 2]), r"the handles have shape \(2,\); expected \(N, 2\)"),
        ([[1, 2, 3]], [[1, 2]], r"the handles have shape \(1, 3\)"),
        (np.array("abc"), [[1, 2]], "the handles are not numbers"),
        ([[1, 2], [3]], [[1, 2]], "the handles are not numbers"),
        ([[1, 2]] * 1001, [[1, 2]], "1001 handles are more than the limit of 1000"),
    ],
)
def test_invalid_points(handles: Any, targets: Any, message: str) -> None:
    with pytest.raises(AutodragError, match=message) as caught:
        drag(handles, targets)
    assert not isinstance(caught.value, NothingToDo)


def test_nothing_to_do() -> None:
    with pytest.raises(NothingToDo, match="nothing to do: every handle already lies on its target"):
        drag([[1, 2], [3, 4]], [[1, 2], [3, 4]])
    drag([[1, 2], [3, 4]], [[1, 2], [3, 5]])  # one point stays, the other moves


def test_anchors() -> None:
    assert drag(anchors=None).anchors is None and drag(anchors=[]).anchors is None
    with pytest.raises(AutodragError, match="anchor 5,5 lies on a handle"):
        drag(anchors=[[5, 5]])
    with pytest.raises(AutodragError, match="anchor 99,5 lies outside"):
        drag(anchors=[[99, 5]])
    handles, targets = drag(anchors=[[1, 1], [2, 2]]).with_anchors()
    assert handles.tolist() == [[5, 5], [1, 1], [2, 2]] and targets.tolist() == [[9, 9], [1, 1], [2, 2]]
    assert drag().with_anchors()[0].tolist() == [[5, 5]]


def test_masks() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    with pytest.raises(AutodragError, match="the mask is False everywhere; set True where the image may change"):
        drag(mask=mask)
    with pytest.raises(AutodragError, match=r"the mask has shape \(48, 32\), and the image \(32, 48\)"):
        drag(mask=mask.T)
    with pytest.raises(AutodragError, match="the mask holds float64; expected booleans"):
        check_mask(mask.astype(np.float64), SIZE)
    mask[0, 0] = True
    task = drag(mask=mask)
    mask[0, 0] = False  # the task has a copy
    assert task.mask is not None and task.mask.sum() == 1 and bool(task.mask[0, 0])
    assert task.outside == "exact" and drag(mask=mask | True, outside="soft").outside == "soft"
    assert drag(mask=np.ones(SIZE, dtype=bool)).mask is None  # nothing is fixed


def test_points_by_name() -> None:
    assert check_points([], SIZE, "anchor").shape == (0, 2)
    assert check_points([(1, 2)], SIZE, "anchor").dtype == np.float64


def test_devices() -> None:
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(AutodragError, match="device 'gpu' cannot be used here; try --device cpu"):
        check_device("gpu")


# --- limits ----------------------------------------------------------------------------------------------------------


def test_budget_starts_with_the_drag() -> None:
    now = time.monotonic()
    assert not Control(started=now - 100).expires()
    assert Control(5.0, started=now - 6).expires() and not Control(60.0, started=now - 6).expires()
    assert Control(60.0, started=now - 6).expires(within=55.0)
    assert Control(started=now - 6).seconds == pytest.approx(6, abs=1)


def test_stop_event() -> None:
    stop = threading.Event()
    control = Control(stop=stop)
    assert not control.stopped and not Control().stopped
    stop.set()
    assert control.stopped


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_invalid_budgets(budget: float) -> None:
    with pytest.raises(AutodragError, match=r"budget_s .* is not usable; expected a positive number of seconds"):
        Control(budget)


# --- results ---------------------------------------------------------------------------------------------------------


Result = Callable[..., DragResult]


@pytest.fixture
def result(tiny_generator: Generator) -> Result:
    """Build a result; arguments are the function that renders it, and other values of its fields."""
    layers = Layers.of(torch.zeros(1, 8, 32))
    values: dict[str, Any] = dict(
        latent=torch.ones(1, 8, 32),
        synthesis=LayeredGenerator(tiny_generator, layers.stack),
        handles=np.array([[10.0, 12.0], [1.0, 2.0]]),
        targets=np.array([[20.0, 14.0], [3.0, 4.0]]),
        points=np.array([[20.5, 14.0], [1.0, 2.00001]]),
        distances=np.array([0.5, 2.82842]),
        confidences=np.array([0.9, 0.12345]),
        lost=np.array([False, True]),
        method="both",
        rounds=2,
        steps=5,
        seconds=0.123456,
        reason="stalled",
        references=References(layers, torch.zeros(2, 2)),
    )
    return lambda render=None, **changes: DragResult(**(values | changes), render=render or blank)


def blank() -> np.ndarray:
    return np.zeros((4, 4, 3), np.uint8)


def test_report_has_one_entry_per_point(result: Result) -> None:
    said = result(
        landmark_distances=(1.23456, None), uncertainties=np.array([0.51234, 7.0]), outcome="nearer", obstacle="far"
    )
    report = said.report()
    assert report == {
        "points": [
            {
                "handle": [10.0, 12.0],
                "target": [20.0, 14.0],
                "point": [20.5, 14.0],
                "distance": 0.5,
                "landmark_distance": 1.2346,
                "confidence": 0.9,
                "uncertainty": 0.5123,
                "lost": False,
            },
            {
                "handle": [1.0, 2.0],
                "target": [3.0, 4.0],
                "point": [1.0, 2.0],
                "distance": 2.8284,
                "landmark_distance": None,
                "confidence": 0.1235,
                "uncertainty": 7.0,
                "lost": True,
            },
        ],
        "outcome": "nearer",
        "obstacle": "far",
        "method": "both",
        "rounds": 2,
        "steps": 5,
        "seconds": 0.1235,
        "reason": "stalled",
    }


def test_image_is_rendered_once_and_on_demand(result: Result) -> None:
    renders: list[int] = []

    def render() -> np.ndarray:
        renders.append(1)
        return blank()

    edited = result(render)
    assert not renders
    assert edited.image is edited.image and renders == [1]


def test_the_code_of_a_result_is_that_of_its_latent(result: Result) -> None:
    (layer,) = result().layers.stack
    assert layer.region is None and torch.equal(layer.latent, torch.ones(1, 8, 32))


def test_image_from_features_equals_the_image_of_the_latent(tiny_generator: Generator) -> None:
    latent = tiny_generator.map(seed_z(3, 32))
    with torch.no_grad():
        expected = to_uint8(tiny_generator(latent))[0]
    synthesis = LayeredGenerator(tiny_generator, Layers.of(torch.zeros_like(latent)).stack)
    image = renderer(synthesis, latent, synthesis.features(latent, block=2))()
    assert image.shape == (32, 32, 3) and np.abs(image.astype(int) - expected.astype(int)).max() <= 1
