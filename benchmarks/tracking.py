"""Which blocks should the tracker read? Points followed from head to head, and found there by a landmark net.

    python benchmarks/tracking.py --pairs 96

Image A is moved toward image B by a share of the way in its first six layers. The landmarks of A are looked for in the
moved image by `autodrag.tracking.follow`, near where they were, and by the checkpoint's landmark net.
"""

from __future__ import annotations

import argparse

import torch

from autodrag.checkpoint import load_generator, load_landmarks
from autodrag.data.latents import map_codes
from autodrag.eval.tables import markdown
from autodrag.infer.locate import TRACKED_BLOCKS
from autodrag.tracking import PULL, appearance, follow, match_features


@torch.inference_mode()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="checkpoints/critters")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--seed", type=int, default=5005)
    args = parser.parse_args()
    generator, _ = load_generator(args.checkpoint)
    net = load_landmarks(args.checkpoint)
    assert net is not None, "this comparison needs a checkpoint with a landmark net"
    size, last = generator.config.image_size, len(generator.config.block_resolutions) - 1
    rng = torch.Generator().manual_seed(args.seed)
    psi = torch.full((args.pairs,), 0.7)
    a, b = (
        map_codes(generator, args.pairs, psi, rng)[:, None].repeat(1, generator.config.latent_layers, 1)
        for _ in range(2)
    )
    start = net(generator(a).clamp(-1, 1)).points
    first = generator.features(a, block=last)
    lines = []
    for share in (0.5, 1.0):
        moved = a.clone()
        moved[:, :6] += share * (b - a)[:, :6]
        goal = net(generator(moved).clamp(-1, 1)).points
        second = generator.features(moved, block=last)
        limit = start.new_tensor([size[1] - 1, size[0] - 1])
        seen = torch.stack([((p > 0) & (p < limit)).all(dim=2) for p in (start, goal)]).all(dim=0)
        for coarsest, finest in (
            (last - 1, last - 1),
            (last, last),
            (last - 2, last - 1),
            (last - TRACKED_BLOCKS + 1, last),
        ):
            maps = [f.outputs[coarsest : finest + 1] for f in (first, second)]
            found, _ = follow(maps[1], appearance(maps[0], start, size), size, near=start, pull=PULL)
            error = (found - goal).norm(dim=2)[seen]
            _, mutual = match_features(maps[0], maps[1], start, size)
            far = float((error > size[0] / 16).float().mean())
            row = [f"{share:.0%} of the distance", f"{coarsest} to {finest}", f"{float(error.mean()):.2f}"]
            row += [f"{float(error.median()):.2f}", f"{far:.1%}", f"{float(mutual[seen].float().mean()):.0%}"]
            lines.append(row)
    print(markdown(["moved", "blocks", "mean error, px", "median, px", f"over {size[0] // 16} px", "mutual"], lines))


if __name__ == "__main__":
    main()
