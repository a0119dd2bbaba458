"""A table as a JSON file, with the machine, the commit and the command that measured it.

`benchmarks/results.py` turns these files into docs/results.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from autodrag.errors import AutodragError
from autodrag.eval.log import Record
from autodrag.eval.tables import Columns, cells, markdown
from autodrag.files import write_json


@dataclass(frozen=True)
class Table:
    """A measured table."""

    kind: str
    """Kind of measurement, such as `landmarks`, which selects the section of docs/results.md."""
    command: str
    """The command that measured the table."""
    titles: list[str]
    lines: list[list[str]]
    """Cells, row by row."""
    rows: list[Record] = field(default_factory=list)
    """The values from which the cells are formatted."""
    machine: str = ""
    commit: str = ""
    date: str = ""

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown(self.titles, self.lines)


def make_table(kind: str, command: Sequence[str], columns: Columns, rows: Sequence[Record]) -> Table:
    """Create a table measured on this machine with the current code.

    command: the words of the command line.
    """
    lines = cells(columns, rows)
    today = str(datetime.date.today())
    return Table(kind, shlex.join(command), list(columns), lines, list(rows), machine(), commit(), today)


def write_table(path: Path, table: Table) -> None:
    """Write a table as JSON."""
    write_json(path, asdict(table))


def read_table(path: Path) -> Table:
    """Read a table written by `write_table`."""
    try:
        table = Table(**json.loads(path.read_text(encoding="utf-8")))
        if any(len(line) != len(table.titles) for line in table.lines):
            raise ValueError(f"a line has another number of cells than the {len(table.titles)} titles")
    except (OSError, ValueError, TypeError) as error:
        raise AutodragError(f"{str(path)!r} is not a table of autodrag eval or of a benchmark: {error}") from error
    return table


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--results FILE`, which `report` reads."""
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="also write the table as JSON for benchmarks/results.py"
    )


def report(table: Table, path: Path | None) -> None:
    """Prints a table as Markdown. Writes it as JSON if there is a path."""
    if path is not None:
        write_table(path, table)
    print(table.markdown, end="")


def machine() -> str:
    """Names of the processor and the GPU, and the version of torch."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    parts = [f"{os.cpu_count()} cores of {cpu}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}"])


def commit() -> str:
    """The commit of this code, with the suffix `+` if files are modified; empty outside a clone."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip()
