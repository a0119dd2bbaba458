"""A hook of MkDocs: pages may link to files of the repository outside docs/, as they do on a code host.

Such files become part of the site, pages as pages and others as they are. `make docs` runs it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
"""The target of a relative Markdown link or picture, without its anchor."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that added pages link to."""
    from mkdocs.structure.files import File

    queue = list(DOCS.glob("*.md"))
    while queue:
        page = queue.pop()
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            file = (page.parent / target).resolve()
            added = files.get_file_from_path(_site_path(file)) is not None
            if file.is_file() and file.is_relative_to(ROOT) and not added:
                files.append(File.generated(config, _site_path(file), abs_src_path=str(file)))
                if file.suffix == ".md":
                    queue.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace relative links by those of the site."""
    source = Path(str(page.file.abs_src_path)).parent
    folder = os.path.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        file = (source / match[1]).resolve()
        return os.path.relpath(_site_path(file), folder or ".") if file.is_file() else match[1]

    return LINK.sub(replaced, markdown)


def _site_path(file: Path) -> str:
    """Path of a file in the site's sources. Outside docs/ it gets a folder, because README.md is a start page."""
    return os.path.relpath(file, DOCS) if file.is_relative_to(DOCS) else f"repository/{os.path.relpath(file, ROOT)}"
