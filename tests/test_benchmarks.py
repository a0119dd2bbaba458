"""The scripts of benchmarks/ run, and docs/results.md is what the committed tables give."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from autodrag.errors import AutodragError
from autodrag.eval.results import Table, read_table, write_table
from autodrag.images import read_image, write_png

ROOT = Path(__file__).parents[1]
CRITTERS = str(ROOT / "checkpoints" / "critters")


def script(name: str) -> ModuleType:
    """Import a script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(monkeypatch: pytest.MonkeyPatch, name: str, *options: str) -> ModuleType:
    """Runs a script with options."""
    module = script(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    module.main()
    return module


# ------------------------------------------------------------------------------------------------------ the page


def landmark_row(points: int, method: str, px: float, seconds: float) -> dict[str, Any]:
    return {
        "points": points,
        "method": method,
        "drags": 20,
        "distance": {"mean": px},
        "share_of_none": px / 10,
        "seconds": {"quartiles": [0.0, seconds, 9.0]},
        "patch_distance": {"mean": px + 1},
        "mean_initial": 10.0,
    }


def landmark_table() -> Table:
    rows = [landmark_row(1, "predict", 2.0, 0.05), landmark_row(1, "draggan", 3.0, 2.0), landmark_row(5, "none", 10, 0)]
    return Table("landmarks", "autodrag eval landmarks", ["a"], [["cell"]], rows, "a machine", "abc1234", "2026-01-02")


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_table(folder / "landmarks.json", landmark_table())
    write_table(folder / "speed.json", Table("speed", "autodrag eval speed", ["ratio"], [["4.00"]]))
    return folder


def test_page_starts_with_a_summary_and_has_a_section_for_each_table(tables: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    assert script("results").main(["--tables", str(tables), "--page", str(page)]) == 0
    text = page.read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Summary", "## Landmarks", "## Cost of an edit"]
    assert "| `predict` | 2.00 (20%) | 0.05 (2.5%) | – | – |" in text
    assert text.index("| `none` ") < text.index("| `draggan` ") < text.index("| `predict` ")
    assert "3.0 to 4.0 of 10.0 px with 1 point" in " ".join(text.split())
    assert "```\nautodrag eval landmarks\n```\n\n2026-01-02, commit `abc1234`, a machine\n\n| a |\n" in text


def test_a_table_adds_its_section(tables: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    for name, method in (("masks-2.json", "second"), ("masks-1.json", "first")):
        write_table(tables / name, Table("masks", "autodrag eval masks", ["method"], [[method]]))
    script("results").main(["--tables", str(tables), "--page", str(page)])
    text = page.read_text()
    assert text.count("## Masks\n") == 1 and text.index("| first |") < text.index("| second |")


def test_check_accepts_only_the_page_of_the_tables(tables: Path, tmp_path: Path) -> None:
    results, page = script("results"), tmp_path / "results.md"
    options = ["--tables", str(tables), "--page", str(page)]
    with pytest.raises(AutodragError, match="run make results"):
        results.main([*options, "--check"])
    assert not page.exists()
    results.main(options)
    assert results.main([*options, "--check"]) == 0
    page.write_text(page.read_text().replace("2.00", "1.00"))
    with pytest.raises(AutodragError, match="run make results"):
        results.main([*options, "--check"])


def test_committed_page_is_what_the_committed_tables_give() -> None:
    assert script("results").main(["--check"]) == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "has no tables"),
        ("{", "is not a table of autodrag eval or of a benchmark"),
        ('{"kind": "speed"}', "is not a table of autodrag eval or of a benchmark"),
        ('{"kind": "speed", "command": "c", "titles": ["a"], "lines": [["1", "2"]]}', "another number of cells"),
        ('{"kind": "taste", "command": "c", "titles": ["a"], "lines": []}', "kind 'taste', which has no section"),
        (
            '{"kind": "landmarks", "command": "c", "titles": ["a"], "lines": [], "rows": [{"points": 1}]}',
            "lacks the field 'method'",
        ),
    ],
)
def test_bad_tables_give_a_sentence(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "table.json").write_text(content)
    with pytest.raises(AutodragError, match=sentence):
        script("results").main(["--tables", str(tmp_path), "--page", str(tmp_path / "results.md")])
    assert not (tmp_path / "results.md").exists()


