"""The picture of docs/results.md: the first rows of a contact sheet of `autodrag eval landmarks`, as a JPEG.

python benchmarks/drags.py out/eval-landmarks/sheet-1.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from autodrag.errors import AutodragError
from autodrag.eval.plots import CELL_PX, GAP_PX, HEADER_PX
from autodrag.files import replacing
from autodrag.images import read_image


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="sheet-N.png in the folder of a run")
    parser.add_argument("--rows", type=int, default=4, help="rows of the sheet (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("docs/drags.jpg"))
    args = parser.parse_args()
    if args.rows < 1:
        raise AutodragError(f"--rows {args.rows}: expected at least 1")
    sheet = read_image(args.sheet)
    height = HEADER_PX + args.rows * (CELL_PX + GAP_PX)
    with replacing(args.out) as temporary:
        Image.fromarray(sheet[:height]).save(temporary, format="JPEG", quality=85)


if __name__ == "__main__":
    try:
        main()
    except AutodragError as error:
        sys.exit(f"error: {error}")
