"""`autodrag demo`: a real drag on the shipped generator, measured by the tracker and by the landmark net."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodrag.commands.options import add_checkpoint, add_machine, load_editor, progress
from autodrag.commands.outcome import describe, run_edits, write_outcome
from autodrag.edits import DEFAULT_CHECKPOINT, Drag, Edit
from autodrag.errors import AutodragError

if TYPE_CHECKING:
    from autodrag.infer.editor import DragEditor

SEED = 28
LANDMARK = "nose"
SHIFT = 0.15  # of the image's width: far enough to turn the head, near enough to stay in the frame


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag demo`."""
    add_checkpoint(parser)
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the image (default: {SEED})")
    parser.add_argument("--landmark", default=LANDMARK, help=f"what to take hold of (default: {LANDMARK})")
    parser.add_argument("--out", default="out/demo", metavar="FOLDER", help="where to write (default: out/demo)")
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Find the landmark, drag it sideways, write everything and say how far it came."""
    from autodrag.infer.measure import detect_landmarks

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    editor = load_editor(args.checkpoint or DEFAULT_CHECKPOINT, args)
    if editor.landmarks is None:
        raise AutodragError(f"{editor.checkpoint!r} has no landmark net, which the demo needs; use autodrag drag")
    names = editor.landmarks.config.names
    if args.landmark not in names:
        raise AutodragError(f"landmark {args.landmark!r} is not known; expected one of {', '.join(names)}")
    x, y = detect_landmarks(editor.landmarks, editor.open(args.seed))[names.index(args.landmark)].round(1).tolist()
    width = editor.image_size[1]
    shift = SHIFT * width if x < width / 2 else -SHIFT * width  # toward the roomier side
    drag = Drag((x, y), (round(x + shift, 1), y))
    edit = Edit((drag,), checkpoint=editor.checkpoint, fingerprint=editor.fingerprint, seed=args.seed)
    print(f"seed {args.seed}: dragging the {args.landmark} by {abs(shift):.1f} px of {width}")
    with progress("dragging") as bar:
        outcome = run_edits(editor, [edit], callback=lambda _: bar.update())
    extra = compare(editor, edit) if editor.can_predict else {}
    write_outcome(editor, outcome, out, animation=True, extra=extra)
    where = f"wrote {out}: see {out / 'annotated.png'} and {out / 'animation.gif'}"
    print(*describe(outcome), *comparison(extra), where, sep="\n")
    return 0


def compare(editor: DragEditor, edit: Edit) -> dict[str, Any]:
    """Seconds and distances of the same drag by the predictor alone and by the refiner alone, on an editor beside."""
    other, methods = editor.sibling(), {}
    for method in ("predict", "refine"):
        result = other.apply(dataclasses.replace(edit, method=method))
        report = result.report()
        methods[method] = {"seconds": report["seconds"], "points": report["points"]}
    return {"methods": methods}


def comparison(extra: dict[str, Any]) -> list[str]:
    """A line for a person about what `compare` found."""
    if not extra:
        return []
    parts = []
    for name, method in (("predictor", "predict"), ("refiner", "refine")):
        found = extra["methods"][method]
        parts.append(f"the {name} alone takes {found['seconds']:.3f} s and leaves {_left(found['points'])} px")
    return ["; ".join(parts)]


def _left(points: list[dict[str, Any]]) -> str:
    """Mean distance left, by the landmark net where it sees the points."""
    seen = [p["distance"] if p["landmark_distance"] is None else p["landmark_distance"] for p in points]
    return f"{sum(seen) / len(seen):.2f}"
