"""The documentation: the notebook runs, CITATION.cff agrees with the package, and links lead to files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autodrag import __version__

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def pages() -> list[Path]:
    """Markdown pages for users."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_notebook_runs_in_an_empty_folder(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells), "clear the outputs of docs/quickstart.ipynb"
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same image: True\n")
    assert done.stderr == ""


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", __version__)
    assert {"title", "message", "authors"} <= citation.keys()
    dois = [reference["doi"] for reference in citation["references"]]
    assert dois == ["10.48550/arXiv.2407.18656", "10.1145/3588432.3591500"]


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = {target: (page.parent / target).resolve() for target in LINK.findall(page.read_text(encoding="utf-8"))}
    missing = [target for target, file in targets.items() if not file.exists()]
    assert missing == []
