"""`autodrag drag`: one image, one edit or a whole session."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from autodrag.commands.options import add_checkpoint, add_machine, add_parameters, load_editor, override, progress
from autodrag.commands.outcome import describe, run_edits, write_outcome
from autodrag.edits import DEFAULT_CHECKPOINT, Edit, parse_drag, parse_point, read_edits
from autodrag.errors import AutodragError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag drag`."""
    add_checkpoint(parser)
    parser.add_argument("--edit", metavar="FILE", help="edit or session file (autodrag schema); options override it")
    parser.add_argument("--seed", type=int, help="seed of the image")
    parser.add_argument("--latent", metavar="FILE", help="latent.safetensors to start from instead of a seed")
    parser.add_argument("--psi", type=float, help=f"truncation (default: {Edit.psi})")
    parser.add_argument("--label", type=int, help="class of a conditional generator")
    parser.add_argument(
        "--drag",
        action="append",
        default=[],
        metavar="X,Y:X,Y",
        help="handle and target in px; may be repeated",
    )
    parser.add_argument(
        "--anchor", action="append", default=[], metavar="X,Y", help="a point that stays; may be repeated"
    )
    parser.add_argument("--mask", metavar="FILE", help="image of the same size: what is brighter than 127 may move")
    parser.add_argument("--out", default="out/drag", metavar="FOLDER", help="where to write (default: out/drag)")
    parser.add_argument("--no-animation", action="store_true", help="do not draw animation.mp4 and animation.gif")
    add_parameters(parser)
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Drag, write everything, say how far the points came."""
    edits = edits_of(args)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)  # an unwritable output is found before the work, not after it
    editor = load_editor(edits[0].checkpoint, args)
    with progress("dragging", total=args.steps) as bar:
        outcome = run_edits(editor, edits, record=not args.no_animation, callback=lambda _: bar.update())
    write_outcome(editor, outcome, out, animation=not args.no_animation, extra={})
    print(*describe(outcome), f"wrote {out}", sep="\n")
    return 0


def edits_of(args: argparse.Namespace) -> list[Edit]:
    """The edits that the options describe, on top of those of `--edit`."""
    edits = read_edits(args.edit) if args.edit else [Edit(drags=(), seed=0)]
    if args.edit and len(edits) > 1 and (args.drag or args.anchor or args.mask):
        raise AutodragError(
            f"{args.edit!r} is a session of {len(edits)} edits; --drag, --anchor and --mask need one edit"
        )
    edits = override(edits, args)
    first = edits[0]
    if args.checkpoint is not None:
        first = dataclasses.replace(first, checkpoint=args.checkpoint)
    elif not args.edit:
        first = dataclasses.replace(first, checkpoint=DEFAULT_CHECKPOINT)
    if args.seed is not None and args.latent is not None:
        raise AutodragError("--seed and --latent are both given; an edit starts from one of them")
    if args.seed is not None:
        first = dataclasses.replace(first, seed=args.seed, latent=None)
    if args.latent is not None:
        first = dataclasses.replace(first, seed=None, latent=Path(args.latent))
    for name in ("psi", "label"):
        if getattr(args, name) is not None:
            first = dataclasses.replace(first, **{name: getattr(args, name)})
    if args.drag:
        first = dataclasses.replace(first, drags=tuple(parse_drag(text) for text in args.drag))
    if args.anchor:
        first = dataclasses.replace(first, anchors=tuple(parse_point(text) for text in args.anchor))
    if args.mask is not None:
        first = dataclasses.replace(first, mask=Path(args.mask))
    if not first.drags:
        raise AutodragError("there are no points to drag; give at least one as --drag 60,70:80,66")
    return [first, *edits[1:]]
