"""`autodrag batch`: edits from a JSONL file, each into its own folder; a bad line does not stop the rest.

Line n goes to OUT/n/ (five digits), which appears whole or not at all. Run again, the batch skips the lines
whose folder holds the result of that very line. Exit code 0: all lines done; 1: some failed; 2: all failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodrag.commands.options import (
    add_checkpoint,
    add_machine,
    add_parameters,
    load_editor,
    override,
    parameters_of,
    progress,
)
from autodrag.commands.outcome import run_edits, write_outcome
from autodrag.edits import MAX_BYTES, parse_edits
from autodrag.errors import AutodragError, NothingToDo
from autodrag.files import write_json

if TYPE_CHECKING:
    from autodrag.infer.editor import DragEditor


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag batch`."""
    parser.add_argument("edits", metavar="EDITS.jsonl", help="one edit or session per line (autodrag schema)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where each line gets its own folder")
    parser.add_argument("--animation", action="store_true", help="draw animation.mp4 and animation.gif too")
    add_checkpoint(parser)
    add_parameters(parser)
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Run every line; the summary of all of them is OUT/summary.json."""
    source, out = Path(args.edits), Path(args.out)
    if not source.is_file():
        raise AutodragError(f"batch file {str(source)!r} does not exist; check the path")
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(".*.tmp"):  # a batch that was killed may have left one
        shutil.rmtree(stale, ignore_errors=True)
    editors: dict[str, DragEditor] = {}
    summary: list[dict[str, Any]] = []
    with progress("batch", total=sum(1 for _ in lines_of(source)), unit="edit") as bar:
        for number, line in lines_of(source):
            entry = _run_line(number, line, source.parent, out, editors, args)
            if entry["status"] == "failed":
                print(f"line {number}: {entry['error']}", file=sys.stderr)
            summary.append({"line": number, **entry})
            bar.update()
    if not summary:
        raise AutodragError(f"batch file {str(source)!r} holds no edits; expected one JSON object per line")
    write_json(out / "summary.json", summary)
    counts = {name: sum(entry["status"] == name for entry in summary) for name in ("done", "kept", "nothing", "failed")}
    print(
        f"{counts['done']} done, {counts['kept']} kept from before, {counts['nothing']} with nothing to do, "
        f"{counts['failed']} failed; wrote {out}"
    )
    return 0 if counts["failed"] == 0 else 2 if counts["failed"] == len(summary) else 1


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, text) of each line that is not blank; one past the size limit is cut just after it."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_BYTES + 2):
            number += 1
            rest = line
            while len(rest) == MAX_BYTES + 2 and not rest.endswith(b"\n"):  # drop the remainder unread
                rest = stream.readline(MAX_BYTES + 2)
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def _run_line(
    number: int,
    line: bytes,
    folder: Path,
    out: Path,
    editors: dict[str, DragEditor],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Run one line into its folder, and say what became of it; what cannot be written ends the batch."""
    name = f"{number:05d}"
    settings = {"checkpoint": args.checkpoint, "dtype": args.dtype, "method": args.method, **parameters_of(args)}
    digest = hashlib.sha256(line + json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    try:
        if _digest_in(out / name) == digest:
            return {"status": "kept", "folder": name}
        edits = override(parse_edits(line, folder=folder, where="the edit"), args)
        checkpoint = edits[0].checkpoint if args.checkpoint is None else args.checkpoint
        if checkpoint not in editors:
            editors.clear()  # one generator in memory at a time
            editors[checkpoint] = load_editor(checkpoint, args)
        editor = editors[checkpoint]
        outcome = run_edits(editor, edits, record=args.animation)
    except NothingToDo as nothing:
        return {"status": "nothing", "reason": str(nothing)}
    except AutodragError as error:
        return {"status": "failed", "error": str(error)}
    temporary = out / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        write_outcome(editor, outcome, temporary, animation=args.animation, extra={"line": number, "digest": digest})
        if (out / name).exists():
            shutil.rmtree(out / name)
        temporary.rename(out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    distances = [round(float(value), 4) for value in outcome.results[-1].distances]
    return {"status": "done", "folder": name, "distances": distances, "reason": outcome.results[-1].reason}


def _digest_in(folder: Path) -> str | None:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result.get("digest") if isinstance(result, dict) else None
