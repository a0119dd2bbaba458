"""DragGAN's ablations: which variants the tables ask for, and a run on tiny networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autodrag.cli import main
from autodrag.errors import AutodragError
from autodrag.eval.ablations import default_blocks, default_radii, make_cells, read_blocks, read_radii, tables
from autodrag.infer.refine import RefineConfig
from autodrag.nets.stylegan2 import GeneratorConfig


def test_defaults_are_the_papers_where_a_generator_has_its_blocks() -> None:
    assert default_blocks(8) == default_blocks(7) == "4,5,6,7,5+6,6+7"
    assert default_blocks(6) == "4,5,6,5+6"  # 128 px
    assert default_blocks(5) == "3,4,5,4+5"  # 64 px
    assert default_blocks(2) == "1,2,1+2"
    assert default_radii(64) == default_radii(512) == "1,2,3,4,5"
    assert default_radii(1024) == "2,4,6,8,10"


def test_cells_change_one_thing_at_a_time() -> None:
    generator = GeneratorConfig(resolution=512)
    blocks, radii = read_blocks("4,6,5+6", 8), read_radii("2,3")
    cells = make_cells(generator, blocks, radii, ("l2", "l1", "none"), None)
    preset = RefineConfig.preset("draggan", (512, 512))
    published = replace(preset, supervised_blocks=(5,), tracked_blocks=(5,))
    expected = {
        "published": published,
        "supervised-4": replace(published, supervised_blocks=(3,)),
        "supervised-5+6": replace(published, supervised_blocks=(4, 5)),
        "tracked-4": replace(published, tracked_blocks=(3,)),
        "tracked-5+6": replace(published, tracked_blocks=(4, 5)),
        "r1-2": replace(published, supervision_radius=2),
        "tracker-l1": replace(published, norm="l1"),
        "tracker-none": replace(published, tracker="none"),
    }
    assert {cell.name: cell.config for cell in cells} == expected
    names = [cell.name for cell in cells if cell.column in ("6", "3", "l2")]
    assert names == ["published"] * 4  # both rows of block 6, r1 = 3, the L2 tracker
    small = make_cells(GeneratorConfig(resolution=64), read_blocks("5", 5), {}, (), None)
    assert [cell.name for cell in small] == ["published", "published"]


def test_tables_show_each_figure_in_its_place() -> None:
    cells = make_cells(GeneratorConfig(resolution=512), read_blocks("4,6", 8), read_radii("2,3"), ("none", "l2"), None)
    rows = [
        {"points": 1, "method": name, "mean_px": figure, "median_s": figure / 10}
        for name, figure in {"published": 1.0, "supervised-4": 2.0, "tracked-4": 3.0, "r1-2": 4.0}.items()
    ]
    rows.append({"points": 1, "method": "tracker-none", "median_s": 0.5})
    assert tables(cells, rows).splitlines() == [
        "| blocks, 1 point | 4 | 6 |",
        "|---|---|---|",
        "| supervised | 2.00 | 1.00 |",
        "| tracked | 3.00 | 1.00 |",
        "",
        "| r1, 1 point | 2 | 3 |",
        "|---|---|---|",
        "| MD, px | 4.00 | 1.00 |",
        "| seconds | 0.40 | 0.10 |",
        "",
        "| tracker, 1 point | none | l2 |",
        "|---|---|---|",
        "| MD, px | – | 1.00 |",
        "| seconds | 0.50 | 0.10 |",
        "",
    ]


@pytest.mark.parametrize("text", ["", "0", "9", "1+", "a", "1+9", "²"])
def test_blocks_that_are_none(text: str) -> None:
    with pytest.raises(AutodragError, match=r"--blocks .*expected 1 to 8, or two such as 1\+2"):
        read_blocks(text, 8)


@pytest.mark.parametrize("text", ["", "1.5", "-1", "2000", "x"])
def test_radii_that_are_none(text: str) -> None:
    with pytest.raises(AutodragError, match=r"--radii .*expected whole numbers of px"):
        read_radii(text)


def run(checkpoint: Path, out: Path, *options: str) -> int:
    common = ["--pairs", "2", "--steps", "2", "--device", "cpu"]
    return main(["eval", "ablations", "--checkpoint", str(checkpoint), "--out", str(out), *common, *options])


def test_a_run_can_be_continued_with_more_variants(
    landmark_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = ("--blocks", "3,4", "--radii", "1", "--trackers", "l2,none")
    assert run(landmark_checkpoint, out, *first) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "table.md").read_text()
    assert [line for line in printed.splitlines() if "point" in line] == [
        "| blocks, 1 point | 3 | 4 |",
        "| r1, 1 point | 1 |",
        "| tracker, 1 point | l2 | none |",
    ]
    drags = [json.loads(line) for line in (out / "drags.jsonl").read_text().splitlines()]
    names = {"published", "supervised-3", "tracked-3", "tracker-none"}
    assert {d["method"] for d in drags} == names and len(drags) == 2 * len(names)
    assert run(landmark_checkpoint, out, "--blocks", "3,4,3+4", "--radii", "1,2", "--trackers", "l2") == 0
    more = [json.loads(line) for line in (out / "drags.jsonl").read_text().splitlines()]
    assert more[: len(drags)] == drags
    assert {d["method"] for d in more[len(drags) :]} == {"supervised-3+4", "tracked-3+4", "r1-2"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--blocks", "5"], "--blocks 5: '5' is none; expected 1 to 4, or two such as 1+2"),
        (["--trackers", "pips"], "--trackers pips: expected some of l2, l1, none, raft"),
        (["--trackers", "raft", "--raft-weights", "nowhere.pth"], "RAFT needs"),
        (["--raft-weights", "nowhere.pth"], "RAFT needs"),
        (["--points", "9"], "--points 9"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    landmark_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert run(landmark_checkpoint, tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "drags.jsonl").exists()