# --------------------------------------------------------------------------------------------------- the scripts


def check_table(path: Path, kind: str, command: str) -> Table:
    """Reads a table that a script wrote; results.py must have its section."""
    table = read_table(path)
    assert table.kind == kind and kind in script("results").SECTIONS
    assert table.command.startswith(command) and table.machine and table.date and table.lines
    return table


def test_tracking_error_grows_with_the_distance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "tracking.json"
    run(monkeypatch, "tracking", "--checkpoint", CRITTERS, "--pairs", "8", "--results", str(out))
    rows = check_table(out, "tracking", "python benchmarks/tracking.py --checkpoint ").rows
    assert len(rows) == 8
    assert all(near["mean_px"] < far["mean_px"] for near, far in zip(rows[:4], rows[4:], strict=True))


def test_a_cut_through_a_head_is_detected_by_the_constellation_of_landmarks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "torn.json"
    run(monkeypatch, "torn", "--checkpoint", CRITTERS, "--images", "100", "--results", str(out))
    rows = {row["images"]: row for row in check_table(out, "torn", "python benchmarks/torn.py ").rows}
    assert rows["unedited"]["constellation"] == rows["unedited"]["confidence"] == pytest.approx(0.05)
    cut = rows["lower part 8/64 to the side"]
    assert cut["constellation"] > 0.75 > cut["confidence"]


@pytest.mark.parametrize("name", ["tracking", "torn"])
def test_a_checkpoint_without_a_landmark_net_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, name: str
) -> None:
    with pytest.raises(AutodragError, match="has no landmark net"):
        run(monkeypatch, name, "--checkpoint", str(tiny_checkpoint))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_conversion_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "convert.json"
    run(monkeypatch, "convert", "--resolution", "32", "--formats", "nvidia", "--results", str(out))
    (row,) = check_table(out, "convert", "python benchmarks/convert.py ").rows
    assert row["resolution"] == 32 and row["seconds"] > 0 and row["peak_mb"] > 0


def test_unknown_options_of_scripts_give_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AutodragError, match="'vhs' is unknown; expected some of nvidia"):
        run(monkeypatch, "convert", "--formats", "vhs")
    with pytest.raises(AutodragError, match="--clients '0,2': expected numbers from 1"):
        run(monkeypatch, "app", "--clients", "0,2")


def test_curves_of_a_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "run" / "logs")) as writer:
        for step in range(1, 41):
            writer.add_scalar("loss/position", 1 / step, step, walltime=60.0 * step)
        for step, share in ((20, 0.5), (40, 0.25)):
            writer.add_scalar("held-out/1-points", share, step, walltime=60.0 * step)
    run_folder, out, picture = str(tmp_path / "run"), tmp_path / "training.json", tmp_path / "curves.png"
    options = [run_folder, "--results", str(out), "--trained-by", "autodrag train predictor", "--picture", str(picture)]
    run(monkeypatch, "curves", *options)
    table = check_table(out, "training", "autodrag train predictor\npython benchmarks/curves.py ")
    assert table.titles == ["step", "minutes", "1-points"]
    assert table.lines == [["20", "19.0", "50.0%"], ["40", "39.0", "25.0%"]]
    height, width, _ = read_image(picture).shape
    assert width > height  # a panel for each scalar
    with pytest.raises(AutodragError, match="belong together"):
        run(monkeypatch, "curves", run_folder, "--results", str(out))
    with pytest.raises(AutodragError, match="has no logs of a training"):
        run(monkeypatch, "curves", str(tmp_path))


def test_picture_shows_the_first_rows_of_a_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sheet, out = tmp_path / "sheet-1.png", tmp_path / "drags.jpg"
    write_png(sheet, np.full((1000, 300, 3), 200, np.uint8))
    run(monkeypatch, "drags", str(sheet), "--rows", "2", "--out", str(out))
    assert read_image(out).shape == (24 + 2 * 194, 300, 3)
    with pytest.raises(AutodragError, match="--rows 0: expected at least 1"):
        run(monkeypatch, "drags", str(sheet), "--rows", "0")


def test_committed_tables_have_no_local_paths() -> None:
    """Their commands are repeated by others."""
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert " /" not in json.loads(file.read_text())["command"], file.name
