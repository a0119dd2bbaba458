"""`autodrag batch`: edits from a JSONL file, each into its own folder; a bad line does not stop the others.

Line n goes to OUT/n/ (five digits), which appears whole or not at all. A second run keeps the folders that hold the
result of exactly that line and these settings, and removes other results of earlier runs before it starts. Lines are
independent tasks on many processes (`autodrag.parallel`).
Exit code 0: all lines done; 1: some failed; 2: all failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodrag import parallel
from autodrag.commands.options import (
    add_checkpoint,
    add_machine,
    add_parameters,
    load_editor,
    override,
    parameters_of,
)
from autodrag.commands.outcome import run_edits, write_outcome
from autodrag.edits import MAX_BYTES, parse_edits
from autodrag.errors import AutodragError, NothingToDo
from autodrag.files import write_json
from autodrag.progress import ProgressDisplay

if TYPE_CHECKING:
    from autodrag.infer.editor import DragEditor

Line = tuple[int, bytes]
"""Number of a line, from 1, and its text."""
Entry = dict[str, Any]
"""The entry of a line in the summary."""
STATUSES = ("done", "kept", "nothing", "failed")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag batch`."""
    parser.add_argument("edits", metavar="EDITS.jsonl", help="one edit or session per line (autodrag schema)")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="gets a folder for each line; replaces the results of other batches",
    )
    parser.add_argument("--animation", action="store_true", help="also draw animation.mp4 and animation.gif")
    add_checkpoint(parser)
    add_parameters(parser)
    add_machine(parser)
    parallel.add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run every line. OUT/summary.json lists the status of each."""
    source, out = Path(args.edits).resolve(), Path(args.out)
    if not source.is_file():
        raise AutodragError(f"batch file {args.edits!r} does not exist; check the path")
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(".*.tmp"):  # left by a batch that was killed
        shutil.rmtree(stale, ignore_errors=True)
    digest = partial(_digest, args)
    lines = list(lines_of(source))
    if not lines:
        raise AutodragError(f"batch file {args.edits!r} holds no edits; expected one JSON object per line")
    todo = [line for line in lines if _digest_in(_folder(out, line[0])) != digest(line)]
    numbers = {number for number, _ in todo}
    entries = {n: {"line": n, "status": "kept", "folder": f"{n:05d}"} for n, _ in lines if n not in numbers}
    gpu = _uses_gpu(args.device)
    jobs = parallel.number_of_jobs(args.jobs, len(todo), gpu=gpu, engine=args.engine)
    (out / "summary.json").unlink(missing_ok=True)  # it describes an earlier run
    for number in earlier_lines(out) - entries.keys():
        shutil.rmtree(_folder(out, number))
    make_worker = partial(open_worker, args, source.parent, out.resolve())
    with ProgressDisplay("batch", len(lines), "edit", done=len(entries)) as bar:
        for entry in parallel.run_tasks(make_worker, todo, jobs=jobs, engine=args.engine, gpu=gpu):
            if entry["status"] == "failed":
                print(f"line {entry['line']}: {entry['error']}", file=sys.stderr)
            entries[entry["line"]] = entry
            bar.update()
    write_json(out / "summary.json", [entries[number] for number, _ in lines])
    counts = {name: sum(entry["status"] == name for entry in entries.values()) for name in STATUSES}
    print(
        f"{counts['done']} done, {counts['kept']} kept from before, {counts['nothing']} with nothing to do, "
        f"{counts['failed']} failed; wrote {out}"
    )
    return 0 if counts["failed"] == 0 else 2 if counts["failed"] == len(lines) else 1


def earlier_lines(out: Path) -> set[int]:
    """Numbers of the lines whose results are in a folder. Other files and folders there do not count."""
    return {int(folder.name) for folder in out.iterdir() if folder.name.isdecimal() and _digest_in(folder) is not None}


def lines_of(path: Path) -> Iterator[Line]:
    """(number from 1, text) of each line that is not blank; a line above the size limit is cut just after it."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_BYTES + 2):
            number += 1
            rest = line
            while len(rest) == MAX_BYTES + 2 and not rest.endswith(b"\n"):  # drop the remainder
                rest = stream.readline(MAX_BYTES + 2)
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def open_worker(args: argparse.Namespace, folder: Path, out: Path) -> Callable[[Line], Entry]:
    """A function that runs lines. It keeps the editor of the last checkpoint.

    folder: relative paths in the lines start there.
    """
    editors: dict[str, DragEditor] = {}

    def editor_of(checkpoint: str) -> DragEditor:
        if checkpoint not in editors:
            editors.clear()  # one generator in memory at a time
            editors[checkpoint] = load_editor(checkpoint, args)
        return editors[checkpoint]

    return partial(_run_line, args, folder, out, editor_of)


def _run_line(
    args: argparse.Namespace, folder: Path, out: Path, editor_of: Callable[[str], DragEditor], line: Line
) -> Entry:
    """Run a line and write its folder. Errors of the line go to its entry; errors of writing are raised."""
    number, text = line
    name = f"{number:05d}"
    try:
        edits = override(parse_edits(text, folder=folder, where="the edit"), args)
        editor = editor_of(edits[0].checkpoint if args.checkpoint is None else args.checkpoint)
        outcome = run_edits(editor, edits, record=args.animation)
    except NothingToDo as nothing:
        return {"line": number, "status": "nothing", "reason": str(nothing)}
    except AutodragError as error:
        return {"line": number, "status": "failed", "error": str(error)}
    temporary = out / f".{name}.{secrets.token_hex(4)}.tmp"
    extra = {"line": number, "digest": _digest(args, line)}
    try:
        write_outcome(editor, outcome, temporary, animation=args.animation, extra=extra)
        if (out / name).exists():
            shutil.rmtree(out / name)
        temporary.rename(out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    result = outcome.results[-1]
    distances = [round(float(value), 4) for value in result.distances]
    return {"line": number, "status": "done", "folder": name, "distances": distances, "reason": result.reason}


def _digest(args: argparse.Namespace, line: Line) -> str:
    """Identifies a line and its settings."""
    settings = {"checkpoint": args.checkpoint, "dtype": args.dtype, "method": args.method, **parameters_of(args)}
    return hashlib.sha256(line[1] + json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _digest_in(folder: Path) -> str | None:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result.get("digest") if isinstance(result, dict) else None


def _folder(out: Path, number: int) -> Path:
    return out / f"{number:05d}"


def _uses_gpu(device: str | None) -> bool:
    import torch

    return device.startswith("cuda") if device else torch.cuda.is_available()
