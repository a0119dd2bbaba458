"""Trust: calibration on made errors, exact geometry of contradictions, and outcomes on the shipped checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodrag.checkpoint import GENERATOR_FILE, load_generator
from autodrag.errors import CheckpointError
from autodrag.infer.editor import DragEditor
from autodrag.infer.task import Obstacle
from autodrag.infer.trust import Calibration, contradicts, load_calibration

CRITTERS = Path(__file__).parents[2] / "checkpoints" / "critters"


@pytest.fixture(scope="module")
def critters() -> DragEditor:
    return DragEditor.load(CRITTERS, device="cpu")


# --- calibration -----------------------------------------------------------------------------------------------------


def made_points(seed: int, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Signs, and errors whose spread they determine."""
    rng = np.random.default_rng(seed)
    cues = np.stack([rng.uniform(0, 1, count), rng.uniform(0, 0.3, count), rng.uniform(0, 0.3, count)], axis=1)
    spread = np.exp(-3 - 1.5 * cues[:, 0] + 4 * cues[:, 1] + 2 * cues[:, 2])
    return cues, spread * np.abs(rng.standard_normal(count))


def test_a_fit_is_right_on_other_points() -> None:
    fitted = Calibration.fit(*made_points(0), wrong=0.05)
    cues, errors = made_points(1)
    said = fitted.uncertainties(cues, 1)
    assert float((errors <= 2 * said).mean()) == pytest.approx(0.9, abs=0.02)
    assert float((said > fitted.lost)[errors <= 0.05].mean()) == pytest.approx(0.1, abs=0.02)
    assert (said > fitted.lost)[errors > 0.05].mean() > 2 * (said > fitted.lost)[errors <= 0.05].mean()


def test_uncertainties_scale_with_the_image_and_end_at_its_height() -> None:
    cues = np.array([[0.9, 0.01, 0.01], [0.0, 5.0, 5.0]])
    small, large = (Calibration().uncertainties(cues, height) for height in (64, 512))
    np.testing.assert_allclose(large, 8 * small)
    assert small[0] < 64 / 8 and small[1] == 64


@pytest.mark.parametrize("wrong", [{"weights": (1.0, float("nan"), 0.0)}, {"bias": float("inf")}, {"lost": 0.0}])
def test_calibrations_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected three finite weights"):
        Calibration(**wrong)


def test_a_checkpoint_has_its_calibration(tmp_path: Path) -> None:
    assert load_calibration(tmp_path, "a" * 16) is None
    known = Calibration((1.0, 2.0, 3.0), -1.0, 0.5)
    (tmp_path / "trust.json").write_text(json.dumps({"generator": "a" * 16, **asdict(known)}))
    assert load_calibration(tmp_path, "a" * 16) == known
    with pytest.raises(CheckpointError, match="was not fitted to generator"):
        load_calibration(tmp_path, "b" * 16)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"generator": "g"}', '{"generator": "g", "weights": [1], "bias": 0, "lost": 1}', "[" * 9999],
)
def test_broken_calibrations_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "trust.json").write_text(text)
    with pytest.raises(CheckpointError, match="run `autodrag eval trust --calibrate` again"):
        load_calibration(tmp_path, "g")


# --- contradictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handles", "targets", "expected"),
    [
        ([[0, 0], [10, 0]], [[5, 5], [15, 5]], False),  # together
        ([[0, 0], [10, 0]], [[0, 0], [14, 0]], False),  # stretched
        ([[0, 0], [10, 0]], [[5, 0], [5, 0]], True),  # to one place
        ([[0, 0], [10, 0]], [[10, 0], [0, 0]], True),  # swapped
        ([[0, 0], [2, 0]], [[0, 0], [12, 0]], True),  # torn from an anchor
        ([[0, 0]], [[30, 0]], False),
    ],
)
def test_contradictions(handles: list[list[float]], targets: list[list[float]], expected: bool) -> None:
    assert contradicts(torch.tensor(handles).float(), torch.tensor(targets).float()) == expected


# --- outcomes --------------------------------------------------------------------------------------------------------


def test_a_good_drag_arrives(critters: DragEditor) -> None:
    before = critters.open(seed=28)
    result = critters.drag([[40, 40]], [[32, 40]])
    assert result.outcome == "arrived" and result.obstacle is None and not result.lost.any()
    assert result.uncertainties is not None and 0 < result.uncertainties[0] < 8
    assert (result.image != before).any()
    assert result.report()["outcome"] == "arrived"


@pytest.mark.parametrize(
    ("task", "obstacle"),
    [
        ({"handles": [[3, 3]], "targets": [[20, 20]]}, "texture"),
        ({"handles": [[20, 40], [44, 40]], "targets": [[32, 40], [32, 40]]}, "contradiction"),
        ({"handles": [[40, 40]], "targets": [[30, 40]], "mask": "corner"}, "mask"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "refine", "both"])
def test_a_failed_drag_changes_nothing_and_says_why(
    critters: DragEditor, task: dict[str, Any], obstacle: Obstacle, method: str
) -> None:
    if "mask" in task:
        mask = np.zeros((64, 64), dtype=bool)
        mask[:20, :20] = True
        task = {**task, "mask": mask}
    before = critters.open(seed=28)
    result = critters.drag(**task, method=method)
    assert (result.outcome, result.obstacle) == ("failed", obstacle)
    assert np.array_equal(result.image, before) and np.array_equal(critters.image, before)
    np.testing.assert_array_equal(result.points, result.handles)
    assert np.array_equal(critters.undo(), before)


def test_a_failed_drag_replays(critters: DragEditor, tmp_path: Path) -> None:
    critters.open(seed=28)
    critters.drag([[3, 3]], [[20, 20]])
    critters.drag([[40, 40]], [[34, 40]])
    after = critters.image
    critters.save_session(tmp_path / "session.json")
    again = critters.sibling()
    assert np.array_equal(again.load_session(tmp_path / "session.json"), after)


def test_the_shipped_calibration_belongs_to_the_shipped_generator() -> None:
    assert (CRITTERS / GENERATOR_FILE).is_file()
    assert load_calibration(CRITTERS, load_generator(CRITTERS)[1]) is not None
