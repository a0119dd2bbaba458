"""`autodrag demo`: a drag on the shipped generator, measured by the tracker and by the landmark net."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodrag.commands.drag import shifted
from autodrag.commands.options import add_checkpoint, add_machine, load_editor
from autodrag.commands.outcome import describe, run_edits, write_outcome
from autodrag.edits import DEFAULT_CHECKPOINT, Edit, PointPair
from autodrag.progress import ProgressDisplay

if TYPE_CHECKING:
    from autodrag.infer.editor import DragEditor

SEED = 28
LANDMARK = "nose"
SHIFT = 0.15  # share of the image's width; the head turns and stays in the frame


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag demo`."""
    add_checkpoint(parser)
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the image (default: {SEED})")
    parser.add_argument("--landmark", default=LANDMARK, help=f"landmark to drag (default: {LANDMARK})")
    parser.add_argument("--out", default="out/demo", metavar="FOLDER", help="output folder (default: out/demo)")
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Find the landmark, drag it sideways, write all files and print the remaining distance."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    editor = load_editor(args.checkpoint or DEFAULT_CHECKPOINT, args)
    x, y = shifted(editor, editor.open(args.seed), (args.landmark, 0, 0)).handle
    width = editor.image_size[1]
    shift = SHIFT * width if x < width / 2 else -SHIFT * width  # toward the side with more room
    pair = PointPair(handle=(x, y), target=(round(x + shift, 1), y))
    edit = Edit(drags=(pair,), checkpoint=editor.checkpoint, fingerprint=editor.fingerprint, seed=args.seed)
    print(f"seed {args.seed}: dragging the {args.landmark} by {abs(shift):.1f} px of {width}")
    with ProgressDisplay("dragging") as bar:
        outcome = run_edits(editor, [edit], callback=lambda _: bar.update())
    extra = compare(editor, edit) if editor.can_predict else {}
    write_outcome(editor, outcome, out, animation=True, extra=extra)
    files = f"wrote {out}: see {out / 'annotated.png'} and {out / 'animation.gif'}"
    print(*describe(outcome), *comparison(extra), files, sep="\n")
    return 0


def compare(editor: DragEditor, edit: Edit) -> dict[str, Any]:
    """Seconds and distances of the same drag by the predictor alone and by the refiner alone."""
    other, methods = editor.sibling(), {}
    for method in ("predict", "refine"):
        report = other.apply(edit.replaced(method=method)).report()
        methods[method] = {"seconds": report["seconds"], "points": report["points"]}
    return {"methods": methods}


def comparison(extra: dict[str, Any]) -> list[str]:
    """The results of `compare` as a line of text."""
    parts = []
    for method, report in extra.get("methods", {}).items():
        left = [p["distance"] if p["landmark_distance"] is None else p["landmark_distance"] for p in report["points"]]
        parts.append(f"{method} alone takes {report['seconds']:.3f} s and leaves {sum(left) / len(left):.2f} px")
    return ["; ".join(parts)] if parts else []
