"""`autodrag drag`: one image, one edit or a whole session."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodrag.commands.options import (
    add_checkpoint,
    add_machine,
    add_parameters,
    load_editor,
    override,
    parameters_of,
)
from autodrag.commands.outcome import describe, run_edits, write_outcome
from autodrag.edits import DEFAULT_CHECKPOINT, Edit, Parameters, PointPair, Source, parse_pair, parse_point, read_edits
from autodrag.errors import AutodragError
from autodrag.progress import ProgressDisplay

if TYPE_CHECKING:
    import numpy as np

    from autodrag.infer.editor import DragEditor

Shift = tuple[str, float, float]
"""Name of a landmark, and its displacement in px."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag drag`."""
    add_checkpoint(parser)
    parser.add_argument("--edit", metavar="FILE", help="edit or session file (autodrag schema); options override it")
    parser.add_argument("--seed", type=int, help="seed of the image")
    parser.add_argument("--latent", metavar="FILE", help="latent.safetensors to start from instead of a seed")
    parser.add_argument("--psi", type=float, help="truncation of a seed (default: 0.7)")
    parser.add_argument("--label", type=int, help="class of a conditional generator")
    repeated: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--drag", **repeated, metavar="X,Y:X,Y", help="handle and target in px; may be repeated")
    parser.add_argument(
        "--landmark", **repeated, metavar="NAME:DX,DY", help="landmark and displacement in px, such as nose:+10,0"
    )
    parser.add_argument("--anchor", **repeated, metavar="X,Y", help="a point that must stay; may be repeated")
    parser.add_argument("--mask", metavar="FILE", help="image of the same size: pixels brighter than 127 may move")
    parser.add_argument(
        "--out", default="out/drag", metavar="FOLDER", help="replaces the files of an earlier drag (default: out/drag)"
    )
    parser.add_argument("--no-animation", action="store_true", help="do not draw animation.mp4 and animation.gif")
    add_parameters(parser)
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Drag, write all files, print how far the points moved."""
    edits = read_edits(args.edit) if args.edit else []
    if len(edits) > 1 and (args.drag or args.landmark or args.anchor or args.mask):
        raise AutodragError(
            f"{args.edit!r} is a session of {len(edits)} edits; --drag, --landmark, --anchor and --mask need one edit"
        )
    values = first_values(args, edits[0] if edits else None)
    shifts = [parse_shift(text) for text in args.landmark]
    source = Source.of(**{name: value for name, value in values.items() if name in Source.model_fields})
    if values["drags"] or not shifts:
        Edit.of(**values)  # a mistake is reported before the checkpoint is loaded
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)  # so is a folder that cannot be written
    editor = load_editor(values["checkpoint"], args)
    if shifts:
        image = editor.open(source.seed, source.psi, source.label, source.latent)
        values["drags"] = [*values["drags"], *(shifted(editor, image, shift) for shift in shifts)]
    edits = [Edit.of(**values), *override(edits[1:], args)]
    with ProgressDisplay("dragging", total=args.steps) as bar:
        outcome = run_edits(editor, edits, record=not args.no_animation, callback=lambda _: bar.update())
    write_outcome(editor, outcome, out, animation=not args.no_animation, extra={})
    print(*describe(outcome), f"wrote {out}", sep="\n")
    return 0


def first_values(args: argparse.Namespace, edit: Edit | None) -> dict[str, Any]:
    """Fields of the first edit: those of the edit file, replaced by those of the command line."""
    if args.seed is not None and args.latent is not None:
        raise AutodragError("--seed and --latent are both given; an edit starts from one of them")
    for name in ("psi", "label"):
        if args.latent is not None and getattr(args, name) is not None:
            raise AutodragError(f"--{name} has no effect with --latent; leave it out")
    base: dict[str, Any] = {"checkpoint": DEFAULT_CHECKPOINT, "seed": 0, "drags": (), "parameters": Parameters()}
    values = base if edit is None else {name: getattr(edit, name) for name in Edit.model_fields}
    if args.seed is not None or args.latent is not None:
        values |= {"seed": args.seed, "latent": args.latent}
    given = {"checkpoint": args.checkpoint, "psi": args.psi, "label": args.label, "mask": args.mask}
    given["method"] = args.method
    given["drags"] = [parse_pair(text) for text in args.drag] or ([] if args.landmark else None)
    given["anchors"] = [parse_point(text) for text in args.anchor] or None
    values |= {name: value for name, value in given.items() if value is not None}
    values["parameters"] = values["parameters"].replaced(**parameters_of(args))
    return values


def parse_shift(text: str) -> Shift:
    """Read `nose:+10,0`."""
    name, _, displacement = text.partition(":")
    try:
        return name, *parse_point(displacement)
    except AutodragError as error:
        raise AutodragError(f"{text!r} is not a landmark and its displacement; expected such as nose:+10,0") from error


def shifted(editor: DragEditor, image: np.ndarray, shift: Shift) -> PointPair:
    """A landmark that the checkpoint's net finds in an image (HWC uint8), and its displaced position."""
    from autodrag.infer.measure import detect_landmarks

    name, dx, dy = shift
    if editor.landmarks is None:
        raise AutodragError(f"{editor.checkpoint!r} has no landmark net; give pixels with --drag")
    names = editor.landmarks.config.names
    if name not in names:
        raise AutodragError(f"landmark {name!r} is not known; expected one of {', '.join(names)}")
    x, y = detect_landmarks(editor.landmarks, image)[names.index(name)].round(1).tolist()
    return PointPair.of(handle=(x, y), target=(round(x + dx, 1), round(y + dy, 1)))
