"""`autodrag render`: critters with their landmarks, as a grid or as a folder of samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from autodrag.errors import AutodragError
from autodrag.files import write_json
from autodrag.progress import ProgressDisplay

if TYPE_CHECKING:
    import numpy as np

MAX_GRID = 4096


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag render`."""
    parser.add_argument("--out", default="out/critters.png", help="FILE.png for a grid, or a new folder for samples")
    parser.add_argument("--count", type=int, default=32, help="number of images (default: 32)")
    parser.add_argument("--size", type=int, default=128, help="px (default: 128)")
    parser.add_argument("--supersample", type=int, default=2, help="rays per pixel and axis (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: 0)")
    parser.add_argument("--columns", type=int, default=8, help="images in a row of the grid (default: 8)")
    parser.add_argument("--parts", action="store_true", help="also write the part ids of a sample as NUMBER.parts.png")
    parser.add_argument("--device", help="cpu, cuda, ...")


def run(args: argparse.Namespace) -> int:
    """Write a grid of critters, or a folder of them with landmarks.json."""
    import numpy as np
    import torch

    from autodrag.data.critters import LANDMARKS, PARTS, render, sample_factors
    from autodrag.images import to_uint8, write_png
    from autodrag.infer.draw import contact_sheet

    out = Path(args.out)
    grid = out.suffix.lower() == ".png"
    if args.count < 1 or (grid and args.count > MAX_GRID):
        raise AutodragError(f"count {args.count} is not usable; a grid takes 1 to {MAX_GRID}, a folder 1 or more")
    if not grid and out.is_dir() and any(out.iterdir()):
        raise AutodragError(f"folder {args.out!r} is not empty, and samples of two runs must not mix; name a new one")
    factors = sample_factors(args.count, torch.Generator().manual_seed(args.seed))
    images: list[np.ndarray] = []
    samples = []
    with ProgressDisplay("rendering", total=args.count, unit="image") as bar:
        for start in range(0, args.count, 32):
            stop = min(start + 32, args.count)
            batch = render(factors[start:stop], size=args.size, supersample=args.supersample, device=args.device)
            for offset, image in enumerate(to_uint8(batch.images)):
                bar.update()
                if grid:
                    images.append(image)
                    continue
                name = f"{start + offset:06d}"
                write_png(out / f"{name}.png", image)
                if args.parts:
                    ids = batch.parts[offset].cpu().numpy()
                    write_png(out / f"{name}.parts.png", np.repeat(ids[:, :, None], 3, axis=2))
                points = [[round(value, 3) for value in point] for point in batch.landmarks[offset].tolist()]
                visible = batch.visible[offset].tolist()
                samples.append({"file": f"{name}.png", "landmarks": points, "visible": visible})
    if grid:
        write_png(out, contact_sheet(images, args.columns))
    else:
        truth = {"size": args.size, "seed": args.seed, "names": LANDMARKS, "parts": PARTS, "samples": samples}
        write_json(out / "landmarks.json", truth)
    print(f"wrote {out}")
    return 0
