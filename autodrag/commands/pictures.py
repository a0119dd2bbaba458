"""`autodrag sample` and `autodrag render`: pictures of a generator, and of the renderer it learned from."""

from __future__ import annotations

import argparse
from pathlib import Path

from autodrag.commands.options import add_checkpoint, add_machine, load_editor, progress
from autodrag.edits import DEFAULT_CHECKPOINT
from autodrag.errors import AutodragError
from autodrag.files import write_json

MAX_IMAGES = 4096


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag sample`."""
    add_checkpoint(parser)
    parser.add_argument("--seeds", default="0-31", help="such as 0-31 or 1,5,9 (default: 0-31)")
    parser.add_argument("--psi", type=float, default=0.7, help="truncation (default: 0.7)")
    parser.add_argument("--label", type=int, help="class of a conditional generator")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--out", default="out/sample.png", metavar="FILE.png")
    add_machine(parser)


def sample(args: argparse.Namespace) -> int:
    """Write a grid of the images of seeds."""
    from autodrag.images import write_png
    from autodrag.infer.draw import contact_sheet

    seeds = parse_seeds(args.seeds)
    editor = load_editor(args.checkpoint or DEFAULT_CHECKPOINT, args)
    images = []
    with progress("sampling", total=len(seeds), unit="image") as bar:
        for seed in seeds:
            images.append(editor.open(seed, args.psi, args.label))
            bar.update()
    write_png(_png(args.out), contact_sheet(images, args.columns))
    print(f"wrote {args.out}")
    return 0


def render_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag render`."""
    parser.add_argument("--out", default="out/critters.png", help="FILE.png for a grid, or a folder for samples")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--size", type=int, default=128, help="px (default: 128)")
    parser.add_argument("--supersample", type=int, default=2, help="rays per pixel and axis (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=8, help="of the grid")
    parser.add_argument("--parts", action="store_true", help="also write each sample's part ids as NUMBER.parts.png")
    parser.add_argument("--device", help="cpu, cuda, ...")


def render(args: argparse.Namespace) -> int:
    """Write a grid of critters, or a folder of them with landmarks.json."""
    import numpy as np
    import torch

    from autodrag.data.critters import LANDMARKS, PARTS, sample_factors
    from autodrag.data.critters import render as draw
    from autodrag.images import to_uint8, write_png
    from autodrag.infer.draw import contact_sheet

    out = Path(args.out)
    grid = out.suffix.lower() == ".png"
    if args.count < 1 or (grid and args.count > MAX_IMAGES):
        raise AutodragError(f"count {args.count} is not usable; a grid takes 1 to {MAX_IMAGES}, a folder 1 or more")
    factors = sample_factors(args.count, torch.Generator().manual_seed(args.seed))
    images: list[np.ndarray] = []
    samples = []
    with progress("rendering", total=args.count, unit="image") as bar:
        for start in range(0, args.count, 32):
            stop = min(start + 32, args.count)
            batch = draw(factors[start:stop], size=args.size, supersample=args.supersample, device=args.device)
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
                samples.append(
                    {
                        "file": f"{name}.png",
                        "landmarks": [
                            [round(value, 3) for value in point] for point in batch.landmarks[offset].tolist()
                        ],
                        "visible": batch.visible[offset].tolist(),
                    }
                )
    if grid:
        write_png(out, contact_sheet(images, args.columns))
    else:
        truth = {"size": args.size, "seed": args.seed, "names": LANDMARKS, "parts": PARTS, "samples": samples}
        write_json(out / "landmarks.json", truth)
    print(f"wrote {out}")
    return 0


def parse_seeds(text: str) -> list[int]:
    """Read `0-31`, `1,5,9`, or both: `0-3,8`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 10 or len(last) > 10:
            raise AutodragError(f"{text!r} are not seeds; expected such as 0-31 or 1,5,9")
        stop = int(last) if dash else int(first)
        if stop < int(first) or stop - int(first) + len(seeds) >= MAX_IMAGES:
            raise AutodragError(f"{text!r} is not a range of 1 to {MAX_IMAGES} seeds; expected such as 0-31")
        seeds += range(int(first), stop + 1)
    return seeds


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise AutodragError(f"{text!r} does not end in .png; name a PNG file")
    return path
