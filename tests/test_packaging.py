"""The wheel is complete and small, and can run a drag in an empty folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, without network access."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "autodrag", "checkpoints", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*command, str(sources)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_every_package_is_listed() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "autodrag").rglob("__init__.py")}
    assert listed == found | {"autodrag.checkpoints"}


def test_wheel_runs_a_drag_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """The unpacked wheel contains the default checkpoint and works without the clone."""
    assert wheel.stat().st_size < 100e6
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import autodrag; "
        f"assert autodrag.__file__.startswith({str(site)!r}); from autodrag.cli import main; "
        "sys.exit(main(['drag', '--seed', '28', '--drag', '40,40:30,40', '--method', 'predict', '--out', 'nose']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (empty / "nose" / "after.png").is_file()
