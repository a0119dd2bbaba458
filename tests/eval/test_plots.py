from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autodrag.eval.plots import CELL_PX, SHEET_PAIRS, keep_picture, plot_decay, plot_distances, write_sheet
from autodrag.eval.run import Bench, Record, drag
from autodrag.eval.tasks import Pair
from autodrag.images import read_image
from autodrag.infer.draw import RED

RECORDS: list[Record] = [
    {"method": name, "points": 1, "pair": k, "seconds": 0.1 * (k + 1), "distance": 2.0 + k}
    for k in range(3)
    for name in ("none", "refiner")
]


def test_plots_are_pictures(tmp_path: Path) -> None:
    plot_distances([*RECORDS, RECORDS[0] | {"distance": None}], tmp_path / "distance.png", "one point")
    plot_decay({"a": [[1.0, 0.5], [1.0, 0.4]], "b": [[1.0, 1.0]]}, [0.1, 1.0], tmp_path / "decay.png", "one point")
    for name in ("distance", "decay"):
        image = read_image(tmp_path / f"{name}.png")
        assert image.shape[0] > 300 and image.std() > 5  # there is something on it


def test_without_matplotlib_a_plot_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    plot_distances(RECORDS, tmp_path / "distance.png", "one point")
    assert "distance.png is left out: it needs matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sheet(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make_bench("--methods", "none,refiner,draggan")
    handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[20.0, 12.0]])
    pairs = [Pair(seed, bench.latent(seed), handles, targets, (0,), bench.latent(seed)) for seed in (1, 2)]
    records = []
    for task in bench.tasks((1,), len(pairs)):
        keep_picture(bench, task, drag(bench, "none", pairs[task["pair"]].latent, handles, targets))
        records.append(task | ({"found": [[9.0, 9.0]]} if task["method"] == "refiner" else {"found": None}))
    write_sheet(bench, pairs, records, tmp_path / "sheet.png")
    sheet = read_image(tmp_path / "sheet.png")
    header, gap, columns = 24, 2, 6  # before, refiner and draggan, twice
    assert sheet.shape == (header + CELL_PX, columns * (CELL_PX + gap) - gap, 3)
    cells = [sheet[header:, c * (CELL_PX + gap) :][:, :CELL_PX] for c in range(columns)]
    red = [bool((cell == RED).all(axis=2).any()) for cell in cells]
    assert red == [True, True, False] * 2  # points are drawn where they were found
    assert sheet[:header].min() < 100  # names


def test_only_the_first_pictures_are_kept(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("--methods", "none")
    edited = drag(bench, "none", bench.latent(1), torch.zeros(1, 2), torch.ones(1, 2))
    for k in (SHEET_PAIRS - 1, SHEET_PAIRS):
        keep_picture(bench, {"method": "none", "points": 1, "pair": k}, edited)
    assert [path.name for path in (bench.out / "images").iterdir()] == ["none-1-31.png"]
