"""Error of the tracker by the blocks that it reads, on heads that move toward other heads.

    python benchmarks/tracking.py --results benchmarks/results/tracking.json

The first six layers of image A move toward those of image B. The landmarks of A are tracked in the moved image by
`autodrag.tracking.follow`, near their old positions, and detected there by the checkpoint's landmark net.
"""

from __future__ import annotations

import argparse
import sys

import torch

from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.data.latents import map_codes
from autodrag.errors import AutodragError
from autodrag.eval import results
from autodrag.eval.log import Record
from autodrag.eval.tables import Columns
from autodrag.infer.open_image import TRACKED_BLOCKS
from autodrag.tracking import PULL, appearance, follow, match_features

COLUMNS: Columns = {
    "moved": lambda row: f"{row['share']:.0%} of the distance",
    "blocks": lambda row: f"{row['blocks'][0]} to {row['blocks'][1]}",
    "mean error, px": lambda row: f"{row['mean_px']:.2f}",
    "median, px": lambda row: f"{row['median_px']:.2f}",
    "over 1/16 of the width": lambda row: f"{row['far']:.1%}",
    "mutual": lambda row: f"{row['mutual']:.0%}",
}


@torch.inference_mode()
def measure(checkpoint: str, pairs: int, seed: int) -> list[Record]:
    """One row for each share of the distance and each range of blocks."""
    generator, _ = load_generator(checkpoint)
    net = load_landmarks(checkpoint)
    if net is None:
        raise AutodragError(f"{checkpoint!r} has no landmark net; train one with autodrag train landmarks")
    size, last = generator.config.image_size, len(generator.config.block_resolutions) - 1
    rng = torch.Generator().manual_seed(seed)
    psi = torch.full((pairs,), 0.7)
    a, b = (
        map_codes(generator, pairs, psi, rng)[:, None].repeat(1, generator.config.latent_layers, 1) for _ in range(2)
    )
    start = net(generator(a).clamp(-1, 1)).points
    first = generator.features(a, block=last)
    limit = start.new_tensor([size[1] - 1, size[0] - 1])
    rows = []
    for share in (0.5, 1.0):
        moved = a.clone()
        moved[:, :6] += share * (b - a)[:, :6]
        goal = net(generator(moved).clamp(-1, 1)).points
        second = generator.features(moved, block=last)
        inside = torch.stack([((p > 0) & (p < limit)).all(dim=2) for p in (start, goal)]).all(dim=0)
        for coarsest, finest in (
            (last - 1, last - 1),
            (last, last),
            (last - 2, last - 1),
            (last - TRACKED_BLOCKS + 1, last),
        ):
            maps = [f.outputs[coarsest : finest + 1] for f in (first, second)]
            found, _ = follow(maps[1], appearance(maps[0], start, size), size, near=start, pull=PULL)
            error = (found - goal).norm(dim=2)[inside]
            _, mutual = match_features(maps[0], maps[1], start, size)
            rows.append(
                {
                    "share": share,
                    "blocks": [coarsest, finest],
                    "mean_px": float(error.mean()),
                    "median_px": float(error.median()),
                    "far": float((error > size[1] / 16).float().mean()),
                    "mutual": float(mutual[inside].float().mean()),
                }
            )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--seed", type=int, default=5005)
    results.add_option(parser)
    args = parser.parse_args()
    rows = measure(args.checkpoint, args.pairs, args.seed)
    command = ["python", "benchmarks/tracking.py", *sys.argv[1:]]
    results.report(results.make_table("tracking", command, COLUMNS, rows), args.results)


if __name__ == "__main__":
    try:
        main()
    except AutodragError as error:
        sys.exit(f"error: {error}")
