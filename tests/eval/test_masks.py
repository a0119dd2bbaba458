"""Drags with masks: the shape of the masks, what is measured, the rows of the table, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learned import save_learned, tiny_nets

from autodrag.cli import main
from autodrag.eval.masks import CASES, MODES, MaskExperiment, ellipse, hull, measured, steps_across
from autodrag.eval.methods import METHODS
from autodrag.eval.run import parse
from autodrag.eval.tables import cells
from autodrag.nets.stylegan2 import Generator

# --- masks -----------------------------------------------------------------------------------------------------------


def test_an_ellipse_contains_its_points_with_a_margin() -> None:
    handles, targets = torch.tensor([[20.0, 30.0], [24.0, 30.0]]), torch.tensor([[40.0, 34.0], [40.0, 20.0]])
    mask = ellipse(handles, targets, (64, 96), margin=0.1)
    assert mask.shape == (64, 96)
    for x, y in [*handles.int().tolist(), *targets.int().tolist()]:
        assert mask[y, x]
    assert not mask[0].any() and not mask[:, 80:].any()
    one = ellipse(torch.tensor([[30.0, 30.0]]), torch.tensor([[30.0, 30.0]]), (64, 64), margin=0.125)
    assert one[30, 22] and one[30, 38] and not one[30, 21]  # a circle of radius 8


def test_a_hull_of_a_rectangle() -> None:
    """Corners (10, 20) to (30, 40), of which two are targets; a margin of 8 px with round corners."""
    source, target = torch.tensor([[10.0, 20.0], [30.0, 20.0]]), torch.tensor([[10.0, 40.0], [30.0, 40.0]])
    mask = hull(source, target, (64, 96), margin=0.125)
    y, x = np.mgrid[:64, :96]
    outside_x = np.maximum(np.maximum(10 - x, x - 30), 0)
    outside_y = np.maximum(np.maximum(20 - y, y - 40), 0)
    expected = np.hypot(outside_x, outside_y) <= 8
    assert mask.shape == (64, 96) and np.array_equal(mask.numpy(), expected)
    assert not hull(source, target, (64, 96), margin=0.0)[19, 20] and hull(source, target, (64, 96), margin=0.0)[30, 20]


def test_a_hull_is_clipped_at_the_border() -> None:
    """Points of an object may lie outside the image; the mask then reaches its border."""
    points = torch.tensor([[-6.0, -6.0], [20.0, -6.0], [20.0, 20.0], [-6.0, 20.0]])
    mask = hull(points, points, (32, 32), margin=0.125)  # 4 px
    assert mask[:21, :25].all() and mask[24, 0] and not mask[25:].any() and not mask[:, 25:].any()


def test_a_hull_of_few_points() -> None:
    point = torch.tensor([[16.0, 16.0]])
    disk = hull(point, point, (32, 32), margin=0.125)
    assert disk[16, 12] and disk[12, 16] and not disk[16, 11] and not disk[13, 13]
    line = hull(point, torch.tensor([[24.0, 16.0]]), (32, 32), margin=0.0625)
    assert int(line[16].sum()) == 13 and int(line[:, 20].sum()) == 5


# --- measures --------------------------------------------------------------------------------------------------------


def test_change_is_measured_only_outside_the_mask() -> None:
    before, mask = np.full((4, 4, 3), 100, dtype=np.uint8), np.zeros((4, 4), dtype=bool)
    mask[:, :2] = True
    after = before.copy()
    after[mask] = 255
    assert measured(before, after, mask)["largest"] == measured(before, after, mask)["change"] == 0.0
    after[0, 2] = (90, 100, 130)  # of 24 values outside, two change
    found = measured(before, after, mask)
    assert (found["largest"], found["change"]) == (30.0, pytest.approx(40 / 24))
    swapped = measured(after, before, mask)  # changes have no sign, and uint8 does not overflow
    assert (swapped["largest"], swapped["change"]) == (30.0, pytest.approx(40 / 24))


def test_steps_across_a_border() -> None:
    image, mask = np.zeros((4, 6, 3), dtype=np.uint8), np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:4] = True
    image[mask] = (60, 0, 0)
    # Around 2 x 2 pixels lie eight pairs of neighbours. Each step is 60 in one of three channels.
    assert steps_across(image, mask) == pytest.approx(20.0)
    image[0, 2] = (60, 0, 0)  # one of the eight steps disappears
    assert steps_across(image, mask) == pytest.approx(20.0 * 7 / 8)
    image[0, 0] = 255  # far from the border
    assert steps_across(image, mask) == pytest.approx(20.0 * 7 / 8)
    assert steps_across(image, np.ones((4, 6), dtype=bool)) == 0.0


def test_a_seam_is_the_growth_of_the_step() -> None:
    """A picture with a step of 10 at the border of the mask gets one of 40, and then none."""
    mask = np.zeros((4, 4), dtype=bool)
    mask[:, :2] = True
    images = [np.where(mask[..., None], level, 100).repeat(3, axis=2).astype(np.uint8) for level in (110, 140, 100)]
    assert measured(images[0], images[1], mask)["seam"] == 30.0
    assert measured(images[0], images[2], mask)["seam"] == -10.0
    assert measured(images[0], images[0], mask) == {"largest": 0.0, "change": 0.0, "seam": 0.0}


# --- the experiment --------------------------------------------------------------------------------------------------


def experiment(checkpoint: Path, methods: str = "none") -> MaskExperiment:
    options = ["--checkpoint", str(checkpoint), "--methods", methods, "--steps", "2", "--pairs", "3", "--device", "cpu"]
    return MaskExperiment(parse(MaskExperiment, options))


def test_every_method_has_modes_and_every_case_a_name() -> None:
    assert set(MODES) == set(METHODS) - {"none"}
    assert {f"{kind} {mode}" for kind in ("whole", "cut") for modes in MODES.values() for mode in modes} <= set(CASES)


def test_rows_are_means_over_the_drags_of_a_case(landmark_checkpoint: Path) -> None:
    """Two drags; the mask of the second fills the image, so that it has no such case."""
    table = experiment(landmark_checkpoint)
    outside = {"largest": 9.0, "change": 3.0, "seam": 1.0}
    exact = {"distance": 4.0, "seconds": 2.0, "largest": 0.0, "change": 0.0, "seam": 0.5}
    first: dict[str, Any] = {"none": {"distance": 3.0, "seconds": 1.0}, "none whole": outside, "whole exact": exact}
    second: dict[str, Any] = {"none": {"distance": 5.0, "seconds": 3.0}}
    shared = {"points": 1, "method": "refine"}
    rows = table.rows([shared | {"cases": cases} for cases in (first, second)])
    found = {row["case"]: row for row in rows}
    assert set(found) == {"none", "none whole", "whole exact"}
    assert [found[case]["drags"] for case in found] == [2, 1, 1]
    assert found["none"]["distance"]["mean"] == 4.0 and found["none"]["change"] is None
    # Without a mask, the change outside it belongs to the same drag as its distance.
    assert (found["none whole"]["distance"]["mean"], found["none whole"]["change"]["mean"]) == (3.0, 3.0)
    assert (found["whole exact"]["distance"]["mean"], found["whole exact"]["largest"]["mean"]) == (4.0, 0.0)
    assert [line[:4] for line in cells(table.columns, rows)] == [
        ["1", "refine", "none", "2"],
        ["1", "refine", "none, measured outside whole", "1"],
        ["1", "refine", "whole, exact", "1"],
    ]


@pytest.fixture(scope="module")
def learned_checkpoint(
    landmark_checkpoint: Path, tiny_generator: Generator, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint with a landmark net and a predictor."""
    folder = save_learned(tmp_path_factory.mktemp("masks") / "tiny", tiny_generator, tiny_nets(tiny_generator))
    (folder / "landmarks.safetensors").write_bytes((landmark_checkpoint / "landmarks.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize("method", ["refine", "draggan", "predict", "both", "freedrag", "none"])
def test_exact_masks_change_nothing_outside(
    method: str, learned_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small masks, because the landmarks of a random net lie all over the image."""
    monkeypatch.setattr("autodrag.eval.masks.hull", lambda source, target, size: ellipse(source[:1], target[:1], size))
    table = experiment(learned_checkpoint, method)
    (pair, *_) = table.source.pairs(table.bench)
    record, picture = table.measure(method, pair, 1)
    cases, modes = record["cases"], MODES.get(method, ())
    expected = {f"{kind} {mode}" for kind in ("whole", "cut") for mode in modes}
    assert set(cases) == expected | {"none", "none whole", "none cut"}
    for kind in ("whole", "cut"):
        assert (cases[f"none {kind}"]["change"] > 0) == (method != "none")
        for mode in modes:
            case = cases[f"{kind} {mode}"]
            assert case["seconds"] > 0 and case["distance"] is not None
            assert (case["largest"] == 0) == (mode == "exact")
    assert (picture is None) == (not modes)
    assert record["initial"] > 0 and record["reason"]


def test_the_command(learned_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--checkpoint", str(learned_checkpoint), "--out", str(out), "--pairs", "3", "--steps", "2"]
    assert main(["eval", "masks", *options, "--methods", "none,predict", "--device", "cpu", "--jobs", "1"]) == 0
    assert "largest change outside, levels" in capsys.readouterr().out
    rows = json.loads((out / "table.json").read_text())
    by_case = {(row["method"], row["case"]): row for row in rows}
    assert by_case["predict", "none"]["drags"] == 3
    masked = [row for (method, case), row in by_case.items() if method == "predict" and case.endswith("exact")]
    assert masked and all(row["largest"]["mean"] == 0.0 for row in masked)
    assert (out / "sheet-1.png").is_file()
