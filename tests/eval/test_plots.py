from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autodrag.eval.bench import Bench
from autodrag.eval.log import Record
from autodrag.eval.plots import CELL_PX, picture_path, plot_decay, plot_distances, write_sheet
from autodrag.eval.tasks import Pair
from autodrag.images import read_image, to_uint8, write_png
from autodrag.infer.draw import RED

RECORDS: list[Record] = [
    {"method": name, "points": 1, "pair": k, "seconds": 0.1 * (k + 1), "distance": 2.0 + k}
    for k in range(3)
    for name in ("none", "refine")
]


def test_plots_are_written_as_images(tmp_path: Path) -> None:
    plot_distances([*RECORDS, RECORDS[0] | {"distance": None}], tmp_path / "distance.png", "one point")
    plot_decay({"a": [[1.0, 0.5], [1.0, 0.4]], "b": [[1.0, 1.0]]}, [0.1, 1.0], tmp_path / "decay.png", "one point")
    for name in ("distance", "decay"):
        image = read_image(tmp_path / f"{name}.png")
        assert image.shape[0] > 300 and image.std() > 5  # the image is not empty


def test_plots_are_skipped_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    plot_distances(RECORDS, tmp_path / "distance.png", "one point")
    assert "distance.png is skipped: it needs matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_plot_without_a_home_folder_is_silent(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from autodrag.eval.plots import plot_decay; folder = Path({str(tmp_path)!r}); "
    code += "plot_decay({'a': [[1.0, 0.5]]}, [0.1, 1.0], folder / 'decay.png', 'one point')"
    environment = {**os.environ, "HOME": "/dev/null", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {name: value for name, value in environment.items() if not name.startswith(("XDG_", "MPL"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_sheet(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make_bench("--methods", "none")
    handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[20.0, 12.0]])
    pairs = [Pair(seed, bench.latent(seed), handles, targets, (0,), bench.latent(seed)) for seed in (1, 2)]
    records = []
    for index in range(2):
        for method, found in (("none", None), ("refine", [[9.0, 9.0]]), ("draggan", None)):
            record = {"method": method, "points": 1, "pair": index, "found": found}
            write_png(picture_path(tmp_path, record), to_uint8(bench.image(pairs[index].latent))[0])
            records.append(record)
    write_sheet(bench, tmp_path, pairs, records, 1)
    sheet = read_image(tmp_path / "sheet-1.png")
    header, gap, columns = 24, 2, 6  # before, refine and draggan, twice
    assert sheet.shape == (header + CELL_PX, columns * (CELL_PX + gap) - gap, 3)
    cells = [sheet[header:, c * (CELL_PX + gap) :][:, :CELL_PX] for c in range(columns)]
    red = [bool((cell == RED).all(axis=2).any()) for cell in cells]
    assert red == [True, True, False] * 2  # detected points are drawn
    assert sheet[:header].min() < 100  # names
