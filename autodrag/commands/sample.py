"""`autodrag sample`: a grid of images of a generator, each with its seed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from autodrag.commands.options import add_checkpoint, add_machine, load_editor
from autodrag.edits import DEFAULT_CHECKPOINT, Source
from autodrag.errors import AutodragError
from autodrag.progress import ProgressDisplay

if TYPE_CHECKING:
    import numpy as np

MAX_IMAGES = 4096
CAPTION_PX = 14


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag sample`."""
    add_checkpoint(parser)
    parser.add_argument("--seeds", default="0-31", help="such as 0-31 or 1,5,9 (default: 0-31)")
    parser.add_argument("--psi", type=float, default=0.7, help="truncation (default: 0.7)")
    parser.add_argument("--label", type=int, help="class of a conditional generator")
    parser.add_argument("--columns", type=int, default=8, help="images in a row (default: 8)")
    parser.add_argument(
        "--out", default="out/sample.png", metavar="FILE.png", help="output file (default: out/sample.png)"
    )
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Write the grid."""
    from autodrag.images import write_png
    from autodrag.infer.draw import contact_sheet

    if Path(args.out).suffix.lower() != ".png":
        raise AutodragError(f"{args.out!r} does not end in .png; name a PNG file")
    sources = [Source.of(seed=seed, psi=args.psi, label=args.label) for seed in parse_seeds(args.seeds)]
    editor = load_editor(args.checkpoint or DEFAULT_CHECKPOINT, args)
    images = []
    with ProgressDisplay("sampling", total=len(sources), unit="image") as bar:
        for source in sources:
            images.append(captioned(editor.open(source.seed, source.psi, source.label), str(source.seed)))
            bar.update()
    write_png(args.out, contact_sheet(images, args.columns))
    print(f"wrote {args.out}")
    return 0


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """An HWC uint8 image with one line of text in a strip of CAPTION_PX below it."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (image.shape[1], CAPTION_PX), "white")
    centre = (image.shape[1] / 2, CAPTION_PX / 2)
    font = ImageFont.load_default(CAPTION_PX - 4)
    ImageDraw.Draw(strip).text(centre, text, fill="black", font=font, anchor="mm")
    return np.concatenate([image, np.asarray(strip)])


def parse_seeds(text: str) -> list[int]:
    """Read `0-31`, `1,5,9`, or both: `0-3,8`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 10 or len(last) > 10:
            raise AutodragError(f"seeds {text!r} cannot be read; expected such as 0-31 or 1,5,9")
        stop = int(last) if dash else int(first)
        if stop < int(first) or stop - int(first) + len(seeds) >= MAX_IMAGES:
            raise AutodragError(f"seeds {text!r} are not 1 to {MAX_IMAGES} seeds; expected such as 0-31")
        seeds += range(int(first), stop + 1)
    return seeds
