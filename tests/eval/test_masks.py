"""Preservation of the masked region: shape of the mask, change outside it, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autodrag.cli import main
from autodrag.errors import AutodragError
from autodrag.eval.masks import MaskExperiment, change_outside, ellipse
from autodrag.eval.run import parse


def test_ellipse_contains_its_points_with_a_margin() -> None:
    handles, targets = torch.tensor([[20.0, 30.0], [24.0, 30.0]]), torch.tensor([[40.0, 34.0], [40.0, 20.0]])
    mask = ellipse(handles, targets, (64, 96), margin=0.1)
    assert mask.shape == (64, 96)
    for x, y in [*handles.int().tolist(), *targets.int().tolist()]:
        assert mask[y, x]
    assert not mask[0].any() and not mask[:, 80:].any()
    one = ellipse(torch.tensor([[30.0, 30.0]]), torch.tensor([[30.0, 30.0]]), (64, 64), margin=0.125)
    assert one[30, 22] and one[30, 38] and not one[30, 21]  # a circle of radius 8


def test_change_is_measured_only_outside_the_mask() -> None:
    before = torch.zeros(1, 3, 4, 4)
    after = before.clone()
    after[..., :2] = 1.0
    after[..., 2:] = 0.5
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, :2] = True
    assert change_outside(before, after, mask) == 0.5


def test_rows_skip_drags_whose_mask_covers_the_image(landmark_checkpoint: Path) -> None:
    options = ["--checkpoint", str(landmark_checkpoint), "--methods", "none", "--device", "cpu"]
    experiment = MaskExperiment(parse(MaskExperiment, options))
    drag = {"points": 1, "method": "none", "share": 0.5, "seconds": 1.0}
    changes = [(0.2, 0.1, 0.5, 3.0, 4.0), (0.4, 0.1, 0.25, 5.0, 6.0)]
    names = ("free_change", "masked_change", "ratio", "free_distance", "masked_distance")
    records = [{**drag, **dict(zip(names, values, strict=True))} for values in changes]
    full = {**drag, "share": 1.0}
    (row,) = experiment.rows([*records, full])
    assert row["drags"] == 2 and row["ratio_of_means"] == pytest.approx(0.2 / 0.6)
    assert (row["free_distance"]["mean"], row["masked_distance"]["mean"]) == (4.0, 5.0)
    assert row["ratio"]["quartiles"][1] == pytest.approx(0.375)
    with pytest.raises(AutodragError, match="every mask covers its whole image; drag fewer points"):
        experiment.rows([full])


def test_the_command(landmark_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--checkpoint", str(landmark_checkpoint), "--out", str(out), "--pairs", "3", "--steps", "2"]
    assert main(["eval", "masks", *options, "--methods", "none,refine", "--device", "cpu", "--jobs", "1"]) == 0
    assert "ratio of means" in capsys.readouterr().out
    rows = json.loads((out / "table.json").read_text())
    assert {row["method"] for row in rows} <= {"none", "refine"} and rows
